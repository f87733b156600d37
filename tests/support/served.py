"""`snapctl serve` as a process of its own, its addresses as foreign clients write them, and those clients."""

from __future__ import annotations

import re
import select
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, unquote, urlsplit

from tests.cli.harness import Result, environment, finish, start
from tests.support.requires import needs

TIMEOUT_SECONDS = 30

Server = Mapping[str, str]


@dataclass(frozen=True)
class Door:
    """One address of a server, as its clients write it.

    Attributes:
        url: what a connection string begins with: the scheme, and over TCP the host and port.
        socket: the path of a Unix socket, or "".
        keys: a folder with the client's certificates, None for no TLS.
    """

    url: str
    socket: str = ""
    keys: Path | None = None

    def uri(self, name: str) -> str:
        """Return the connection string of an export, or of the server for ""."""
        query = [f"socket={self.socket}"] if self.socket else []
        query += [f"tls-certificates={self.keys}"] if self.keys else []
        return f"{self.url}/{quote(name)}" + (f"?{'&'.join(query)}" if query else "")

    @property
    def server(self) -> Server:
        """Tell where it is, in the words of qemu's NBD driver."""
        if self.socket:
            return {"server.type": "unix", "server.path": self.socket}
        address = urlsplit(self.url)
        return {"server.type": "inet", "server.host": str(address.hostname), "server.port": str(address.port)}

    @property
    def credentials(self) -> list[str]:
        """The words that give one of qemu's tools its certificate."""
        return ["--object", f"tls-creds-x509,id=tls,endpoint=client,dir={self.keys}"] if self.keys else []

    def image(self, name: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
        """Describe an export to qemu's tools, as an argument behind ``--image-opts``."""
        options = {
            "driver": "nbd",
            **self.server,
            "export": name,
            **({"tls-creds": "tls"} if self.keys else {}),
            **more,
        }
        return ",".join(f"{key}={value}" for key, value in options.items())


class Serving:
    """A container that a process of its own serves.

    Attributes:
        container: its path.
        process: the server.
        addresses: the connection strings that it printed.
        ended: how it ended; None while it runs.
    """

    def __init__(self, container: Path, process: subprocess.Popen[bytes], addresses: list[str]) -> None:
        self.container = container
        self.process = process
        self.addresses = addresses
        self.ended: Result | None = None

    def door(self, keys: Path | None = None) -> Door:
        """Take the first address that was printed, with the certificates in a folder if it needs any."""
        address = urlsplit(self.addresses[0])
        socket = unquote(address.query.removeprefix("socket="))
        return Door(f"{address.scheme}://{address.netloc}", socket, keys)

    def stop(self) -> Result:
        """End the server with SIGTERM; returns how it ended."""
        self.process.terminate()
        self.ended = finish(self.process)
        return self.ended


@contextmanager
def serve(container: Path, *options: object) -> Iterator[Serving]:
    """Serve a container with `snapctl serve` until the block ends; a server that runs until then has to end well."""
    process = start("serve", *options, container, stdin=subprocess.DEVNULL)
    try:
        serving = Serving(container, process, _addresses(process))
        yield serving
        if process.poll() is None:
            ended = serving.stop()
            assert (ended.code, ended.out) == (0, b""), ended
            assert "internal error" not in ended.err, ended
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)


def _addresses(process: subprocess.Popen[bytes]) -> list[str]:
    """Wait for the connection strings, which the server prints all at once when it is ready."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_SECONDS)
    printed = process.stdout.read1(65536).decode() if ready else ""  # type: ignore[attr-defined]
    assert printed.endswith("\n"), (printed, process.poll())
    addresses = printed.splitlines()
    assert all(re.match(r"nbds?(\+unix)?://", address) for address in addresses), printed
    return addresses


def client(*words: object, code: int = 0, stdin: bytes = b"") -> str:
    """Run a client to its end, which has to come soon and with this exit code; returns what it printed."""
    done = subprocess.run(
        [*map(str, words)],
        input=stdin,
        capture_output=True,
        env=environment(),
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == code, (words, done)
    return done.stdout.decode()


class Interactive:
    """A client that takes commands, as a machine does that runs on an export."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def do(self, command: str, answer: str) -> None:
        """Give a command and wait for the line that answers it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        line = ""
        while answer not in line:
            line = self.process.stdout.readline().decode()
            assert line
            assert "failed" not in line or "failed" in answer


@contextmanager
def interactive(*words: str) -> Iterator[Interactive]:
    """Start such a client; it is dead when the block ends, or before if it takes too long."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        watchdog = threading.Timer(TIMEOUT_SECONDS, process.kill)
        watchdog.start()
        try:
            yield Interactive(process)
        finally:
            watchdog.cancel()
            process.kill()


def python_with_libnbd() -> list[str]:
    """Return the words that start the Python that Debian's libnbd is for, wherever another one comes first in PATH."""
    needs("nbdsh", package="python3-libnbd")
    return ["/usr/bin/python3", "-I"]


def make_keys(folder: Path) -> Path:
    """Make an authority and the certificates of a server and a client, in files named as libnbd and qemu want them."""
    openssl = needs("openssl", package="openssl")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3"]

    def certify(name: str, *words: str) -> None:
        files = ["-keyout", f"{folder}/{name}-key.pem", "-out", f"{folder}/{name}-cert.pem"]
        client(openssl, "req", "-x509", *new_key, *files, "-subj", f"/CN={name}", *words)

    certify("ca")
    signed = ["-CA", f"{folder}/ca-cert.pem", "-CAkey", f"{folder}/ca-key.pem", "-addext", "basicConstraints=CA:FALSE"]
    certify("server", *signed, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    certify("client", *signed)
    return folder


def tls_options(keys: Path) -> list[object]:
    """The options of a server that takes only clients whose certificate the authority has signed."""
    return [
        *("--tls-cert", keys / "server-cert.pem"),
        *("--tls-key", keys / "server-key.pem"),
        *("--tls-ca", keys / "ca-cert.pem"),
    ]
