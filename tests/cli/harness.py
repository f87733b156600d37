"""Running snapctl as its users do: as a process of its own, also on a terminal and without privileges."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

READ_ONLY_COMMANDS = ("read", "export", "list", "tree", "info", "status", "check", "scrub")
_TIMEOUT_SECONDS = 60


class Result(NamedTuple):
    """How a process ended, and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    """The environment for a process under test: no wishes about Python but that it finds this snapctl anywhere."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**inherited, "PYTHONPATH": str(ROOT), **extra}


def command_line(*arguments: object) -> list[str]:
    """The words that start snapctl with some arguments."""
    return [sys.executable, "-m", "snapctl", *map(str, arguments)]


def snapctl(*arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> Result:
    """Run one command to its end."""
    done = subprocess.run(
        command_line(*arguments),
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(**env),
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def run(*arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> Result:
    """Run one command that must succeed without a word on standard error."""
    result = snapctl(*arguments, stdin=stdin, cwd=cwd, **env)
    assert (result.code, result.err) == (0, ""), result
    return result


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command with pipes to all its streams."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command_line(*arguments), env=environment(), **{**streams, **options}
    )
    return process


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    """Wait for a started command to end."""
    out, err = process.communicate(stdin, timeout=_TIMEOUT_SECONDS)
    return Result(process.returncode, out or b"", (err or b"").decode())


def wait_until_open(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a started process has a file open."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            if any(descriptor.samefile(path) for descriptor in Path(f"/proc/{process.pid}/fd").iterdir()):
                return
        except FileNotFoundError:  # one was closed meanwhile
            pass
        time.sleep(0.01)
    raise AssertionError(f"{path} was not opened")


def wait_until_locked(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a started process holds the lock of a container; that it has the file open is not enough."""
    lock = f" {process.pid} "
    inode = f":{path.stat().st_ino} "
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if any(lock in row and inode in row for row in Path("/proc/locks").read_text().splitlines()):
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} was not locked")


def redirected(redirections: str, *arguments: object, cwd: Path | None = None) -> Result:
    """Run one command with its standard streams as a shell's words say, such as ``<&-`` or ``>>file``."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command_line(*arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env=environment(),
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def one_line(result: Result) -> str:
    """The one line that an error is, and nothing else on any stream."""
    assert result.out == b""
    assert result.err.startswith("snapctl: ")
    assert result.err.count("\n") == 1, result.err
    assert "internal error" not in result.err
    return result.err.removeprefix("snapctl: ").rstrip("\n")


def digest(path: Path) -> str:
    """A fingerprint of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _take_control() -> None:
    """Make standard input the terminal that keys such as Ctrl-C act through."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A process with a terminal of its own for standard input, output and error, as a person sees it."""

    def __init__(
        self, command: list[str], *, columns: int = 80, cwd: Path | None = None, stdout: int | None = None, **env: str
    ) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            cwd=cwd,
            env=environment(**{"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env}),
            start_new_session=True,
            preexec_fn=_take_control,  # noqa: PLW1509 nothing here starts threads
        )
        os.close(slave)
        self.seen = ""

    def expect(self, text: str, *, timeout_seconds: float = 30) -> str:
        """Wait until `text` has appeared; returns all that has."""
        deadline = time.monotonic() + timeout_seconds
        while text not in self.seen:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not appear in {self.seen!r}")
        return self.seen

    def expect_more(self, seconds: float) -> None:
        """Let some time pass, taking in what appears meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(deadline):
            pass

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def close(self) -> tuple[int, str]:
        """Wait for the process to end; returns its exit code and all that appeared."""
        while self._read(time.monotonic() + _TIMEOUT_SECONDS):
            pass
        code = self.process.wait(_TIMEOUT_SECONDS)
        os.close(self._master)
        return code, self.seen.replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def on_terminal(*arguments: object, typed: str | None = None, **options: Any) -> tuple[int, str]:
    """Run one command on a terminal, answering its question if there is one to answer."""
    terminal = Terminal(command_line(*arguments), **options)
    if typed is not None:
        terminal.expect("[y/N] ")
        terminal.expect_more(0.2)
        terminal.type(typed)
    return terminal.close()
