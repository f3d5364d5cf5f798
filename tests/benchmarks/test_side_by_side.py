"""Taking turns, and the slope that says how cost grows."""

import numpy as np
import pytest

from benchmarks.side_by_side import Cost, take_turns
from benchmarks.speed import exponent


def test_contestants_take_turns_after_a_warm_up():
    calls = []
    costs = take_turns({name: lambda name=name: calls.append(name) for name in "AB"}, rounds=3)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    assert set(costs) == {"A", "B"}
    assert all(isinstance(cost, Cost) and cost.wall > 0 for cost in costs.values())


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_exponent(slope):
    amounts = [1, 2, 4, 8]
    assert exponent(amounts, [0.1 * a**slope for a in amounts]) == pytest.approx(slope)
    assert np.isclose(exponent([10, 100], [3.0, 3.0]), 0)
