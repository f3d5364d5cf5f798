"""Numbers put in another order, and scaled: the same as torch's, gradients too."""

import numpy as np
import pytest
import torch
from layer_checks import FORMULATIONS, Function, check, tokens
from mindspore import Tensor

from mindtwins import layers

# Fewer numbers than a vector of the processor holds, some more, and more than a thread's share.
SIZES = [(1, 1, 1, 1), (2, 5, 7, 19), (3, 33, 16, 65), (2, 224, 120, 3)]


class TorchFunction(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_channels_first_and_last(formulation, size):
    with layers.use_formulation(formulation):
        check(
            Function(layers.channels_first),
            TorchFunction(lambda x: x.permute(0, 3, 1, 2)),
            tokens(*size),
        )
        check(
            Function(layers.channels_last),
            TorchFunction(lambda x: x.permute(0, 2, 3, 1)),
            tokens(*size),
        )


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_scale_channels(formulation, size):
    factors = np.random.default_rng(3).standard_normal((size[0], size[-1])).astype(np.float32)
    with layers.use_formulation(formulation):
        check(
            Function(layers.scale_channels, Tensor(factors)),
            TorchFunction(lambda x: x * torch.from_numpy(factors)[:, None, None]),
            tokens(*size),
        )


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_branch_counts_for_each_sample_as_much_as_its_factor(formulation):
    x, drop_path_mask = tokens(3, 5, 6, 20), np.array([[2], [0], [0.5]], np.float32)
    with layers.use_formulation(formulation):
        total = Function(layers.add_branch, Tensor(x), Tensor(drop_path_mask))(
            Tensor(3 * x)
        ).asnumpy()
    expected = 3 * x + np.array([2, 0, 0.5])[:, None, None, None] * x
    np.testing.assert_allclose(total, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_patches_of_large_kernels(formulation, channels):
    """A patch's sums run over numbers in the order of the weight."""
    with layers.use_formulation(formulation):
        layer = layers.PatchConv(channels, 4, 8)
    reference = torch.nn.Conv2d(channels, 4, 8, stride=8)
    for parameter, theirs in zip(layer.get_parameters(), reference.parameters(), strict=True):
        parameter.set_data(Tensor(theirs.detach().numpy()))
    check(layer, reference, tokens(2, 19, 32, channels), channels_first=True)
