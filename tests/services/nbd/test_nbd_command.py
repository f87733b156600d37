"""`snapctl serve` as a process: what it prints, how it ends, and what systemd gives and gets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import command_line, environment, finish, one_line, run, snapctl, start
from tests.services.nbd import client as nbd
from tests.services.nbd.client import Client


@contextmanager
def serve(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = start("serve", *arguments, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode().rstrip("\n") for _ in range(count)]


@pytest.mark.parametrize("signal_no", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_with_everything_durable(signal_no: int, container: Path):
    with serve(container) as process:
        socket_path = f"{container}.nbd"
        assert lines(process, 2) == [f"nbd+unix:///{name}?socket={socket_path}" for name in ("db", "db%40mon")]
        with Client(socket_path) as client:
            client.go("db")
            client.write(0, b"acknowledged")
            process.send_signal(signal_no)
            assert finish(process) == (0, b"", "")
            assert client.is_closed()
    assert not Path(socket_path).exists()
    assert run("read", container / "db", "--length", "12").out == b"acknowledged"


def test_container_of_a_server_that_was_killed_is_served_again(container: Path):
    with serve(container) as process:
        lines(process, 2)
        with Client(f"{container}.nbd") as client:
            client.go("db")
            client.write(0, b"flushed", nbd.FUA)
            process.kill()
            process.wait(30)
    with serve(container) as process, Client(lines(process, 2)[0].partition("socket=")[2]) as client:
        client.go("db")
        assert client.read(0, 7) == b"flushed"


def test_sockets_are_listened_on_as_asked(container: Path, tmp_path: Path):
    words = ["--unix", "a.sock", "--unix", tmp_path / "b.sock", "--listen", "127.0.0.1:0", "--export", "db@mon"]
    with serve(container, *words, cwd=tmp_path) as process:
        one, other, port = lines(process, 3)
        assert [one, other] == [f"nbd+unix:///db%40mon?socket={tmp_path}/{name}.sock" for name in ("a", "b")]
        assert port.startswith("nbd://127.0.0.1:")
        with Client(("127.0.0.1", int(port.split(":")[2].partition("/")[0]))) as client:
            client.go("db@mon")
            assert client.read(4096, 3) == b"old"


def test_a_served_container_is_read_beside_its_server_and_served_by_no_other(container: Path):
    with serve(container) as process:
        lines(process, 2)
        assert "db@mon" in run("list", container).text
        assert snapctl("serve", "--wait", "0", container).code == 5
    with serve(container, "--read-only") as process:
        lines(process, 2)
        assert "db@mon" in run("list", container).text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--listen", "nonsense:port"], 2),
        (["--unix", ""], 2),
        (["--tls-cert", "x"], 2),
        (["--tls-ca", "x"], 2),
        (["--tls-cert", "nope.pem", "--tls-key", "nope.pem"], 1),
        (["--export", "nope"], 1),
        (["--unix", "no/such/folder"], 1),
    ],
)
def test_what_cannot_be_served_is_one_line(words: list[str], code: int, container: Path):
    result = snapctl("serve", container, *words, cwd=container.parent)
    assert result.code == code
    one_line(result)
    assert snapctl("serve", container.parent / "lab.snap/db").code == 2


def test_port_in_use_is_one_line(container: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = snapctl("serve", container, "--listen", f"127.0.0.1:{port}")
    assert result.code == 1
    assert f"127.0.0.1:{port}: address already in use" in one_line(result)


def test_systemd_passes_sockets_and_hears_of_the_beginning_and_the_end(container: Path, tmp_path: Path):
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.settimeout(30)
    passed = socket.create_server(("127.0.0.1", 0))
    passing = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    passing += "os.environ['LISTEN_FDS'] = '1'; os.execv(sys.argv[2], sys.argv[2:])"
    with notices, passed:
        process = subprocess.Popen(
            [sys.executable, "-c", passing, str(passed.fileno()), *command_line("serve", container)],
            env=environment(NOTIFY_SOCKET=str(tmp_path / "notify")),
            pass_fds=[passed.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            port = passed.getsockname()[1]
            assert lines(process, 1) == [f"nbd://127.0.0.1:{port}/db"]
            assert notices.recv(100) == b"READY=1"
            with Client(("127.0.0.1", port)) as client:
                client.go("db")
                assert client.read(4096, 3) == b"new"
            assert not os.path.exists(f"{container}.nbd")
            process.terminate()
            assert notices.recv(100) == b"STOPPING=1"
            assert finish(process).code == 0
        finally:
            process.kill()
            process.communicate()


def test_default_socket_is_beside_a_container_however_long_its_path(container: Path):
    folder = container.parent / ("d" * 120)
    folder.mkdir()
    container.rename(folder / "lab.snap")
    with serve(folder / "lab.snap") as process:
        assert lines(process, 1) == [f"nbd+unix:///db?socket={folder}/lab.snap.nbd"]
        descriptor = os.open(folder, os.O_RDONLY)
        with Client(f"/proc/self/fd/{descriptor}/lab.snap.nbd") as client:
            client.go("db")
            assert client.read(4096, 3) == b"new"
        os.close(descriptor)
