"""Files of bytes that stand in for the container file: in memory, counting, stopping, refusing.

All of them are a `snapctl.storage.backend.Backend`. They are swapped in below the engine, never inside it, so that what
is tested is the code that users run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from snapctl.errors import IoFailure, NoSpace
from snapctl.storage.backend import Buffer, neighbours

SECTOR = 512
"""What a disk writes whole or not at all."""
_JUNK = b"\xdb"


class Stopped(BaseException):
    """The machine stopped. Not an `Exception`: nothing in the program runs on after that, so nothing may catch it."""


class MemoryBackend:
    """A file in memory.

    Attributes:
        data: the bytes of the file.
        durable: the bytes as of the last `sync`.
        is_open: whether nobody has closed it.
        reserved_to: where the room ends that is kept beyond the end of the file; 0 if none is.
        available: what `room` answers.
    """

    def __init__(self, data: bytes | bytearray = b"", path: str = "memory.snap") -> None:
        self.path = path
        self.reserved_to = 0
        self.available = 1 << 50
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.is_open = True

    def size(self) -> int:
        return len(self.data)

    def read_each(self, places: list[tuple[int, int]]) -> list[Buffer] | None:
        """Nothing is read at a stroke, so that every read goes by `read_into`."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        found = self.data[offset : offset + len(buffer)]
        memoryview(buffer)[: len(found)] = found
        return len(found)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        MemoryBackend.extend(self, offset)
        self.data[offset : offset + len(data)] = data

    def write_each(self, offsets: list[int], buffers: list[Buffer], size: int) -> None:
        """What follows each other is written at a stroke, and counts, stops or fails as one."""
        for offset, pages in neighbours(offsets, buffers, size):
            self.write(offset, pages)

    def sync(self) -> None:
        self.durable = bytes(self.data)

    def extend(self, size: int) -> None:
        self.data.extend(bytes(max(0, size - len(self.data))))

    def truncate(self, size: int) -> None:
        if len(self.data) > size:
            del self.data[size:]
            self.reserved_to = 0

    def punch(self, offset: int, length: int) -> None:
        """Fill with junk, the least that "undefined" allows a reader to hope for."""
        end = min(offset + length, len(self.data))
        self.data[offset:end] = _JUNK * max(0, end - offset)

    def reserve(self, offset: int, length: int) -> bool:
        if offset + length > len(self.data):
            self.reserved_to = max(self.reserved_to, offset + length)
        return True

    def release(self) -> None:
        self.reserved_to = 0

    def room(self, used_bytes: int) -> int:
        return self.available

    def free(self) -> int:
        return self.available - len(self.data)

    def close(self) -> None:
        self.is_open = False


class RecordingBackend(MemoryBackend):
    """Counts and lists the calls made of it.

    Attributes:
        calls: how often each method was called.
        log: (method, offset or size, length) of each call that changes the file or makes it durable, in order.
        read_bytes: bytes read so far.
        written_bytes: bytes written so far.
    """

    def __init__(self, data: bytes | bytearray = b"", path: str = "memory.snap") -> None:
        super().__init__(data, path)
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.calls: Counter[str] = Counter()
        self.log: list[tuple[str, int, int]] = []
        self.read_bytes = 0
        self.written_bytes = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        self.calls["read_into"] += 1
        done = super().read_into(offset, buffer)
        self.read_bytes += done
        return done

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(map(len, buffers))
        self._note("write", offset, length)
        self.written_bytes += length
        super().write(offset, buffers)

    def sync(self) -> None:
        self._note("sync", 0, 0)
        super().sync()

    def extend(self, size: int) -> None:
        if size > len(self.data):
            self._note("extend", size, 0)
        super().extend(size)

    def punch(self, offset: int, length: int) -> None:
        self._note("punch", offset, length)
        super().punch(offset, length)

    def reserve(self, offset: int, length: int) -> bool:
        self._note("reserve", offset, length)
        return super().reserve(offset, length)

    def release(self) -> None:
        self._note("release", 0, 0)
        super().release()

    def _note(self, method: str, offset: int, length: int) -> None:
        self.calls[method] += 1
        self.log.append((method, offset, length))


