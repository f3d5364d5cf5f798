"""Timing of contestants that take turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Cost(NamedTuple):
    """What one call takes: seconds on the clock, and seconds of all processor cores together."""

    wall: float
    cpu: float


def cost_of(work: Callable[[], object]) -> Cost:
    """Cost of one call in this process."""
    before, start = _cpu_seconds(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - start, _cpu_seconds() - before)


def take_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 0.5
) -> dict[str, Cost]:
    """Medians over the calls of each contestant, which take turns: A B, B A, A B, ...

    Each is called once before, to build and warm up. In a turn a contestant is called again and
    again for some seconds, at least once. The first of several calls is left out: it shares the
    cores with threads of the other contestant that still wait for work.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()
    for turn in range(rounds):
        for name in contestants if turn % 2 == 0 else reversed(contestants):
            end = time.perf_counter() + seconds
            calls = [cost_of(contestants[name])]
            while time.perf_counter() < end:
                calls.append(cost_of(contestants[name]))
            costs[name] += calls[1:] or calls
    return {
        name: Cost(*(statistics.median(values) for values in zip(*measured, strict=True)))
        for name, measured in costs.items()
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
