"""Every formulation of an operation gives torch's numbers and gradients."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from mindtwins import layers

FORMULATIONS = ("native", "matmul")


class WeightedSum(nn.Cell):
    def __init__(self, layer, weights):
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.weights = Tensor(weights)

    def construct(self, x):
        return (self.layer(x) * self.weights).sum()


def check(layer: nn.Cell, reference: torch.nn.Module, x: np.ndarray, channels_first: bool) -> None:
    """Values and gradients (input and parameters) against torch in float64."""
    source = torch.from_numpy(x).double().requires_grad_()
    reference = reference.double()
    expected = reference(source.permute(0, 3, 1, 2) if channels_first else source)
    expected = expected.permute(0, 2, 3, 1) if channels_first else expected
    weights = np.random.default_rng(2).standard_normal(expected.shape).astype(np.float32)
    (expected * torch.from_numpy(weights)).sum().backward()

    actual = layer(Tensor(x)).asnumpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=3e-6)
    parameters = layer.trainable_params()
    gradients = ms.grad(WeightedSum(layer, weights), 0, parameters or None)(Tensor(x))
    by_input, by_parameter = gradients if parameters else (gradients, ())
    np.testing.assert_allclose(by_input.asnumpy(), source.grad.numpy(), atol=1e-5)
    for parameter, gradient in zip(parameters, by_parameter, strict=True):
        name = parameter.name.replace("gamma", "weight").replace("beta", "bias")
        theirs = reference.get_parameter(name).grad.numpy()
        error = np.linalg.norm(gradient.asnumpy() - theirs) / np.linalg.norm(theirs)
        assert error < 2e-6, f"{parameter.name}: {error:.1e}"


def copy(reference: torch.nn.Module, layer: nn.Cell) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.trainable_params():
        name = parameter.name.replace("gamma", "weight").replace("beta", "bias")
        theirs = reference.get_parameter(name)
        theirs.data = torch.randn(theirs.shape, generator=generator)
        parameter.set_data(Tensor(theirs.detach().numpy()))


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [(8, 8), (11, 6), (9, 13)])
@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_patch_conv(formulation, kernel, size):
    with layers.use_formulation(formulation):
        layer = layers.PatchConv(3, 5, kernel)
    reference = torch.nn.Conv2d(3, 5, kernel, stride=kernel)
    copy(reference, layer)
    check(layer, reference, tokens(2, *size, 3), channels_first=True)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_depthwise_conv(formulation, size):
    with layers.use_formulation(formulation):
        layer = layers.DepthwiseConv3x3(6)
    reference = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    copy(reference, layer)
    check(layer, reference, tokens(2, *size, 6), channels_first=True)


def test_dense():
    layer, reference = layers.Dense(6, 4), torch.nn.Linear(6, 4)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 5, 6), channels_first=False)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_layer_norm(epsilon):
    layer, reference = layers.LayerNorm(6, epsilon), torch.nn.LayerNorm(6, eps=epsilon)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 5, 6), channels_first=False)


def test_gelu_is_the_exact_one():
    check(layers.GELU(), torch.nn.GELU(), 3 * tokens(2, 30, 5, 6), channels_first=False)


def test_formulation_follows_the_device_unless_named():
    assert layers.formulation() == "matmul"  # on CPU
    with layers.use_formulation("native"):
        assert layers.formulation() == "native"
    assert layers.formulation() == "matmul"
    with (
        pytest.raises(ValueError, match="unknown formulation 'fast'"),
        layers.use_formulation("fast"),
    ):
        pass
