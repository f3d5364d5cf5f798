"""ReLU as torch has it, in each formulation."""

import numpy as np
import pytest
import torch
from layer_checks import FORMULATIONS, Function
from mindspore import Tensor

from mindtwins import layers

SPECIAL = np.array([np.nan, np.inf, -1.5, -0.0, 0.0, 2.0, *range(-9, 9)], np.float32)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_nan_stays(formulation):
    """MindSpore's own operator makes 0 of it on a CPU, which hides what is broken."""
    if formulation == "native":
        pytest.skip("that is MindSpore's own operator, for devices whose ReLU was not seen")
    expected = torch.relu(torch.from_numpy(SPECIAL)).numpy()
    finite = np.isfinite(SPECIAL)
    with layers.use_formulation(formulation):
        found = Function(layers.relu)(Tensor(SPECIAL)).asnumpy()
        half = Function(layers.relu)(Tensor(SPECIAL.astype(np.float16))).asnumpy()
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert np.isnan(found[0]) and not np.isfinite(found[1])
    assert np.isnan(half[0]) and half.dtype == np.float16
