"""Taking turns, and the slope that says how cost grows."""

import time

import numpy as np
import pytest

from benchmarks.side_by_side import Cost, take_turns
from benchmarks.speed import exponent


def test_contestants_take_turns_after_a_warm_up():
    calls = []
    work = {name: lambda name=name: calls.append(name) for name in "AB"}
    costs = take_turns(work, rounds=3, seconds=0)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    assert set(costs) == {"A", "B"}
    assert all(isinstance(cost, Cost) and cost.wall > 0 for cost in costs.values())


def test_first_of_several_calls_in_a_turn_is_left_out():
    """The calls of a turn take 0.09, 0.03, 0.03, ... seconds."""
    calls = iter([0.0, 0.09] + [0.03] * 20)
    cost = take_turns({"A": lambda: time.sleep(next(calls))}, rounds=1, seconds=0.12)["A"]
    assert 0.03 <= cost.wall < 0.06


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_exponent(slope):
    amounts = [1, 2, 4, 8]
    assert exponent(amounts, [0.1 * a**slope for a in amounts]) == pytest.approx(slope)
    assert np.isclose(exponent([10, 100], [3.0, 3.0]), 0)
