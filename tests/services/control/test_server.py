"""The control server against clients of every kind, on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from snapctl import Container, errors
from snapctl.errors import Locked, NameTaken, SnapctlError
from snapctl.services.control import server
from snapctl.services.control.address import socket_path
from snapctl.services.control.client import connect, container_uuids
from snapctl.services.control.connection import Connection
from snapctl.services.control.protocol import LONGEST_REQUEST, as_error, error_object
from snapctl.services.control.server import ControlServer
from snapctl.services.live.container import LiveContainer
from snapctl.services.unixsocket import reachable
from tests.cli.harness import environment
from tests.docs.test_errors import every_error
from tests.support.servers import served

NOBODY = 65534
_TIMEOUT_SECONDS = 20


def make(path: Path) -> Path:
    with Container.create(str(path)) as container:
        container.create_volume("db", 1 << 20).write(0, b"data")
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A container that is served, for tests that leave it as it is."""
    path = make(tmp_path_factory.mktemp("shared") / "lab.snap")
    with served(path):
        yield path


class Raw:
    """A client that says what it likes."""

    def __init__(self, container: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_TIMEOUT_SECONDS)
        with reachable(socket_path(str(container))) as address:
            self.socket.connect(address)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def ask(self, line: bytes, fds: list[int] | None = None) -> dict[str, Any]:
        if fds:
            socket.send_fds(self.socket, [line + b"\n"], fds)
        else:
            self.socket.sendall(line + b"\n")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        while True:
            answer: dict[str, Any] = json.loads(self.file.readline())
            if answer.get("method") != "progress":
                return answer

    def is_closed(self) -> bool:
        """Whether the server hangs up."""
        try:
            return self.file.readline() == b""
        except ConnectionResetError:
            return True


def request(method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()


def is_answered(container: Path) -> bool:
    with Raw(container) as client:
        return "result" in client.ask(request("hello", version=1))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", -32700),
        (b"hello", -32700),
        (b"\xff\xfe\x00", -32700),
        (b"{" * 5000, -32700),
        (b"[" * 500_000, -32700),
        (b'{"id": ' + b"9" * 10_000 + b"}", -32700),
        (b"null", -32600),
        (b"[]", -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "status"}]', -32600),
        (b'{"id": 1, "method": "status"}', -32600),
        (b'{"jsonrpc": "2.0", "method": "status"}', -32600),
        (b'{"jsonrpc": "2.0", "id": [], "method": "status"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "_change"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"x" * 100_000 + b'"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": []}', -32602),
        (request("status", more=1), -32602),
        (request("snapshot"), -32602),
        (request("snapshot", names="db@mon"), -32602),
        (request("snapshot", names=["db@mon", 5]), -32602),
        (request("resize", name="db", size_bytes=True), -32602),
        (request("delete", names=["db"], force=1), -32602),
        (request("create", name="../x", size_bytes=1), -32000),
        (request("create", name="x", size_bytes=10**3000), -32000),
        (request("trim", name="db", offset_bytes=-(2**70), length_bytes=2**80), -32000),
        (request("write", name="db"), -32000),
    ],
)
def test_hostile_line_gets_its_error_and_the_next_is_answered(line: bytes, code: int, shared: Path):
    with Raw(shared) as client:
        answer = client.ask(line)
        assert answer["error"]["code"] == code
        assert len(json.dumps(answer)) < 5000
        assert client.ask(request("hello", version=1))["result"]["pid"] == os.getpid()


def test_line_without_end_ends_the_connection(shared: Path):
    with Raw(shared) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.socket.sendall(b"x" * 64 * LONGEST_REQUEST)
    assert is_answered(shared)


def test_longest_line_is_read_and_one_byte_more_is_refused(shared: Path):
    with Raw(shared) as client:
        line = request("hello", version=1)
        assert "result" in client.ask(line.ljust(LONGEST_REQUEST))
        answer = client.ask(line.ljust(LONGEST_REQUEST + 1))
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)
        assert client.is_closed()


def test_client_that_sends_nothing_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.2)
    path = make(tmp_path / "lab.snap")
    with served(path), Raw(path) as client:
        assert "result" in client.ask(request("hello", version=1))
        client.socket.sendall(b'{"jsonrpc"')
        assert client.is_closed()


