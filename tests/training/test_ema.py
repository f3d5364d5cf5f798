"""The moving average of the weights."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindtwins.training.ema import MovingAverage


class _AddOne(nn.Cell):
    """Stands for a training step: a graph that changes the weight in place."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self):
        return ops.assign_add(self.model.weight, ops.ones_like(self.model.weight))


@pytest.mark.slow
def test_values_and_swap():
    model = nn.Dense(2, 1, has_bias=False)
    model.weight.set_data(Tensor(np.array([[1.0, -3.0]], np.float32)))
    average, step = MovingAverage(model, 0.75), _AddOne(model)
    expected = model.weight.asnumpy().copy()
    assert [p.name for p in average.averages] == ["ema.weight"]
    assert model.weight.name == "weight"
    np.testing.assert_array_equal(average.averages[0].asnumpy(), expected)
    for n in range(4):
        step()
        average()
        weight = np.array([[2.0 + n, -2.0 + n]], np.float32)
        expected = np.float32(0.75) * expected + np.float32(0.25) * weight
        np.testing.assert_allclose(average.averages[0].asnumpy(), expected, rtol=1e-6)
        # The graph goes on with the true weights after each evaluation of the average.
        with average.applied():
            np.testing.assert_allclose(model.weight.asnumpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(model.weight.asnumpy(), weight)
