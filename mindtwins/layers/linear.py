"""Linear layer."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation


class Dense(nn.Dense):
    """`y = x W^T + b` over the last axis; weight (out, in), bias (out,), as torch.nn.Linear.

    Initialised as the official code does: weight truncated normal of std 0.02, bias 0. Its bounds
    (torch's `trunc_normal_` default) are -2 and 2 absolute, 100 standard deviations away, so a
    plain normal draw is the same distribution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, weight_init=Normal(0.02), bias_init="zeros")
        self.formulation = formulation()

    def construct(self, x: Tensor) -> Tensor:
        if self.formulation != "kernel" or x.dtype != ms.float32:
            return super().construct(x)
        rows = ops.reshape(x, (-1, self.in_channels))
        product = ops.MatMul(transpose_b=True)(rows, self.weight)
        return ops.reshape(kernels.add_bias(product, self.bias), (*x.shape[:-1], self.out_channels))
