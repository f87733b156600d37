"""How a server begins and ends under foreign clients: by systemd's hand, by SIGTERM, and what is durable then."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.harness import command_line, digest, environment, finish, run
from tests.compat.conftest import Lab
from tests.support.requires import needs
from tests.support.served import TIMEOUT_SECONDS, Door, client, interactive, python_with_libnbd, serve

ROUNDS_SCRIPT = Path(__file__).with_name("libnbd_rounds.py")
REQUEST_BYTES, REQUESTS = 20_000, 64

LONGEST_END_SECONDS = 15
"""Ten for what is in flight, and some for a machine that is busy with other tests."""


def rounds(container: Path) -> list[int]:
    """The round that each request of the script was last written in; a request is of one round alone."""
    data = run("read", container / "db", "--length", REQUEST_BYTES * REQUESTS).out
    found = []
    for at in range(0, len(data), REQUEST_BYTES):
        request = data[at : at + REQUEST_BYTES]
        assert request == request[:8] * (REQUEST_BYTES // 8)
        found.append(int.from_bytes(request[:8], "big"))
    return found


@pytest.mark.parametrize("signal_no", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_client_was_told_is_flushed_is_there_when_the_server_has_ended(
    signal_no: signal.Signals, disk: Lab, tmp_path: Path
):
    with serve(disk.container, "--unix", tmp_path / "nbd") as serving:
        words = [serving.door().uri("db"), str(REQUEST_BYTES), str(REQUESTS)]
        script = [*python_with_libnbd(), str(ROUNDS_SCRIPT)]
        with subprocess.Popen([*script, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None
                flushed = [int(writer.stdout.readline()) for _ in range(20)]
                began = time.monotonic()
                serving.process.send_signal(signal_no)
                ended = finish(serving.process)
                assert ended == (0 if signal_no == signal.SIGTERM else -signal_no, b"", "")
                assert time.monotonic() - began < LONGEST_END_SECONDS
                flushed += [int(line) for line in writer.stdout]
                assert writer.wait(TIMEOUT_SECONDS) == 0
            finally:
                writer.kill()
    run("check", disk.container)
    assert {flushed[-1], flushed[-1] + 1} >= set(rounds(disk.container))
    assert digest_of(disk.container, "db@mon") == digest(disk.mon)


def digest_of(container: Path, name: str) -> str:
    image = container.with_name("out.img")
    run("read", container / name, "--output", image)
    return digest(image)


def test_qemu_goes_on_with_a_server_that_was_killed_and_started_again(disk: Lab, tmp_path: Path):
    program = needs("qemu-io", package="qemu-utils")
    where = ["--unix", tmp_path / "nbd"]
    with serve(disk.container, *where) as first:
        patient = first.door().image("db", {"reconnect-delay": str(TIMEOUT_SECONDS)})
        with interactive(program, "--image-opts", patient) as machine:
            machine.do("write -f -P 5 0 4k", "wrote 4096/4096")  # -f is FUA
            first.process.kill()
            first.process.wait(TIMEOUT_SECONDS)
            with serve(disk.container, *where):
                machine.do("write -P 6 4k 4k", "wrote 4096/4096")
                machine.do("read -P 5 0 4k", "read 4096/4096")
    assert run("read", disk.container / "db", "--length", "8k").out == b"\5" * 4096 + b"\6" * 4096


def test_an_idle_client_does_not_hold_up_the_end_and_loses_nothing_though_it_never_flushed(disk: Lab, tmp_path: Path):
    program = needs("qemu-io", package="qemu-utils")
    with (
        serve(disk.container, "--unix", tmp_path / "nbd") as serving,
        interactive(program, "-t", "writeback", "-f", "raw", serving.door().uri("db")) as idle,
    ):
        idle.do("write -P 5 0 4k", "wrote 4096/4096")
        began = time.monotonic()
        assert serving.stop() == (0, b"", "")
        assert time.monotonic() - began < LONGEST_END_SECONDS / 3
    assert run("read", disk.container / "db", "--length", "4k").out == b"\5" * 4096


def test_systemd_starts_a_server_on_its_sockets_with_the_first_client(disk: Lab, tmp_path: Path):
    activate, nbdcopy = needs("systemd-socket-activate", package="systemd"), needs("nbdcopy", package="libnbd-bin")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    doors = [Door("nbd+unix://", str(tmp_path / "nbd")), Door(f"nbd://127.0.0.1:{port}")]
    listen = [f"--listen={tmp_path / 'nbd'}", f"--listen=127.0.0.1:{port}"]
    process = subprocess.Popen(
        [activate, *listen, *command_line("serve", disk.container)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        listening = [process.stderr.readline() for _ in listen]
        assert all(b"Listening on" in line for line in listening)
        for number, door in enumerate(doors):
            client(nbdcopy, "--connections=3", door.uri("db"), tmp_path / f"copy{number}")
            assert digest(tmp_path / f"copy{number}") == digest(disk.db)
        client(nbdcopy, "--flush", disk.mon, doors[1].uri("db"))
        process.terminate()
        ended = finish(process)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)
    assert ended.code == 0, ended
    assert ended.lines == [door.uri(name) for name in ("db", "db@mon") for door in doors]
    assert digest_of(disk.container, "db") == digest(disk.mon)
