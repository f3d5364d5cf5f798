"""Sums over all elements."""

import numpy as np
import pytest
from layer_checks import FORMULATIONS
from mindspore import Tensor, nn

from mindtwins import layers


class SumOfSquares(nn.Cell):
    def construct(self, *tensors):
        return layers.sum_of_squares(tensors)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_sum_of_squares(formulation):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=shape).astype(np.float32) for shape in ((1000, 1001), (3, 7), (), (5,))
    ]
    with layers.use_formulation(formulation):
        total = SumOfSquares()(*(Tensor(array) for array in arrays))
    assert total.shape == ()
    exact = sum((array.astype(np.float64) ** 2).sum() for array in arrays)
    assert total.asnumpy() == pytest.approx(exact, rel=2e-7)