def test_transfers_that_wait_for_their_input_keep_nobody_waiting(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    reader, writer = os.pipe()
    with served(path):
        waiting = [Raw(path) for _ in range(40)]
        for client in waiting:
            socket.send_fds(client.socket, [request("write", name="db") + b"\n"], [reader])
        with (tmp_path / "image").open("w+b") as image, Raw(path) as client:
            image.write(b"image" * 1000)
            image.flush()
            image.seek(0)
            line = request("write", name="db", offset_bytes=5000)
            assert client.ask(line, [image.fileno()])["result"]["written_bytes"] == 5000
        for client in waiting:
            client.__exit__()
    os.close(reader)
    os.close(writer)
    with Container.open(str(path)) as container:
        assert container["db"].read(5000, 5) == b"image"


def test_half_a_line_is_nothing(shared: Path):
    with Raw(shared) as client:
        client.socket.sendall(request("create", name="half", size_bytes=4096)[:-1])
    with Raw(shared) as client:
        assert client.ask(request("delete", names=["half"]))["error"]["data"]["type"] == "NodeNotFound"


def test_requests_that_are_sent_together_are_answered_in_order(shared: Path):
    with Raw(shared) as client:
        lines = [json.dumps({"jsonrpc": "2.0", "id": f"n{i}", "method": "status"}).encode() for i in range(500)]
        client.socket.sendall(b"\n".join([*lines, b""]))
        assert [client.answer()["id"] for _ in lines] == [f"n{i}" for i in range(500)]


def test_descriptors_that_nobody_wants_are_closed(shared: Path, tmp_path: Path):
    with (tmp_path / "file").open("wb") as file, Raw(shared) as client:
        client.ask(request("hello", version=1))
        before = sorted(os.listdir("/proc/self/fd"))
        for count in (1, 2, 4, 9):
            assert "result" in client.ask(request("status"), [file.fileno()] * count)
            assert "error" in client.ask(request("write", name="nosuch"), [file.fileno()] * count)
            assert "error" in client.ask(b"?", [file.fileno()] * count)
        assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "says"),
    [("/", "directory"), ("/dev/null", "is empty"), ("LAB", "the container itself"), ("WRITE", "cannot read")],
)
def test_descriptors_that_cannot_be_imported_are_refused(path: str, says: str, shared: Path, tmp_path: Path):
    flags = os.O_WRONLY | os.O_CREAT if path == "WRITE" else os.O_RDONLY
    name = {"LAB": str(shared), "WRITE": str(tmp_path / "file")}.get(path, path)
    (tmp_path / "file").write_bytes(b"x")
    fd = os.open(name, flags)
    with Raw(shared) as client:
        answer = client.ask(request("import", name="x", source="what I sent"), [fd])
    os.close(fd)
    assert says in answer["error"]["message"]
    assert "what I sent" in answer["error"]["message"]
    assert [node["name"] for node in nodes(shared)] == ["db"]


def nodes(container: Path) -> list[dict[str, str]]:
    """What the names of a served container's nodes are, as a dry run of deleting everything tells."""
    with Raw(container) as client:
        result = client.ask(request("delete", names=["db"], cascade=True, dry_run=True))["result"]
        return [{"name": name} for name in result["names"]]


@pytest.mark.parametrize("line", [b"", b"{", b"[" * 5000, b'{"jsonrpc": "2.0", "method": "finish"}', b"x" * (2 << 20)])
def test_import_that_is_not_agreed_to_leaves_nothing(line: bytes, shared: Path, tmp_path: Path):
    (tmp_path / "image").write_bytes(b"image" * 1000)
    with (tmp_path / "image").open("rb") as image, Raw(shared) as client:
        assert client.ask(request("import", name="x"), [image.fileno()])["method"] == "ready"
        with suppress(BrokenPipeError, ConnectionResetError):
            client.socket.sendall(line + b"\n")
            if len(line) < LONGEST_REQUEST:
                assert "it was given up" in client.answer()["error"]["message"]
    with Raw(shared) as client:
        made = client.ask(request("create", name="x", size_bytes=4096))
        while "is being imported" in made.get("error", {}).get("message", ""):
            made = client.ask(request("create", name="x", size_bytes=4096))
        assert made["result"]["name"] == "x"
        client.ask(request("delete", names=["x"]))


