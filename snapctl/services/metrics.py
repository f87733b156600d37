"""Metrics of a running server for Prometheus, over HTTP.

The library's threads speak HTTP and nothing else: what they tell is taken on the event loop, between two requests of
clients, from counters that are kept anyway. Imported only where metrics are asked for, since the library is an extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypedDict

from snapctl import __version__
from snapctl.errors import SnapctlError

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise SnapctlError(
        "metrics need the Python package prometheus_client; install it with: pip install 'snapctl[metrics]'"
    ) from error

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

    from snapctl.services.live.container import LiveContainer
    from snapctl.services.nbd.server import Server

_TOLD_BUCKETS = range(2, 25, 2)
"""The buckets of a latency histogram that are told, from 4 microseconds to 17 seconds: fewer series, wide enough."""
_BUCKET_NANOSECONDS = 1024
_ANSWER_SECONDS = 5.0


class Operation(TypedDict):
    """What clients of an export have asked for by one command.

    Bucket n of the histogram counts requests that took less than 2 to the n times 1024 ns and not less than the bucket
    before tells; the last one counts all longer ones.
    """

    requests: int
    errors: int
    length_bytes: int
    nanoseconds: int
    histogram: Sequence[int]


class Export(TypedDict):
    """An export and its use, since the server's start; the operations by the names of their commands."""

    name: str
    connections: int
    in_flight: int
    operations: Mapping[str, Operation]


class Status(TypedDict):
    """What is told of a server."""

    uptime_seconds: float
    used_bytes: int
    free_bytes: int
    reserve_bytes: int
    dirty_bytes: int
    commits: int
    commit_nanoseconds: int
    exports: Sequence[Export]


def take(live: LiveContainer, server: Server, uptime_seconds: float) -> Status:
    """Take the present state of a server."""
    usage, told, counted = live.container.usage, live.status(), server.statistics()
    return {
        "uptime_seconds": uptime_seconds,
        "used_bytes": usage.used_bytes,
        "free_bytes": usage.free_bytes,
        "reserve_bytes": usage.reserve_bytes,
        "dirty_bytes": told["dirty_bytes"],
        "commits": told["commits"],
        "commit_nanoseconds": told["commit_nanoseconds"],
        "exports": [
            {
                "name": node.name,
                "connections": len(live.users.get(node.id, ())),
                "in_flight": counted[node.id].in_flight if node.id in counted else 0,
                "operations": {
                    name: {
                        "requests": operation.requests,
                        "errors": operation.errors,
                        "length_bytes": operation.length_bytes,
                        "nanoseconds": operation.nanoseconds,
                        "histogram": operation.histogram,
                    }
                    for name, operation in (counted[node.id].named() if node.id in counted else ())
                },
            }
            for node in live.nodes()
        ],
    }


class MetricsServer:
    """Answers scrapes until it is closed.

    Attributes:
        port: that it listens on.
    """

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        """Not for callers; see `start`."""
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    async def close(self) -> None:
        """Stop listening."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


async def start(host: str, port: int, status: Callable[[], Status]) -> MetricsServer:
    """Answer scrapes on a TCP port.

    Args:
        host: name or address to listen on; all addresses if empty.
        port: to listen on; 0 for any free one.
        status: tells the present state; called on the running event loop.

    Raises:
        SnapctlError: the system refuses the port or the host.
    """
    registry = CollectorRegistry()
    registry.register(_ServerCollector(asyncio.get_running_loop(), status))
    ProcessCollector(registry=registry)
    try:
        server, thread = await asyncio.to_thread(start_http_server, port, host or "0.0.0.0", registry)  # noqa: S104
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SnapctlError(f"cannot serve metrics on {host or '*'}:{port}: {reason}") from error
    return MetricsServer(server, thread)


class _ServerCollector(Collector):
    def __init__(self, loop: asyncio.AbstractEventLoop, status: Callable[[], Status]) -> None:
        self._loop = loop
        self._status = status

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand, so that nothing is collected before somebody asks."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Tell all there is; nothing if the server is ending or hangs. Runs in a thread of the library."""
        taken = self._take()
        try:
            future = asyncio.run_coroutine_threadsafe(taken, self._loop)
        except RuntimeError:  # the loop is closed
            taken.close()
            return
        try:
            status = future.result(_ANSWER_SECONDS)
        except (CancelledError, TimeoutError):
            future.cancel()
            return
        yield from families(status)

    async def _take(self) -> Status:
        return self._status()


def families(status: Status) -> Iterator[Metric]:
    """Turn a status into metrics, by Prometheus' conventions for names and units."""
    yield InfoMetricFamily("snapctl_build", "The program.", value={"version": __version__})
    for name, documentation, value in (
        ("uptime_seconds", "Time since the server began to listen.", status["uptime_seconds"]),
        ("container_used_bytes", "Pages of the container in use, superblocks included.", status["used_bytes"]),
        ("container_free_bytes", "What can still be written.", status["free_bytes"]),
        ("container_reserve_bytes", "What is kept for deletes, neither used nor free.", status["reserve_bytes"]),
        ("dirty_bytes", "Acknowledged writes that are not durable yet.", status["dirty_bytes"]),
    ):
        yield GaugeMetricFamily(f"snapctl_{name}", documentation, value)
    yield CounterMetricFamily("snapctl_commits", "Commits since the start.", status["commits"])
    yield CounterMetricFamily(
        "snapctl_commit_seconds", "Time that commits took, all together.", status["commit_nanoseconds"] / 1e9
    )
    yield from _of_exports(status["exports"])
    yield from _of_operations(status["exports"])


def _of_exports(exports: Sequence[Export]) -> Iterator[Metric]:
    connections = GaugeMetricFamily("snapctl_connections", "Clients of an export.", labels=["export"])
    in_flight = GaugeMetricFamily(
        "snapctl_requests_in_flight", "Requests that have not been answered yet.", labels=["export"]
    )
    for export in exports:
        connections.add_metric([export["name"]], export["connections"])
        in_flight.add_metric([export["name"]], export["in_flight"])
    yield connections
    yield in_flight


def _of_operations(exports: Sequence[Export]) -> Iterator[Metric]:
    labels = ["export", "command"]
    requests = CounterMetricFamily("snapctl_requests", "Requests that were answered.", labels=labels)
    errors = CounterMetricFamily("snapctl_request_errors", "Requests that failed.", labels=labels)
    lengths = CounterMetricFamily("snapctl_request_bytes", "Lengths of the ranges asked for.", labels=labels)
    durations = HistogramMetricFamily(
        "snapctl_request_duration_seconds", "From the arrival of a request to its reply.", labels=labels
    )
    for export in exports:
        for command, operation in export["operations"].items():
            values = [export["name"], command]
            requests.add_metric(values, operation["requests"])
            errors.add_metric(values, operation["errors"])
            lengths.add_metric(values, operation["length_bytes"])
            durations.add_metric(values, _buckets(operation["histogram"]), operation["nanoseconds"] / 1e9)
    yield from (requests, errors, lengths, durations)


def _buckets(histogram: Sequence[int]) -> list[tuple[str, float]]:
    """The upper bounds in seconds, each with how many requests took no longer."""
    told = [(repr(_BUCKET_NANOSECONDS / 1e9 * 2**n), float(sum(histogram[: n + 1]))) for n in _TOLD_BUCKETS]
    return [*told, ("+Inf", float(sum(histogram)))]
