"""What clients have asked for, in plain integers: counted by the request, read by `status` and the metrics."""

from __future__ import annotations

from collections.abc import Iterator

from snapctl.services.nbd import wire

BUCKETS = 32
"""Of the histogram of latencies: bucket n counts requests that took less than 2 to the n microseconds (of 1024 ns),
and the last one whatever took longer."""


class Operation:
    """All requests of one kind.

    Attributes:
        requests: how many were answered.
        errors: how many of them with an error.
        length_bytes: the sum of their lengths, payload or not.
        nanoseconds: the sum of their latencies, from the batch's arrival to the reply.
        histogram: how many fell in each bucket.
    """

    __slots__ = ("errors", "histogram", "length_bytes", "nanoseconds", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = self.length_bytes = self.nanoseconds = 0
        self.histogram = [0] * BUCKETS

    def add(self, length_bytes: int, nanoseconds: int, requests: int = 1) -> None:
        """Count requests that took equally long.

        Args:
            length_bytes: the sum of their lengths.
            nanoseconds: the latency of each.
            requests: how many there are.
        """
        self.requests += requests
        self.length_bytes += length_bytes
        self.nanoseconds += requests * nanoseconds
        self.histogram[min((nanoseconds >> 10).bit_length(), BUCKETS - 1)] += requests

    def merge(self, other: Operation) -> None:
        """Count all that another has counted."""
        self.requests += other.requests
        self.errors += other.errors
        self.length_bytes += other.length_bytes
        self.nanoseconds += other.nanoseconds
        self.histogram = [mine + theirs for mine, theirs in zip(self.histogram, other.histogram, strict=True)]


class Statistics:
    """The requests of a client, or of all the clients of an export.

    Attributes:
        operations: by command; a kind that nobody has asked for is not there.
        in_flight: requests whose reply waits for something.
    """

    __slots__ = ("in_flight", "operations")

    def __init__(self) -> None:
        self.operations: dict[int, Operation] = {}
        self.in_flight = 0

    def of(self, command: int) -> Operation:
        """Return the counts of one command."""
        operation = self.operations.get(command)
        if operation is None:
            operation = self.operations[command] = Operation()
        return operation

    def merge(self, other: Statistics) -> None:
        """Count all that another has counted."""
        self.in_flight += other.in_flight
        for command, operation in other.operations.items():
            self.of(command).merge(operation)

    def named(self) -> Iterator[tuple[str, Operation]]:
        """Return the counts by the commands' names."""
        return ((wire.COMMAND_NAMES[command], operation) for command, operation in sorted(self.operations.items()))
