"""The loss against torch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from mindtwins.segmentation.dataset import IGNORED
from mindtwins.segmentation.loss import PixelCrossEntropy


def test_pixel_cross_entropy_and_its_gradient():
    """Logits of two heads and sizes, resized; ignored pixels count in the divisor."""
    rng = np.random.default_rng(1)
    shapes, weights = [(2, 5, 8, 6), (2, 5, 3, 2)], (1.0, 0.4)
    logits = [(3 * rng.normal(size=shape)).astype(np.float32) for shape in shapes]
    labels = rng.integers(0, 5, (2, 29, 23)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    theirs = [torch.from_numpy(array).double().requires_grad_() for array in logits]
    expected = 0
    for output, weight in zip(theirs, weights, strict=True):
        resized = torch.nn.functional.interpolate(
            output, size=labels.shape[1:], mode="bilinear", align_corners=False
        )
        total = torch.nn.functional.cross_entropy(
            resized, torch.from_numpy(labels).long(), ignore_index=IGNORED, reduction="sum"
        )
        expected = expected + weight * total / labels.size
    expected.backward()

    ms.set_context(mode=ms.GRAPH_MODE)
    cell = PixelCrossEntropy(weights)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return cell((first, second), Tensor(labels))

    value, gradients = ms.value_and_grad(loss, (0, 1))(*map(Tensor, logits))
    assert float(value.asnumpy()) == pytest.approx(expected.item(), rel=1e-6)
    for found, reference in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found.asnumpy(), reference.grad.numpy(), rtol=1e-4, atol=1e-8)
