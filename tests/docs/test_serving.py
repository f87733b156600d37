"""docs/serving.md: its commands, run against a server as a reader runs them; and the units for systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.harness import environment
from tests.docs.markdown import ROOT, code_blocks, section, text_of
from tests.support.requires import needs

PAGE = text_of("docs/serving.md")
UNITS = ROOT / "contrib" / "systemd"
LONGEST_SECONDS = 30


class Block(NamedTuple):
    """A block of commands: `sh` is run to its end, `sh server` until the test is over, `sh elsewhere` not at all."""

    mark: str
    text: str


def blocks(heading: str) -> list[Block]:
    found = re.findall(r"^```(sh[a-z ]*)\n(.*?)^```$", section(PAGE, heading), re.MULTILINE | re.DOTALL)
    return [Block(mark, text) for mark, text in found]


HEADINGS = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
RUNNABLE = [heading for heading in HEADINGS if heading != "Preparing" and "sh" in dict(blocks(heading))]


def requirements(text: str) -> None:
    """See that the system has the programs that some commands call."""
    for program, find in (
        ("qemu-img", lambda: needs("qemu-img", package="qemu-utils")),
        ("qemu-io", lambda: needs("qemu-io", package="qemu-utils")),
        ("nbdinfo", lambda: needs("nbdinfo", package="libnbd-bin")),
        ("nbdcopy", lambda: needs("nbdcopy", package="libnbd-bin")),
        ("nbdfuse", lambda: needs("nbdfuse", package="libnbd-bin")),
        ("fusermount3", lambda: needs("fusermount3", package="fuse3")),
        ("mke2fs", lambda: needs("mke2fs", package="e2fsprogs")),
        ("e2fsck", lambda: needs("e2fsck", package="e2fsprogs")),
        ("openssl", lambda: needs("openssl", package="openssl")),
        ("curl", lambda: needs("curl", package="curl")),
    ):
        if re.search(rf"\b{program}\b", text):
            find()


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as probe:
        return int(probe.getsockname()[1])


class Desk:
    """A folder in which the commands of one section run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        script = folder / "bin" / "snapctl"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m snapctl "$@"\n')
        script.chmod(0o755)
        self.ports = {"10809": str(free_port()), "9479": str(free_port())}
        admin = "/usr/local/sbin:/usr/sbin:/sbin"
        path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath), admin])
        self.env = environment(PATH=path)

    def command(self, text: str) -> list[str]:
        for port, free in self.ports.items():
            text = text.replace(port, free)
        return ["bash", "-euo", "pipefail", "-c", text]

    def run(self, text: str) -> str:
        """Run commands to their end, and end whatever they leave behind."""
        process = subprocess.Popen(
            self.command(text),
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        try:
            printed, _ = process.communicate(timeout=LONGEST_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if os.path.lexists(mount := self.folder / "mnt"):
                subprocess.run(["fusermount3", "-quz", str(mount)], timeout=LONGEST_SECONDS, check=False)
        assert process.returncode == 0, f"{text}\n{printed}[exit code {process.returncode}]"
        return printed

    @contextmanager
    def serving(self, text: str) -> Iterator[str]:
        """Run a server until the block ends, once it has told the first of its addresses."""
        process = subprocess.Popen(
            self.command(f"exec {text}"), cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        watchdog = threading.Timer(LONGEST_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            address = process.stdout.readline()
            assert address.startswith("nbd"), f"{text}\n{address}"
            yield address
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as the section `Preparing` leaves it."""
    folder = tmp_path_factory.mktemp("prepared")
    (text,) = [block.text for block in blocks("Preparing") if block.mark == "sh"]
    requirements(text)
    Desk(folder).run(text)
    return folder


@pytest.fixture
def desk(prepared: Path, tmp_path: Path) -> Desk:
    for name in ("lab.snap", "disk.img"):
        shutil.copy(prepared / name, tmp_path / name)
    return Desk(tmp_path)


def follow(desk: Desk, heading: str) -> str:
    """Run the commands of a section in order, beside its own server or that of `Preparing`; returns their output."""
    found = blocks(heading)
    if not any(block.mark == "sh server" for block in found):
        found = [block for block in blocks("Preparing") if block.mark == "sh server"] + found
    requirements("".join(block.text for block in found if block.mark == "sh"))
    printed = ""
    with ExitStack() as servers:
        for block in found:
            if block.mark == "sh server":
                servers.enter_context(desk.serving(block.text))
            elif block.mark == "sh":
                printed += desk.run(block.text)
    return printed


@pytest.mark.parametrize("heading", RUNNABLE)
def test_the_commands_of_a_section_do_what_it_says(heading: str, desk: Desk):
    assert follow(desk, heading)


def test_sections_that_can_be_run_are():
    assert len(RUNNABLE) >= 6
    assert {block.mark for heading in HEADINGS for block in blocks(heading)} == {"sh", "sh server", "sh elsewhere"}


def test_what_cannot_be_run_here_is_at_least_sound_shell():
    for heading in HEADINGS:
        for block in blocks(heading):
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=LONGEST_SECONDS)


def test_the_disk_for_libvirt_is_the_socket_that_systemd_makes():
    (text,) = code_blocks(section(PAGE, "libvirt"), "xml")
    disk = ET.fromstring(text)
    source = disk.find("source")
    host = disk.find("source/host")
    assert source is not None
    assert host is not None
    assert (disk.get("type"), source.get("protocol"), source.get("name")) == ("network", "nbd", "db")
    (listening,) = re.findall(r"^ListenStream=(.*)$", unit("snapctl-serve@.socket"), re.MULTILINE)
    assert host.attrib == {"transport": "unix", "socket": listening.replace("%i", "lab")}


def unit(name: str) -> str:
    return (UNITS / name).read_text(encoding="utf-8")


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path):
    analyze = needs("systemd-analyze", package="systemd")
    program = Path(sys.executable).with_name("snapctl")
    for path in UNITS.iterdir():
        installed = tmp_path / path.name.replace("@", "@lab")
        installed.write_text(path.read_text().replace("/usr/bin/snapctl", str(program)))
    for installed in tmp_path.iterdir():
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(installed)],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        complaints = [line for line in done.stderr.splitlines() if "lab" in line]
        assert complaints == [], installed.name
        assert done.returncode == 0, done.stderr


def test_a_server_takes_over_the_socket_that_systemd_passes(desk: Desk):
    needs("nbdinfo", package="libnbd-bin")
    activate = needs("systemd-socket-activate", package="systemd")
    started = re.search(r"^ExecStart=(.*)$", unit("snapctl-serve@.service"), re.MULTILINE)
    assert started is not None
    line = started[1].replace("/usr/bin/", "").replace("/var/lib/snapctl/%i", str(desk.folder / "lab"))
    printed = desk.run(f"""
        SERVE_OPTIONS=
        {activate} --listen="$PWD/lab.nbd" {line} >addresses 2>log &
        until test -S lab.nbd; do sleep 0.1; done
        nbdinfo --size 'nbd+unix:///db?socket=lab.nbd'
        kill %1
        wait %1
        cat addresses
        """)
    assert printed.splitlines() == [
        str(64 << 20),
        *(f"nbd+unix:///{name}?socket={desk.folder}/lab.nbd" for name in ("db", "db%40mon")),
    ]
