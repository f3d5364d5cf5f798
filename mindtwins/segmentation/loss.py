"""The training loss of segmentors."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindtwins.layers import channels_last, resized_cross_entropy
from mindtwins.segmentation.dataset import IGNORED


class PixelCrossEntropy(nn.Cell):
    """Cross entropy per pixel at the size of the labels, in float32.

    As MMSegmentation does, logits are resized bilinearly to the labels' size, and the sum is
    divided by the number of all pixels, ignored ones (label 255) included.

    Args:
        weights: one for each of the model's outputs: of the head, of the auxiliary head.
    """

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.weights = weights

    def construct(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Logits (N, classes, h, w) and labels int32 (N, H, W) -> scalar."""
        total = 0.0
        for index, weight in enumerate(self.weights):  # graph mode knows no strict zip
            total = total + weight * self.cross_entropy(outputs[index], labels)
        return total

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over all pixels of one output's cross entropy."""
        logits = channels_last(ops.cast(logits, ms.float32))
        counted = ops.select(labels != IGNORED, labels, -ops.ones_like(labels))
        return resized_cross_entropy(logits, counted) / labels.size
