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


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Medians over `rounds` calls of each contestant, in the order A B, B A, A B, ...

    Each is called once before, to build and warm up.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()
    for turn in range(rounds):
        for name in contestants if turn % 2 == 0 else reversed(contestants):
            costs[name].append(cost_of(contestants[name]))
    return {
        name: Cost(*(statistics.median(values) for values in zip(*measured, strict=True)))
        for name, measured in costs.items()
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
