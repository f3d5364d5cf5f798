"""Timing of contestants that take turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SHORTEST = 0.03  # seconds between two looks at the clock


class Cost(NamedTuple):
    """What one call takes: seconds on the clock, and seconds of all processor cores together."""

    wall: float
    cpu: float


def processor_seconds() -> float:
    """Processor time of this process and its finished children so far."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cost_of(
    call: Callable[[], object],
    wait: Callable[[object], object] = lambda result: None,
    calls: int = 1,
) -> Cost:
    """Cost of a call in this process, the mean of several that are waited for together."""
    before, start = processor_seconds(), time.perf_counter()
    for _ in range(calls):
        result = call()
    wait(result)
    wall = time.perf_counter() - start
    return Cost(wall / calls, (processor_seconds() - before) / calls)


def turn(
    call: Callable[[], object], wait: Callable[[object], object], seconds: float
) -> list[Cost]:
    """Costs of calls again and again for some seconds, at least one.

    The first of several is left out: it shares the cores with threads of another contestant that
    still wait for work. Short ones are waited for together.

    Args:
        call: starts the work; it need not wait for its end.
        wait: is given what the call returned, and waits until that is there.
        seconds: after which no further call is started.
    """
    end = time.perf_counter() + seconds
    first = cost_of(call, wait)
    calls = max(1, round(SHORTEST / first.wall))
    costs = []
    while time.perf_counter() < end:
        costs.append(cost_of(call, wait, calls))
    return costs or [first]


def take_turns(
    contestants: Mapping[str, Callable[[], Iterable[Cost]]], rounds: int, limit: float = math.inf
) -> dict[str, Cost]:
    """Medians over the calls of each contestant, which take turns: A B, B A, A B, ...

    Args:
        contestants: by name, what measures one of them.
        rounds: of turns.
        limit: seconds after which no other round begins.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    names, end = list(contestants), time.perf_counter() + limit
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            costs[name] += contestants[name]()
        if time.perf_counter() > end:
            break
    return {
        name: Cost(*(statistics.median(values) for values in zip(*measured, strict=True)))
        for name, measured in costs.items()
    }


class Timed:
    """The work that a worker is measured doing, and the memory that this takes on the host."""

    def start(
        self, make: Callable[[], Callable[[], object]], wait: Callable[[object], object]
    ) -> Cost:
        """Build the work and do it once; what the first call takes."""
        self._call: Callable[[], object] = int
        gc.collect()
        self._before = _resident()
        self._call, self._wait = make(), wait
        return cost_of(self._call, wait)

    def turn(self, seconds: float) -> dict[str, list[Cost]]:
        """See `turn`."""
        return {"costs": turn(self._call, self._wait, seconds)}

    def peak(self) -> int:
        """The most bytes this process ever had, beyond those before the work was built."""
        # getrusage would count its parent's too.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 - self._before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
