"""The dynamic loss scale that keeps fp16 gradients from vanishing."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class LossScale(nn.Cell):
    """Halved when a gradient overflows, doubled after `window` good steps in a row.

    Its state is in parameters named `loss_scale.*`. With `dynamic` off the scale stays 1.
    """

    def __init__(self, initial: float, window: int, dynamic: bool) -> None:
        super().__init__()
        self.window = window
        self.dynamic = dynamic
        self.scale = Parameter(Tensor(initial if dynamic else 1.0, ms.float32), "loss_scale.scale")
        self.good_steps = Parameter(Tensor(0, ms.int32), "loss_scale.good_steps")

    def construct(self, finite: Tensor) -> None:
        """Take note of a step whose gradients were finite or not (a scalar bool)."""
        if self.dynamic:
            good_steps = ops.cast(finite, ms.int32) * (self.good_steps + 1)
            grows = good_steps >= self.window
            factor = ops.select(grows, Tensor(2.0, ms.float32), Tensor(1.0, ms.float32))
            factor = ops.select(finite, factor, Tensor(0.5, ms.float32))
            ops.assign(self.scale, self.scale * factor)
            ops.assign(self.good_steps, good_steps * (1 - ops.cast(grows, ms.int32)))
