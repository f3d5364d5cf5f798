"""Weights of linear interpolation."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from mindtwins.layers.interpolation import interpolation_matrix, neighbors


@pytest.mark.parametrize(
    ("source", "target"), [(1, 5), (5, 1), (128, 512), (171, 683), (683, 640), (10, 10), (50, 7)]
)
def test_matrix_is_torchs_interpolation(source, target):
    unit = torch.eye(source, dtype=torch.float64)[None]
    expected = functional.interpolate(unit, size=target, mode="linear", align_corners=False)
    ours = interpolation_matrix(source, target)
    np.testing.assert_allclose(ours, expected[0].numpy().T, rtol=0, atol=1e-12)


def test_neighbors_lie_before_and_after():
    before, fraction = neighbors(4, 8)
    np.testing.assert_array_equal(before, [0, 0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(fraction, [0, 0.25, 0.75, 0.25, 0.75, 0.25, 0.75, 0.25])
