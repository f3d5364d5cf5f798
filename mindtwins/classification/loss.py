"""The training loss of classifiers."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops


class SoftTargetCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(target * log_softmax(logits)), in float32.

    Targets (N, classes) are probabilities: labels that are smoothed, mixed, or one-hot (then it is
    the usual cross entropy).
    """

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = ops.log_softmax(ops.cast(logits, ms.float32), -1)
        return -ops.reduce_sum(targets * log_probabilities) / logits.shape[0]
