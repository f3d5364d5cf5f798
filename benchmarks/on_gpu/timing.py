"""Timing of work that a device does on its own while Python goes on."""

from __future__ import annotations

import fcntl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WARM_UPS = 2
SHORTEST = 0.03  # seconds between two looks at the clock
ROUNDS = 15


@contextmanager
def exclusive(lock: str) -> Iterator[None]:
    """Keep other workers from measuring meanwhile; they may compile. `lock` is a file's path."""
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def median_seconds(
    work: Callable[[], object], synchronize: Callable[[], object], limit: float
) -> float:
    """Seconds per call, the median over rounds of calls that are waited for together.

    Args:
        work: starts the work; it need not wait for its end.
        synchronize: waits until the device is idle.
        limit: seconds after which no further round is started; warming up does not count.
    """
    for _ in range(WARM_UPS):
        work()
    synchronize()
    once = _round(work, synchronize, 1)
    calls = max(1, round(SHORTEST / once))
    rounds: list[float] = []
    started = time.perf_counter()
    while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - started < limit):
        rounds.append(_round(work, synchronize, calls) / calls)
    return statistics.median(rounds)


def _round(work: Callable[[], object], synchronize: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize()
    return time.perf_counter() - start