class UnreadableSector(MemoryBackend):
    """A disk that refuses to read some places.

    Attributes:
        bad_offsets: where reads that begin there are refused, in bytes.
    """

    bad_offsets: tuple[int, ...] = ()

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        if offset in self.bad_offsets:
            raise IoFailure(f"cannot read {self.path}: Input/output error; try again")
        return super().read_into(offset, buffer)


class InterruptedBackend(MemoryBackend):
    """Asks before each operation whether it may go on; base of those that stop, fail and refuse.

    Attributes:
        done: operations (write, sync, extend, punch, reserve, release) carried out in full.
    """

    def __init__(self, data: bytes | bytearray = b"", path: str = "memory.snap") -> None:
        super().__init__(data, path)
        self.done = 0

    def interrupt(self, method: str, offset: int, data: bytes) -> None:
        """Called with each operation before it is carried out; raises what it is to end with."""
        raise NotImplementedError

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        self._operate("write", offset, data, lambda: super(InterruptedBackend, self).write(offset, [data]))

    def sync(self) -> None:
        self._operate("sync", 0, b"", super().sync)

    def extend(self, size: int) -> None:
        if size > len(self.data):
            self._operate("extend", size, b"", lambda: super(InterruptedBackend, self).extend(size))

    def punch(self, offset: int, length: int) -> None:
        self._operate("punch", offset, b"", lambda: super(InterruptedBackend, self).punch(offset, length))

    def reserve(self, offset: int, length: int) -> bool:
        self._operate("reserve", offset, b"", lambda: super(InterruptedBackend, self).reserve(offset, length))
        return True

    def release(self) -> None:
        self._operate("release", 0, b"", super().release)

    def _operate(self, method: str, offset: int, data: bytes, carry_out: Callable[[], object]) -> None:
        self.interrupt(method, offset, data)
        carry_out()
        self.done += 1


class StoppingBackend(InterruptedBackend):
    """Raises `Stopped` at one operation; `data` then holds what had been written, `durable` what had been synced.

    Attributes:
        stop_at: the operation to stop at, from 0; None to carry out all.
        keep: of a write that is stopped at, how many bytes of how many are still written.
        stopped_in: the method that was stopped.
    """

    def __init__(
        self,
        data: bytes | bytearray = b"",
        *,
        stop_at: int | None = None,
        keep: Callable[[int], int] = lambda _length: 0,
        path: str = "memory.snap",
    ) -> None:
        super().__init__(data, path)
        self.stop_at = stop_at
        self.keep = keep
        self.stopped_in = ""

    def interrupt(self, method: str, offset: int, data: bytes) -> None:
        if self.done != self.stop_at:
            return
        if kept := data[: self.keep(len(data))]:
            MemoryBackend.write(self, offset, [kept])
        self.stopped_in = method
        raise Stopped(f"{method} at {offset}")


class FailingBackend(InterruptedBackend):
    """Ends some operations with an error of the system, having carried out a part of the write.

    Attributes:
        fail_at: the operations to fail at, counted from 0 in order of their beginning.
        error: what they end with.
        methods: the methods that are counted and can fail.
        begun: operations of those methods begun so far.
    """

    def __init__(
        self,
        data: bytes | bytearray = b"",
        *,
        fail_at: range = range(0),
        error: type[IoFailure | NoSpace] = IoFailure,
        methods: tuple[str, ...] = ("write", "sync", "extend"),
        path: str = "memory.snap",
    ) -> None:
        super().__init__(data, path)
        self.fail_at = fail_at
        self.error = error
        self.methods = methods
        self.begun = 0

    def interrupt(self, method: str, offset: int, data: bytes) -> None:
        if method not in self.methods:
            return
        self.begun += 1
        if self.begun - 1 in self.fail_at:
            if kept := data[: len(data) // SECTOR // 2 * SECTOR]:
                MemoryBackend.write(self, offset, [kept])
            raise self.error(f"{method} of {self.path} was refused")
