"""Metrics, scraped over HTTP as Prometheus does and read by its own parser."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snapctl import __version__
from snapctl.errors import SnapctlError
from snapctl.services import metrics
from snapctl.services.metrics import Export, Operation, Status

T = TypeVar("T")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def operation(latencies_ns: list[int], *, length_bytes: int = 0, errors: int = 0) -> Operation:
    histogram = [0] * 32
    for latency in latencies_ns:
        histogram[min((latency >> 10).bit_length(), 31)] += 1
    return Operation(
        requests=len(latencies_ns),
        errors=errors,
        length_bytes=length_bytes,
        nanoseconds=sum(latencies_ns),
        histogram=histogram,
    )


def status(*exports: Export) -> Status:
    return Status(
        uptime_seconds=12.5,
        used_bytes=1 << 20,
        free_bytes=5 << 40,
        reserve_bytes=7,
        dirty_bytes=4096,
        commits=3,
        commit_nanoseconds=1_500_000_000,
        exports=exports,
    )


DB = Export(
    name="db",
    connections=2,
    in_flight=1,
    operations={
        "read": operation([500, 5_000, 5_000, 2_000_000], length_bytes=1 << 33, errors=1),
        "write": operation([3_600 * 10**9], length_bytes=512),
    },
)
SNAPSHOT = Export(name="db@mon", connections=0, in_flight=0, operations={})


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers.get_content_type() == "text/plain"
        return str(answer.read().decode())


def samples_of(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def scraped(tell: Callable[[], Status], count: int = 1) -> list[Samples]:
    """Serve a status on a free port, and scrape it while the event loop runs."""

    async def run() -> list[str]:
        server = await metrics.start("127.0.0.1", 0, tell)
        try:
            return [await asyncio.to_thread(fetch, server.port) for _ in range(count)]
        finally:
            await server.close()

    return [samples_of(text) for text in asyncio.run(run())]


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_scrape_tells_the_container_the_commits_and_the_program():
    (samples,) = scraped(lambda: status(DB))
    assert value(samples, "snapctl_build_info", version=__version__) == 1
    for name, expected in (
        ("snapctl_uptime_seconds", 12.5),
        ("snapctl_container_used_bytes", 1 << 20),
        ("snapctl_container_free_bytes", 5 << 40),
        ("snapctl_container_reserve_bytes", 7),
        ("snapctl_dirty_bytes", 4096),
        ("snapctl_commits_total", 3),
        ("snapctl_commit_seconds_total", 1.5),
    ):
        assert value(samples, name) == expected, name
    if sys.platform == "linux":
        assert value(samples, "process_resident_memory_bytes") > 1 << 20


def test_a_scrape_tells_requests_by_export_and_command():
    (samples,) = scraped(lambda: status(DB, SNAPSHOT))
    assert value(samples, "snapctl_connections", export="db") == 2
    assert value(samples, "snapctl_connections", export="db@mon") == 0
    assert value(samples, "snapctl_requests_in_flight", export="db") == 1
    assert value(samples, "snapctl_requests_total", export="db", command="read") == 4
    assert value(samples, "snapctl_request_errors_total", export="db", command="read") == 1
    assert value(samples, "snapctl_request_bytes_total", export="db", command="read") == 1 << 33
    assert value(samples, "snapctl_requests_total", export="db", command="write") == 1
    assert not any(name == "snapctl_requests_total" and ("export", "db@mon") in labels for name, labels in samples)


def test_latencies_are_a_cumulative_histogram_that_ends_with_all_of_them():
    (samples,) = scraped(lambda: status(DB))
    name = "snapctl_request_duration_seconds"
    for command, latencies in (("read", [500, 5_000, 5_000, 2_000_000]), ("write", [3_600 * 10**9])):
        buckets = {
            float(dict(labels)["le"]): count
            for (sample, labels), count in samples.items()
            if sample == f"{name}_bucket" and ("command", command) in labels
        }
        assert len(buckets) > 5
        assert max(buckets) == float("inf")
        assert buckets == {bound: sum(latency / 1e9 < bound for latency in latencies) for bound in buckets}
        labels = {"export": "db", "command": command}
        assert value(samples, f"{name}_count", **labels) == len(latencies)
        assert value(samples, f"{name}_sum", **labels) == sum(latencies) / 1e9


def test_each_scrape_tells_what_is_true_then_and_is_taken_on_the_event_loop():
    told: list[asyncio.AbstractEventLoop] = []

    def tell() -> Status:
        told.append(asyncio.get_running_loop())
        return {**status(), "dirty_bytes": 100 * len(told)}

    samples = scraped(tell, 3)
    assert [value(found, "snapctl_dirty_bytes") for found in samples] == [100, 200, 300]
    assert len(told) == 3  # and none before anybody asked


def test_a_port_in_use_and_a_host_that_is_none_are_errors_of_one_line():
    async def start(host: str, port: int) -> None:
        server = await metrics.start(host, port, status)
        await server.close()

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SnapctlError, match=rf"^cannot serve metrics on 127\.0\.0\.1:{port}: .*in use$"):
            asyncio.run(start("127.0.0.1", port))
    with pytest.raises(SnapctlError, match=r"^cannot serve metrics on 192\.0\.2\.1:0: .*\w$"):
        asyncio.run(start("192.0.2.1", 0))


def test_a_scrape_of_a_server_that_hangs_ends_with_what_can_be_told_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "_ANSWER_SECONDS", 0.1)

    async def run() -> str:
        server = await metrics.start("127.0.0.1", 0, status)
        with ThreadPoolExecutor() as pool:
            text = pool.submit(fetch, server.port).result(20)  # the loop stands still meanwhile
        await server.close()
        return text

    assert not [name for name, _ in samples_of(asyncio.run(run())) if name.startswith("snapctl")]


def test_the_port_is_free_again_once_the_server_is_closed():
    async def run() -> None:
        first = await metrics.start("127.0.0.1", 0, status)
        await first.close()
        second = await metrics.start("127.0.0.1", first.port, status)
        await second.close()

    asyncio.run(run())


def test_without_the_library_one_line_says_how_to_install_it():
    program = "import sys; sys.modules['prometheus_client'] = None; import snapctl.services.metrics"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1] == (
        "snapctl.errors.SnapctlError: metrics need the Python package prometheus_client; "
        "install it with: pip install 'snapctl[metrics]'"
    )
