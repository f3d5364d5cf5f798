"""The training losses."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindtwins.layers import resize_bilinear

# The label of pixels that count as no class.
IGNORED = 255


class SoftTargetCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(target * log_softmax(logits)), in float32.

    Targets (N, classes) are probabilities: labels that are smoothed, mixed, or one-hot (then it is
    the usual cross entropy).
    """

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = ops.log_softmax(ops.cast(logits, ms.float32), -1)
        return -ops.reduce_sum(targets * log_probabilities) / logits.shape[0]


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
        for logits, weight in zip(outputs, self.weights, strict=True):
            total = total + weight * self.cross_entropy(logits, labels)
        return total

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over all pixels of one output's cross entropy."""
        _, height, width = labels.shape
        logits = ops.transpose(ops.cast(logits, ms.float32), (0, 2, 3, 1))
        logits = resize_bilinear(logits, height, width)
        log_probabilities = ops.reshape(ops.log_softmax(logits, -1), (-1, logits.shape[-1]))
        labels = ops.reshape(labels, (-1, 1))
        counts = ops.cast(labels != IGNORED, ms.float32)
        labels = ops.select(labels != IGNORED, labels, ops.zeros_like(labels))
        of_label = ops.gather_elements(log_probabilities, 1, labels)
        return -ops.reduce_sum(of_label * counts) / labels.shape[0]
