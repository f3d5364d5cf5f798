"""Convolutions over all channels, as dense prediction heads have them, on channels-last maps.

Weights keep torch's names and shapes, (out, in, kh, kw), in every formulation.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, initializer

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation, use_kernel


class _DenseConv(nn.Cell):
    """Weight and, if wanted, bias; without a `weight_init` He's normal of mode "fan out".

    Its std is sqrt(2 / (kernel * kernel * out)), as MMSegmentation initializes its ConvModule.
    The bias starts as `bias_init`, everywhere the same number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        has_bias: bool,
        weight_init: Initializer | None,
        bias_init: float,
    ) -> None:
        super().__init__()
        if weight_init is None:
            weight_init = Normal(math.sqrt(2 / (kernel * kernel * out_channels)))
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = Parameter(initializer(weight_init, shape, ms.float32))
        self.bias = None
        if has_bias:
            self.bias = Parameter(initializer(bias_init, (out_channels,), ms.float32))
        self.formulation = formulation()

    def extend_repr(self) -> str:
        return f"{self.weight.shape}, bias={self.bias is not None}, {self.formulation}"

    def add_bias(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x
        if use_kernel(x, self.formulation):
            return kernels.add_bias(x, self.bias)
        return x + ops.cast(self.bias, x.dtype)


class Conv1x1(_DenseConv):
    """A linear map of each pixel's channels: (B, H, W, C) -> (B, H, W, out_channels)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        has_bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, has_bias, weight_init, bias_init)

    def construct(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        matrix = ops.reshape(ops.cast(self.weight, x.dtype), (-1, channels))
        rows = ops.reshape(x, (-1, channels))
        out = ops.MatMul(transpose_b=True)(rows, matrix)
        return ops.reshape(self.add_bias(out), (batch, height, width, -1))


class Conv3x3(_DenseConv):
    """3x3 convolution, stride 1, zero padding 1: (B, H, W, C) -> (B, H, W, out_channels)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        has_bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, 3, has_bias, weight_init, bias_init)
        self.convolve = _CONV_3X3[self.formulation]

    def construct(self, x: Tensor) -> Tensor:
        weight = ops.cast(self.weight, x.dtype)
        if use_kernel(x, self.formulation):
            return self.add_bias(kernels.conv3x3(x, weight))
        return self.add_bias(self.convolve(x, weight))


def _conv_3x3_native(x: Tensor, weight: Tensor) -> Tensor:
    x = ops.conv2d(ops.transpose(x, (0, 3, 1, 2)), weight, pad_mode="pad", padding=1)
    return ops.transpose(x, (0, 2, 3, 1))


def _conv_3x3_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Each pixel's neighborhood as one row, times the weight as a matrix."""
    batch, height, width, channels = x.shape
    row = ops.zeros((batch, 1, width, channels), x.dtype)
    x = ops.concat((row, x, row), 1)
    column = ops.zeros((batch, height + 2, 1, channels), x.dtype)
    x = ops.concat((column, x, column), 2)
    shifted: tuple[Tensor, ...] = ()
    for tap in range(9):
        begin = (0, tap // 3, tap % 3, 0)
        shifted = (*shifted, ops.slice(x, begin, (batch, height, width, channels)))
    rows = ops.reshape(ops.concat(shifted, -1), (-1, 9 * channels))
    # (out, in, kh, kw) -> (kh, kw, in, out): the order of the neighborhoods.
    matrix = ops.reshape(ops.transpose(weight, (2, 3, 1, 0)), (9 * channels, -1))
    return ops.reshape(ops.matmul(rows, matrix), (batch, height, width, -1))


# What computes where no kernel does; with the kernels that is other types than theirs.
_CONV_3X3 = {
    "native": _conv_3x3_native,
    "matmul": _conv_3x3_matmul,
    "kernel": _conv_3x3_matmul,
}


class TransposedConv2x2(nn.Cell):
    """Transposed convolution of kernel and stride 2: (B, H, W, C) -> (B, 2 H, 2 W, out_channels).

    The weight is (in, out, 2, 2), as torch.nn.ConvTranspose2d has it, and starts as He's normal of
    mode "fan out" as torch counts it, which for this weight is by the incoming channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        shape = (in_channels, out_channels, 2, 2)
        weight_init = Normal(math.sqrt(2 / (4 * in_channels)))
        self.weight = Parameter(initializer(weight_init, shape, ms.float32))
        self.bias = Parameter(initializer("zeros", (out_channels,), ms.float32))

    def construct(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        pixels = ops.reshape(x, (-1, channels))
        # (in, out, kh, kw) -> (kh, in, kw * out): an upper and a lower line of each line.
        matrices = ops.transpose(ops.cast(self.weight, x.dtype), (2, 0, 3, 1))
        lines: tuple[Tensor, ...] = ()
        for matrix in ops.split(matrices, 1, 0):
            product = ops.matmul(pixels, ops.reshape(matrix, (channels, -1)))
            lines = (*lines, ops.reshape(product, (batch * height, 1, -1)))
        out = ops.reshape(ops.concat(lines, 1), (batch, 2 * height, 2 * width, -1))
        if use_kernel(out):
            return kernels.add_bias(out, self.bias)
        return out + ops.cast(self.bias, x.dtype)


# By the side of their kernel.
CONVOLUTIONS = {1: Conv1x1, 3: Conv3x3}
