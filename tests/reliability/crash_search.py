"""Search what crashes may leave: `python -m tests.reliability.crash_search N [--live|--log] [--seed S] [--jobs J]`.

History after history (`tests.support.histories`; with --live, `tests.support.live_histories`), each drawn from a seed
of its own, from S on, until N states have been judged. The last line has the figures, and S; with the same S and N they
are the same again, but for the time. A finding ends the search with exit code 1; it names its seed, and the command
that brings it about again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.support.histories import Finding, History, LogHistory
from tests.support.live_histories import LiveHistory

_PROGRESS_SECONDS = 10


def live(kind: type[History], seed: int) -> Counter[str]:
    """Live through the history of one seed; raises Finding."""
    return kind(seed).run()


def lives(kind: type[History], seeds: Iterable[int], jobs: int) -> Generator[Counter[str], None, None]:
    """The figures of one history after the other, in the order of the seeds."""
    if jobs == 1:
        yield from (live(kind, seed) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            ahead = iter(seeds)
            waiting = deque(pool.submit(live, kind, seed) for seed in itertools.islice(ahead, jobs + 1))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(live, kind, seed) for seed in itertools.islice(ahead, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def search(
    states: int,
    seed: int,
    jobs: int = 1,
    progress_seconds: float | None = None,
    kind: type[History] = History,
) -> Counter[str]:
    """Judge at least so many states.

    Args:
        states: how many.
        seed: of the first history.
        jobs: processes.
        progress_seconds: print how far it is each time so many have passed; None for never.
        kind: of the histories.

    Returns:
        The figures of all histories together.

    Raises:
        Finding: something was lost.
    """
    total: Counter[str] = Counter()
    printed = time.monotonic()
    found = lives(kind, itertools.count(seed), jobs)
    try:
        while total["states"] < states:
            total.update(next(found))
            if progress_seconds is not None and time.monotonic() - printed >= progress_seconds:
                printed = time.monotonic()
                print(f"{total['states']:,} states, {total['histories']:,} histories: nothing lost", flush=True)
    finally:
        found.close()
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability.crash_search", description=__doc__.split("\n")[0]
    )
    parser.add_argument("states", metavar="N", type=int, help="judge at least so many states")
    parser.add_argument("--live", action="store_true", help="of containers that many clients use at once")
    parser.add_argument("--log", action="store_true", help="mostly of what is flushed to logs")
    parser.add_argument("--seed", type=int, help="of the first history; drawn if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a processor)")
    options = parser.parse_args()
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    kind = LiveHistory if options.live else LogHistory if options.log else History
    try:
        figures = search(options.states, seed, options.jobs, _PROGRESS_SECONDS, kind)
    except Finding as finding:
        print(f"FOUND {finding}", file=sys.stderr)
        return 1
    states = figures.pop("states")
    told = ", ".join(f"{name} {count:,}" for name, count in sorted(figures.items()))
    print(f"{states:,} states, nothing lost ({told}), {time.monotonic() - begun:.0f} s, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
