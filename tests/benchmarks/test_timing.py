"""Taking turns, and what counts of a turn."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks.speed import exponent
from benchmarks.timing import Cost, cost_of, take_turns, turn


def test_contestants_take_turns():
    calls = []

    def contestant(name: str) -> list[Cost]:
        calls.append(name)
        return [Cost(1.0, 1.0), Cost(len(calls), 2.0), Cost(9.0, 9.0)]

    costs = take_turns({name: lambda name=name: contestant(name) for name in "AB"}, rounds=3)
    assert "".join(calls) == "AB" + "BA" + "AB"
    assert costs == {"A": Cost(4.0, 2.0), "B": Cost(3.0, 2.0)}  # medians over all three turns


def test_what_takes_long_has_fewer_rounds():
    calls = []

    def contestant(name: str) -> list[Cost]:
        calls.append(name)
        time.sleep(0.02)
        return [Cost(1.0, 1.0)]

    turns = {name: lambda name=name: contestant(name) for name in "AB"}
    take_turns(turns, rounds=3, limit=0.06)
    assert "".join(calls) == "ABBA"
    calls.clear()
    assert take_turns(turns, rounds=3, limit=0.0)["B"] == Cost(1.0, 1.0)
    assert "".join(calls) == "AB"


def test_first_of_several_calls_in_a_turn_is_left_out():
    """The calls of a turn take 0.09, 0.03, 0.03, ... seconds."""
    calls = iter([0.09] + [0.03] * 20)
    costs = turn(lambda: time.sleep(next(calls)), lambda result: None, seconds=0.12)
    assert all(0.03 <= cost.wall < 0.08 for cost in costs)
    assert len(turn(lambda: time.sleep(0.001), lambda result: None, seconds=0)) == 1


def test_calls_that_only_start_the_work_are_waited_for_together():
    calls: list[str] = []
    cost = cost_of(lambda: calls.append("work"), lambda result: calls.append("wait"), calls=3)
    assert calls == ["work", "work", "work", "wait"]
    assert 0 < cost.wall < 1e-3
    calls.clear()
    turn(lambda: calls.append("work"), lambda result: calls.append("wait"), seconds=0.05)
    assert calls[:2] == ["work", "wait"] and calls.count("work") > 3 * calls.count("wait")


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_exponent(slope):
    amounts = [1, 2, 4, 8]
    assert exponent(amounts, [0.1 * a**slope for a in amounts]) == pytest.approx(slope)
    assert np.isclose(exponent([10, 100], [3.0, 3.0]), 0)
