"""Linear layers."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal

from mindtwins.layers import kernels
from mindtwins.layers.activation import gelu_native, gelu_sigmoid
from mindtwins.layers.device import formulation, use_kernel
from mindtwins.layers.rearrangement import swap_axes

# With so many tokens and fewer channels oneDNN copies the whole weight before it multiplies tokens
# by it, which takes longer than the product; the other way round it does not. Of fewer tokens its
# product is three times as precise as the other way round, which is worth more: the logits' is one.
_FEW_TOKENS, _FEW_CHANNELS = range(16, 98), 1024


class Dense(nn.Dense):
    """`y = x W^T + b` over the last axis; weight (out, in), bias (out,), as torch.nn.Linear.

    Initialized as the official code does: weight truncated normal of std 0.02, bias 0. Its bounds
    (torch's `trunc_normal_` default) are -2 and 2 absolute, 100 standard deviations away, so a
    plain normal draw is the same distribution. `weight_init` is for what starts otherwise.
    """

    def __init__(
        self, in_channels: int, out_channels: int, weight_init: Initializer | None = None
    ) -> None:
        weight_init = Normal(0.02) if weight_init is None else weight_init
        super().__init__(in_channels, out_channels, weight_init=weight_init, bias_init="zeros")
        self.formulation = formulation()

    def construct(self, x: Tensor) -> Tensor:
        if use_kernel(x, self.formulation):
            return kernels.dense(x, self.weight, self.bias)
        return self.arrange(self.bias_add(self.product(x), self.bias), x)

    def product(self, x: Tensor) -> Tensor:
        """(..., in) -> x W^T, (tokens, out)."""
        tokens = ops.reshape(x, (-1, self.in_channels))
        if self.formulation == "matmul" and self.are_few(tokens.shape[0]):
            rows = ops.expand_dims(self.matmul(self.weight, tokens), 0)
            return ops.reshape(swap_axes(rows), (-1, self.out_channels))
        return self.matmul(tokens, self.weight)

    def are_few(self, tokens: int) -> bool:
        """Whether to multiply the other way round; never where their number is yet unknown."""
        if not ops.isconstant(tokens):  # of a graph for any shape, which must not ask for it
            return False
        return tokens in _FEW_TOKENS and self.in_channels < _FEW_CHANNELS

    def arrange(self, out: Tensor, x: Tensor) -> Tensor:
        """(tokens, out) -> (..., out), as the tokens of x are arranged."""
        return ops.reshape(out, (*x.shape[:-1], self.out_channels))


class DenseGELU(Dense):
    """A linear layer and the exact GELU."""

    def construct(self, x: Tensor) -> Tensor:
        if self.formulation == "kernel":
            # In float32: GELU of fp16 in MindSpore's operators takes three times the memory.
            out = super().construct(x)
            return ops.cast(kernels.gelu(ops.cast(out, ms.float32)), out.dtype)
        gelu = gelu_native if self.formulation == "native" else gelu_sigmoid
        return self.arrange(gelu(self.bias_add(self.product(x), self.bias)), x)
