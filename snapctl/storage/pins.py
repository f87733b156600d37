"""Pins: committed states of the space map that stay whole for those who read them, however much is committed after.

A pin stands for what one commit had in use. The allocator takes nothing that a pin stands for, and nothing of that is
punched out of the file. Only bitmaps that change matter: those in memory are kept as they were committed then, and one
that comes into memory later has not changed in between, so it is taken note of when it does.
"""

from __future__ import annotations

from collections.abc import Mapping


class Pin:
    """One pin, compared by identity.

    Attributes:
        states: bitmaps as the pinned commit left them, by index; those that are missing have not changed since.
    """

    __slots__ = ("states",)

    def __init__(self, states: dict[int, bytes]) -> None:
        """Not for callers; ask the space map."""
        self.states = states


class Pins:
    """All pins of an open container; they outlive the transactions that are given up.

    Attributes:
        held_units: how many units are free by the last commit and the one before, and kept by pins alone.
    """

    def __init__(self) -> None:
        self.held_units = 0
        self._pins: list[Pin] = []
        self._held: dict[int, int] = {}
        self._bits: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._pins)

    def add(self, committed: Mapping[int, bytes]) -> Pin:
        """Begin a pin of the last commit, given its bitmaps that are in memory."""
        pin = Pin(dict(committed))
        self._pins.append(pin)
        self._bits.clear()
        return pin

    def remove(self, pin: Pin) -> None:
        """End a pin."""
        self._pins.remove(pin)
        self._bits.clear()

    def note(self, index: int, committed: bytes) -> None:
        """Take note of a bitmap that comes into memory, as the last commit left it."""
        for pin in self._pins:
            pin.states.setdefault(index, committed)
        self._bits.pop(index, None)

    def bits(self, index: int) -> int:
        """The units of one bitmap that pins stand for, as a number."""
        bits = self._bits.get(index)
        if bits is None:
            bits = 0
            for state in {pin.states[index] for pin in self._pins if index in pin.states}:
                bits |= int.from_bytes(state, "little")
            self._bits[index] = bits
        return bits

    def recount(self, index: int, committed: bytes, previous: bytes) -> None:
        """Count anew what pins alone keep of a bitmap, which the last two commits left like this."""
        both = int.from_bytes(committed, "little") | int.from_bytes(previous, "little")
        held = (self.bits(index) & ~both).bit_count()
        self.held_units += held - self._held.pop(index, 0)
        if held:
            self._held[index] = held
