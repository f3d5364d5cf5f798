"""Comparison of a layer with torch's: values, and gradients of input and parameters."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from mindtwins.layers import device, kernels

FORMULATIONS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(
                name == "kernel" and not kernels.available(), reason=kernels.status()
            ),
            # Not what this machine computes with.
            *([pytest.mark.slow] if name != device.formulation() else []),
        ],
    )
    for name in device.FORMULATIONS
]


class Function(nn.Cell):
    """A function of a tensor and constants as a layer."""

    def __init__(self, function, *arguments):
        super().__init__()
        self.function = function
        self.arguments = arguments

    def construct(self, x):
        return self.function(x, *self.arguments)


class WeightedSum(nn.Cell):
    def __init__(self, layer, weights):
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.weights = Tensor(weights)

    def construct(self, x):
        return (self.layer(x) * self.weights).sum()


def check(
    layer: nn.Cell, reference: torch.nn.Module, x: np.ndarray, channels_first: bool = False
) -> None:
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
    grad_input, grad_parameters = gradients if parameters else (gradients, ())
    np.testing.assert_allclose(grad_input.asnumpy(), source.grad.numpy(), atol=1e-5)
    for parameter, gradient in zip(parameters, grad_parameters, strict=True):
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
