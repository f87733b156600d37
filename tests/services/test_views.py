"""Views: whoever reads beside a server sees one committed state whole, however much is overwritten meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from snapctl.cli import complete
from snapctl.engine.container import Container
from snapctl.errors import Corruption, IoFailure, Locked, NodeNotFound, NoSpace, ReadOnlyNode, SnapctlError, ViewEnded
from snapctl.format.superblock import copy_offset
from snapctl.services import opening, transfer
from snapctl.services.check import check_backend, check_container
from snapctl.services.control.server import ControlServer
from snapctl.services.live.container import LiveContainer
from snapctl.services.scrub import live as scrub_live
from snapctl.services.scrub import scrub_container
from snapctl.services.transfer import export_node
from snapctl.storage import view as storage_view
from snapctl.storage.view import ViewBackend
from tests.cli.harness import run, snapctl
from tests.support.servers import served, served_by_process

KIB = 1 << 10
SIZE = 512 * KIB
GEOMETRIES = [(512, 512), (4096, 16384)]
_TIMEOUT_SECONDS = 30.0


def content(number: int) -> bytes:
    """What the volume holds after a round."""
    return number.to_bytes(8, "little") + random.Random(number).randbytes(SIZE - 8)


def make(path: Path, block_size: int = 4096, table_size: int = 16384) -> None:
    """A container with a volume, a snapshot of it that stays, and one that does not."""
    with Container.create(str(path), block_size=block_size, table_size=table_size) as container:
        container.create_volume("db", SIZE).write(0, content(0))
        container.snapshot("db@fixed")
        container.commit()


class BusyServer:
    """A server in this process that overwrites the whole volume, takes snapshots and deletes them, without a pause.

    Attributes:
        rounds: how often it has done so.
        live: its container, which belongs to its thread.
    """

    def __init__(self, path: Path, *, takes_snapshots: bool = True) -> None:
        self.path = str(path)
        self.takes_snapshots = takes_snapshots
        self.rounds = 0
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()])

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(1)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_TIMEOUT_SECONDS)
        assert not self._thread.is_alive()
        if self.failure:
            raise self.failure

    def wait(self, rounds: int) -> None:
        """Return when that many more rounds are done."""
        with self._changed:
            goal = self.rounds + rounds
            assert self._changed.wait_for(lambda: self.failure or self.rounds >= goal, _TIMEOUT_SECONDS)

    def sometimes(self, calls: int = 5) -> Callable[[int, int | None], None]:
        """A receiver of progress that lets the server overwrite everything at its first calls."""
        left = iter(range(calls))

        def told(_done: int, _total: int | None) -> None:
            if next(left, None) is not None:
                self.wait(2)

        return told

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        live = await LiveContainer.open(self.path)
        control = ControlServer(live, self.path)
        try:
            await control.start()
            while not self._stop.is_set():
                await live.change(self._round)
                await asyncio.sleep(0)
                with self._changed:
                    self.rounds += 1
                    self._changed.notify_all()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            await control.stop()
            await live.close()

    def _round(self, container: Container) -> None:
        number = self.rounds + 1
        container["db"].write(0, content(number))
        if not self.takes_snapshots:
            return
        container.snapshot(f"db@{number}")
        for node in container.nodes:
            if node.name == f"db@{number - 2}":
                container.delete(node.name)


@dataclass
class Handed:
    """A view of which the test itself is the server.

    Attributes:
        is_ending: the server is about to end: one who waits sees it.
        is_ended: the reader has let go of it.
    """

    fd: int
    superblocks_fd: int
    is_ending: bool = False
    is_ended: bool = False

    def is_over(self, wait_seconds: float) -> bool:
        return self.is_ending and wait_seconds > 0

    def end(self) -> None:
        self.is_ended = True


def granted(path: Path) -> Handed:
    """A view that nobody keeps whole."""
    copy = os.memfd_create("superblocks")
    os.write(copy, path.read_bytes()[: 64 * KIB])
    return Handed(os.open(path, os.O_RDONLY), copy)


def overwrite(path: Path) -> None:
    """Write so much that no page is left as it was."""
    with Container.open(str(path), writable=True) as container:
        container.delete("db@fixed")
        for number in range(6):
            container["db"].write(0, content(number))
            container.commit()


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    path = tmp_path / "lab.snap"
    make(path)
    return path


@pytest.mark.parametrize(("block_size", "table_size"), GEOMETRIES)
def test_beside_a_writer_a_check_is_clean_and_exports_are_of_one_state(
    tmp_path: Path, block_size: int, table_size: int
):
    lab, target = tmp_path / "lab.snap", tmp_path / "out"
    make(lab, block_size, table_size)
    with BusyServer(lab) as server:
        report = check_container(str(lab), 5.0, server.sometimes())
        assert (report.findings, report.nodes) == ([], 4)
        scrubbed = scrub_container(str(lab), 5.0, server.sometimes())
        assert scrubbed.damages == ()
        export_node(str(lab), "db@fixed", str(target), progress=server.sometimes())
        assert target.read_bytes() == content(0)
        before = server.rounds
        export_node(str(lab), "db", str(target), force=True, progress=server.sometimes())
        found = target.read_bytes()
        number = int.from_bytes(found[:8], "little")
        assert before <= number < server.rounds
        assert found == content(number)
    assert check_container(str(lab), 5.0).findings == []


@pytest.mark.parametrize(("block_size", "table_size"), GEOMETRIES)
def test_several_views_keep_their_own_states_to_the_end(tmp_path: Path, block_size: int, table_size: int):
    lab = tmp_path / "lab.snap"
    make(lab, block_size, table_size)
    with BusyServer(lab) as server:
        views = []
        for _ in range(3):
            backend = opening.open_file(str(lab), 5.0)
            container = Container.adopt(backend, writable=False)
            views.append((backend, container, bytes(container["db"].read(0, SIZE))))
            server.wait(2)
        for backend, container, seen in views:
            server.wait(1)
            assert seen == content(int.from_bytes(seen[:8], "little"))
            assert container["db"].read(0, SIZE) == seen
            assert check_backend(backend).findings == []
            backend.close()
        assert len({seen for _, _, seen in views}) == 3
        server.wait(4)  # until what the last one kept has come free, by two commits
        length = lab.stat().st_size
        server.wait(8)
        assert lab.stat().st_size == length, "what the views kept is used again"


def test_a_long_read_of_a_snapshot_renews_its_view_and_lets_go_of_the_old_one(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (transfer, scrub_live):
        monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr("snapctl.services.transfer.PIECE_BYTES", 64 * KIB)
    monkeypatch.setattr(storage_view, "RENEWAL_SECONDS", 0.0)
    target, states, descriptors = tmp_path / "out", set[int](), set[int]()
    take = ViewBackend._take

    def taken(self: ViewBackend, grant: storage_view.Grant) -> None:
        take(self, grant)
        states.add(hash(bytes(self._area)))
        descriptors.add(len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(ViewBackend, "_take", taken)
    with BusyServer(lab, takes_snapshots=False) as server:
        export_node(str(lab), "db@fixed", str(target), progress=server.sometimes())
        assert target.read_bytes() == content(0)
        assert len(states) > 4
        states.clear()
        assert scrub_container(str(lab), 5.0, server.sometimes()).damages == ()
        assert len(states) > 4
        assert max(descriptors) - min(descriptors) < 12, "old views are let go of"


def test_a_snapshot_that_is_deleted_during_its_export_is_missed_at_the_next_view(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr("snapctl.services.transfer.PIECE_BYTES", 64 * KIB)
    monkeypatch.setattr(storage_view, "RENEWAL_SECONDS", 0.0)
    told = iter([True])

    def delete(_done: int, _total: int | None) -> None:
        if next(told, False):
            run("delete", f"{lab}/db@fixed")

    with served(lab), pytest.raises(NodeNotFound, match="deleted while it was being exported"):
        export_node(str(lab), "db@fixed", str(tmp_path / "out"), progress=delete)
    assert not (tmp_path / "out").exists()


def test_every_command_that_reads_does_so_beside_a_server_as_without_one(lab: Path, tmp_path: Path):
    commands: list[list[object]] = [
        ["list", lab],
        ["list", lab, "--json"],
        ["tree", lab, "--json"],
        ["info", f"{lab}/db", "--json"],
        ["read", f"{lab}/db@fixed", "--offset", "1000", "--length", "9000"],
        ["check", lab, "--json"],
        ["export", f"{lab}/db", "-"],
    ]
    without = [snapctl(*words) for words in commands]
    names = complete.any_node(f"{lab}/d")
    assert {result.code for result in without} == {0}
    assert names
    with served(lab):
        assert [snapctl(*words) for words in commands] == without
        assert complete.any_node(f"{lab}/d") == names
        scrubbed = snapctl("scrub", lab)
        assert (scrubbed.code, "no errors" in scrubbed.text) == (0, True)
        with pytest.raises(Locked):
            Container.open(str(lab), writable=True, wait_seconds=0)


def test_a_view_holds_all_that_was_acknowledged_and_no_lock(lab: Path):
    async def use() -> None:
        live = await LiveContainer.open(str(lab))
        try:
            assert live.device("db").write(0, b"acknowledged")
            async with live.view() as view:
                grant = Handed(os.dup(view.fd), os.dup(view.superblocks_fd))
                with Container.adopt(ViewBackend(str(lab), grant), writable=False) as container:
                    assert container["db"].read(0, 12) == b"acknowledged"
                    assert container.transaction == view.transaction + 1
                    with pytest.raises(ReadOnlyNode):
                        container.create_volume("x", 4096)
                    with pytest.raises(IoFailure):
                        container.pages.backend.write(1 << 16, [b"x"])
                kept = os.dup(view.fd)
            assert live.device("db").write(0, b"next")
        finally:
            await live.close()
        Container.open(str(lab), writable=True, wait_seconds=0).close()  # a view's descriptor is not the lock's
        os.close(kept)

    asyncio.run(use())


def test_what_a_view_keeps_is_no_room_and_is_room_as_soon_as_it_ends(tmp_path: Path):
    """Nothing but the end of the view happens between the write that is refused and the one that is not."""
    lab = tmp_path / "lab.snap"
    with Container.create(str(lab), capacity_bytes=5 * SIZE) as container:
        container.create_volume("db", 2 * SIZE).write(0, content(1) + content(2))

    async def use() -> None:
        live = await LiveContainer.open(str(lab))
        device = live.device("db")

        async def write(data: bytes) -> None:
            while not device.write(0, data):
                await live.until_room()

        try:
            async with live.view():
                assert device.zero(0, 2 * SIZE)
                for data in (b"one", b"two", b"three"):
                    await write(data)
                    await live.flush()
                with pytest.raises(NoSpace, match="when those who read an older state are done"):
                    await write(content(3) + content(4))
            await write(content(3) + content(4))
        finally:
            await live.close()

    asyncio.run(use())
    with Container.open(str(lab)) as container:
        assert container["db"].read(0, 2 * SIZE) == content(3) + content(4)


def test_all_four_superblock_copies_of_a_view_are_those_of_its_state(lab: Path):
    async def use() -> None:
        live = await LiveContainer.open(str(lab))
        try:
            for number in range(4):
                async with live.view() as view:
                    backend = ViewBackend(str(lab), Handed(os.dup(view.fd), os.dup(view.superblocks_fd)))
                    assert check_backend(backend).findings == []
                    live.device("db").write(0, content(number))
                    await live.flush()
                    live.device("db").write(0, content(0))
                    await live.flush()
                    assert check_backend(backend).findings == []
                    backend.close()
        finally:
            await live.close()

    asyncio.run(use())


@pytest.mark.parametrize("command", ["check", "scrub"])
def test_a_damaged_superblock_copy_is_reported_on_a_view_and_left_to_the_server(lab: Path, command: str):
    with served(lab):
        with lab.open("r+b") as file:
            file.seek(copy_offset(1, 1) + 70)
            file.write(b"\xff\xff")
        image = lab.read_bytes()
        result = snapctl(command, lab)
        assert result.code == 4
        assert "superblock slot 1 copy 1" in result.text
        assert lab.read_bytes() == image


def test_what_a_dead_server_had_kept_is_not_believed(lab: Path):
    """The next writer overwrites it all; whatever is read then says that the server ended, and never is damage."""
    with served_by_process(lab) as server:
        backend = opening.open_file(str(lab), 5.0)
        with Container.adopt(backend, writable=False) as container:
            assert container["db"].read(0, SIZE) == content(0)
            os.kill(server.pid, signal.SIGKILL)
            server.wait(_TIMEOUT_SECONDS)
            overwrite(lab)
            with pytest.raises(ViewEnded, match="ended while"):
                container["db"].read(0, SIZE)
            with pytest.raises(ViewEnded):
                check_backend(backend)


@pytest.mark.parametrize("command", [check_container, scrub_container])
def test_a_check_or_scrub_whose_server_dies_fails_and_finds_nothing(lab: Path, command: Callable[..., object]):
    told = iter([True])
    with served_by_process(lab) as server:

        def kill(_done: int, _total: int | None) -> None:
            if next(told, False):
                os.kill(server.pid, signal.SIGKILL)
                server.wait(_TIMEOUT_SECONDS)
                overwrite(lab)

        with pytest.raises(ViewEnded):
            command(str(lab), 5.0, kill)


def export(path: str, _wait_seconds: float, progress: Callable[[int, int | None], None]) -> None:
    export_node(path, "db", f"{path}.out", progress=progress)


@pytest.mark.parametrize("command", [check_container, scrub_container, export])
def test_a_server_that_stops_in_the_midst_of_a_command_makes_it_fail_with_exit_code_1(
    lab: Path, command: Callable[..., object], monkeypatch: pytest.MonkeyPatch
):
    assert ViewEnded.exit_code == 1
    monkeypatch.setattr("snapctl.services.transfer.PIECE_BYTES", 64 * KIB)
    told = iter([True])
    with served_by_process(lab) as server:

        def stop(_done: int, _total: int | None) -> None:
            if next(told, False):
                server.terminate()
                server.wait(_TIMEOUT_SECONDS)

        with pytest.raises(ViewEnded):
            command(str(lab), 5.0, stop)
    assert not Path(f"{lab}.out").exists()


def test_damage_that_is_read_before_the_end_is_noticed_is_not_believed_either(lab: Path):
    """A dying process lets go of its lock and of its connections one after the other."""
    grant = granted(lab)
    backend = ViewBackend(str(lab), grant)
    overwrite(lab)
    assert check_backend(backend).findings, "else this shows nothing"
    opening.check_lasts(backend)
    with pytest.raises(Corruption), opening.believing(backend):
        raise Corruption("read while it lasts")
    grant.is_ending = True
    with pytest.raises(ViewEnded):
        opening.check_lasts(backend)
    with pytest.raises(ViewEnded), opening.believing(backend):
        raise Corruption("read at its end")
    backend.close()
    assert grant.is_ended


def test_a_view_that_cannot_be_renewed_goes_on_while_it_lasts(lab: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_view, "RENEWAL_SECONDS", 0.0)
    first, second = granted(lab), granted(lab)
    answers: Iterator[Handed | SnapctlError | None] = iter([None, Locked("busy"), second, None])

    def renewed() -> Handed | None:
        answer = next(answers)
        if isinstance(answer, SnapctlError):
            raise answer
        return answer

    backend = ViewBackend(str(lab), first, renewed)
    assert [backend.renew() for _ in range(3)] == [False, False, True]
    assert first.is_ended
    second.is_ending = True
    with pytest.raises(ViewEnded):
        backend.renew()
    backend.close()


def test_damage_under_a_server_that_lives_is_damage(lab: Path):
    with served(lab):
        with lab.open("r+b") as file:
            for at in range(64 * KIB, lab.stat().st_size, 4096):
                file.seek(at)
                file.write(b"\xff" * 8)
        assert snapctl("check", lab).code == 4
        listed = snapctl("list", lab)
        assert (listed.code, "checksum" in listed.err) == (4, True), listed


def test_view_that_cannot_be_made_leaves_no_descriptor(lab: Path):
    async def scenario() -> None:
        live = await LiveContainer.open(str(lab))
        try:
            before = len(os.listdir("/proc/self/fd"))
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            try:
                with pytest.raises(IoFailure, match="copy of the superblocks"):
                    async with live.view():
                        pass
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert len(os.listdir("/proc/self/fd")) == before
        finally:
            await live.close()

    asyncio.run(scenario())