def test_hundreds_of_connections_leave_room_for_the_next(shared: Path):
    clients = [Raw(shared) for _ in range(64)]
    for client in clients:
        assert "result" in client.ask(request("hello", version=1))
    for _ in range(200):
        with Raw(shared) as refused:
            assert refused.answer()["error"]["message"].startswith("too many connections")
            assert refused.is_closed()
    with pytest.raises(SnapctlError, match="too many connections"):
        connect(str(shared), 1)
    for client in clients:
        client.__exit__()
    deadline = [None] * 1000
    assert any("result" in attempt(shared) for _ in deadline)


def attempt(container: Path) -> dict[str, Any]:
    with Raw(container) as client:
        try:
            return client.ask(request("hello", version=1))
        except (BrokenPipeError, ConnectionResetError):
            return {}


def test_socket_is_the_owners_alone_and_goes_with_the_server(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    control = Path(socket_path(str(path)))
    with served(path):
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
    assert not control.exists()


def test_link_to_a_container_leads_to_its_server(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    (tmp_path / "sub").mkdir()
    link = tmp_path / "sub" / "link"
    link.symlink_to("../lab.snap")
    with served(path):
        client = connect(str(link), 1)
        assert client is not None
        client.close()


@pytest.mark.parametrize(("depth", "length"), [(0, 70), (0, 200), (0, 255), (3, 8), (15, 250)])
def test_any_path_that_a_container_has_can_be_served(depth: int, length: int, tmp_path: Path):
    directory = tmp_path.joinpath(*["d" * 200] * depth)
    directory.mkdir(parents=True, exist_ok=True)
    path = make(directory / ("n" * length))
    with served(path):
        client = connect(str(path), 1)
        assert client is not None
        with client:
            assert client.call("snapshot", {"names": ["db@mon"]})["names"] == ["db@mon"]
    assert sorted(os.listdir(directory)) == ["n" * length] if depth else True


def start_twice(path: Path) -> None:
    async def run() -> None:
        live = await LiveContainer.open(str(path))
        first, second = ControlServer(live, str(path)), ControlServer(live, str(path))
        try:
            await first.start()
            try:
                await second.start()
            finally:
                await first.stop()
        finally:
            await live.close()

    asyncio.run(run())


def test_second_server_of_a_container_is_refused(tmp_path: Path):
    with pytest.raises(Locked, match="another server"):
        start_twice(make(tmp_path / "lab.snap"))


def test_socket_of_a_dead_server_is_replaced(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path(str(path)))
    assert connect(str(path), 1) is None
    with served(path):
        assert is_answered(path)


def test_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    in_the_way = Path(socket_path(str(path)))
    in_the_way.write_text("important")
    assert connect(str(path), 1) is None
    with pytest.raises(NameTaken, match="in the way"):
        start_twice(path)
    assert in_the_way.read_text() == "important"


def test_socket_of_a_later_server_outlives_ours(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    control = socket_path(str(path))
    with socket.socket(socket.AF_UNIX) as later:
        with served(path):
            os.unlink(control)
            later.bind(control)
        assert stat.S_ISSOCK(os.lstat(control).st_mode)


def test_copy_beside_the_socket_of_another_container_is_not_served(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    other = make(tmp_path / "other.snap")
    with served(path):
        other.replace(path)
        assert connect(str(path), 1) is None


def test_server_that_does_not_answer_is_waited_for_and_told_of(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(socket_path(str(path)))
        silent.listen()
        with pytest.raises(Locked, match="does not answer"):
            connect(str(path), 0)


AS_NOBODY = f"import os, socket, sys\nos.setresuid({NOBODY}, {NOBODY}, {NOBODY})\ns = socket.socket(socket.AF_UNIX)\n"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@needs_root
def test_client_of_another_user_is_hung_up_on(public: Path):
    path = make(public / "lab.snap")
    script = "s.connect(sys.argv[1])\nprint(s.recv(1))"
    with served(path):
        control = socket_path(str(path))
        words = [sys.executable, "-c", AS_NOBODY + script, control]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
        assert "PermissionError" in done.stderr
        os.chmod(control, 0o666)  # as if the file system knew no modes
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
        assert done.stdout == "b''\n", done
        assert is_answered(path)


@needs_root
def test_server_of_another_user_is_not_trusted_unless_the_container_is_theirs(public: Path):
    path = make(public / "lab.snap")
    (uuid,) = container_uuids(str(path))
    where = {"device": path.stat().st_dev, "inode": path.stat().st_ino}
    (public / "theirs").mkdir()
    moved = path.rename(public / "theirs" / "lab.snap")
    os.chown(public / "theirs", NOBODY, NOBODY)
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"version": 1, "uuid": uuid, "pid": 1, **where}}
    script = (
        "s.bind(sys.argv[1])\ns.listen()\n"
        "print('ready', flush=True)\nwhile True:\n    c, _ = s.accept()\n"
        "    if c.recv(999): c.sendall(sys.argv[2].encode() + b'\\n')"
    )
    words = [sys.executable, "-c", AS_NOBODY + script, socket_path(str(moved)), json.dumps(answer)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as theirs:
        try:
            assert theirs.stdout is not None
            assert theirs.stdout.readline() == b"ready\n"
            assert connect(str(moved), 5) is None
            os.chown(moved, NOBODY, NOBODY)
            client = connect(str(moved), 5)
            assert client is not None
            client.close()
        finally:
            theirs.kill()


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_is_raised_again_as_what_it_was(kind: type[SnapctlError]):
    error = kind("what happened", *([["db@mon"]] if kind is errors.HasDependents else []))
    made = as_error(json.loads(json.dumps(error_object(error))))
    assert (type(made), str(made), made.exit_code, vars(made)) == (kind, str(error), error.exit_code, vars(error))


def test_error_of_an_unknown_class_keeps_its_exit_code():
    described = {"code": -32000, "message": "what", "data": {"type": "FromTheFuture", "exit_code": 9, "fields": {}}}
    made = as_error(described)
    assert (type(made), str(made), made.exit_code) == (SnapctlError, "what", 9)
    assert type(as_error({"message": "m", "data": {"type": "Sequence", "exit_code": 1}})) is SnapctlError


def test_copy_in_the_place_of_a_served_container_is_not_taken_for_it(tmp_path: Path):
    path = make(tmp_path / "lab.snap")
    with served(path):
        assert is_answered(path)
        shutil.copy(path, tmp_path / "backup")
        os.replace(tmp_path / "backup", path)
        assert connect(str(path), 1) is None


def test_drained_means_that_nothing_is_left_unsent():
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            link = Connection(ours)
            try:
                link.send({"text": "x" * (4 << 20)})
                draining = asyncio.create_task(link.drained())
                received = 0
                while not draining.done():
                    with suppress(BlockingIOError):
                        received += len(theirs.recv(1 << 16))
                    await asyncio.sleep(0)
                assert not link._unsent
                while received < 4 << 20:
                    received += len(theirs.recv(1 << 16))
            finally:
                await link.release()

    asyncio.run(asyncio.wait_for(scenario(), _TIMEOUT_SECONDS))


@pytest.mark.parametrize(
    "answer",
    [
        {"result": None},
        {"result": {"version": 1, "uuid": [], "pid": 1}},
        {"result": {"version": 1, "uuid": "x", "pid": "x", "device": 1, "inode": 1}},
        {"error": 7},
        {"error": {"data": {"type": "__class__", "fields": 5}}},
        {"error": {"message": "m", "data": {"type": "Locked", "fields": {"__class__": 1}}}},
    ],
    ids=json.dumps,
)
def test_answer_that_makes_no_sense_is_an_error_of_ours(answer: dict[str, object], tmp_path: Path):
    path = make(tmp_path / "lab.snap")

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(999)
            accepted.sendall(json.dumps({"id": 1, **answer}).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(socket_path(str(path)))
        listener.listen()
        served_once = pool.submit(serve, listener)
        with suppress(SnapctlError):
            assert connect(str(path), 5) is None
        served_once.result(_TIMEOUT_SECONDS)
