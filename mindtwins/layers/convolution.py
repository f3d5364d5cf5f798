"""The two convolutions of Twins, on channels-last tokens.

Weights keep torch's names and shapes, (out, in / groups, kh, kw), in every formulation.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation, use_kernel
from mindtwins.layers.padding import crop_top_left


class _Conv(nn.Cell):
    """Weight and bias of a convolution, initialized as the official code does.

    Normal of std sqrt(2 / fan_out) with fan_out = kh * kw * out / groups; bias 0.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.out_channels = out_channels
        fan_out = kernel * kernel * out_channels // groups
        shape = (out_channels, in_channels // groups, kernel, kernel)
        self.weight = Parameter(initializer(Normal(math.sqrt(2 / fan_out)), shape, ms.float32))
        self.bias = Parameter(initializer("zeros", (out_channels,), ms.float32))
        self.formulation = formulation()

    def extend_repr(self) -> str:
        return f"{self.weight.shape}, {self.formulation}"


class PatchConv(_Conv):
    """Convolution whose stride equals its kernel: one product per patch, no overlap.

    (B, H, W, C) -> (B, H // kernel, W // kernel, out_channels); rows and columns that fill no
    whole patch are dropped, as torch.nn.Conv2d without padding does.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, groups=1)
        self.convolve = _PATCH_CONV[self.formulation]
        self.patch = Tensor(np.zeros((kernel, kernel), np.float32))

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = ops.cast(self.weight, x.dtype), ops.cast(self.bias, x.dtype)
        if use_kernel(x, self.formulation):
            patches = kernels.gather_patches(_whole_patches(x, self.patch), self.patch)
            return kernels.dense(patches, weight, bias)
        return self.convolve(x, weight, bias, self.patch)


# `patch` is a matrix of zeros whose shape is the patch's.


def _patch_conv_native(x: Tensor, weight: Tensor, bias: Tensor, patch: Tensor) -> Tensor:
    x = ops.transpose(x, (0, 3, 1, 2))
    x = ops.conv2d(x, weight, stride=patch.shape, pad_mode="valid")
    return ops.transpose(x, (0, 2, 3, 1)) + bias


def _patch_conv_matmul(x: Tensor, weight: Tensor, bias: Tensor, patch: Tensor) -> Tensor:
    return _multiply(_gather(_whole_patches(x, patch), patch), weight) + bias


def _whole_patches(x: Tensor, patch: Tensor) -> Tensor:
    """Without the rows and columns that fill no whole patch."""
    side = patch.shape[0]
    return crop_top_left(x, x.shape[1] // side * side, x.shape[2] // side * side)


def _gather(x: Tensor, patch: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H / side, W / side, C * side * side).

    A patch's numbers in the order (in, kh, kw), as the weight has them: transposing the weight
    instead would cost as much as all patches of a small batch.
    """
    _, height, width, channels = x.shape
    side = patch.shape[0]
    rows, columns = height // side, width // side
    x = ops.reshape(x, (-1, rows, side, columns, side, channels))
    x = ops.transpose(x, (0, 1, 3, 5, 2, 4))
    return ops.reshape(x, (-1, rows, columns, channels * side * side))


def _multiply(patches: Tensor, weight: Tensor) -> Tensor:
    """Patches (B, h, w, C * kh * kw) and weight (out, C, kh, kw) -> (B, h, w, out)."""
    _, rows, columns, size = patches.shape
    matrix = ops.reshape(weight, (weight.shape[0], size))
    product = ops.MatMul(transpose_b=True)(ops.reshape(patches, (-1, size)), matrix)
    return ops.reshape(product, (-1, rows, columns, weight.shape[0]))


class DepthwiseConv3x3(_Conv):
    """Depthwise 3x3 convolution, stride 1, zero padding 1: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel=3, groups=channels)
        self.convolve = _DEPTHWISE_3X3[self.formulation]

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = ops.cast(self.weight, x.dtype), ops.cast(self.bias, x.dtype)
        return self.convolve(x, weight, bias)


def _depthwise_3x3_shifts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum over the nine taps of the shifted map times that tap's weight per channel."""
    batch, height, width, channels = x.shape
    row = ops.zeros((batch, 1, width, channels), x.dtype)
    x = ops.concat((row, x, row), 1)
    column = ops.zeros((batch, height + 2, 1, channels), x.dtype)
    x = ops.concat((column, x, column), 2)
    taps = ops.split(ops.transpose(ops.reshape(weight, (channels, 9)), (1, 0)), 1, 0)
    total = ops.slice(x, (0, 0, 0, 0), (batch, height, width, channels)) * taps[0]
    for tap in range(1, 9):
        shifted = ops.slice(x, (0, tap // 3, tap % 3, 0), (batch, height, width, channels))
        total = total + shifted * taps[tap]
    return total + bias


def _depthwise_3x3_native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = ops.transpose(x, (0, 3, 1, 2))
    x = ops.conv2d(x, weight, pad_mode="pad", padding=1, groups=weight.shape[0])
    return ops.transpose(x, (0, 2, 3, 1)) + bias


def _depthwise_3x3_kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """By the kernel, in float32: shifts of fp16 would take 300 times the memory."""
    weight, bias = ops.cast(weight, ms.float32), ops.cast(bias, ms.float32)
    return ops.cast(kernels.depthwise(ops.cast(x, ms.float32), weight, bias), x.dtype)


_PATCH_CONV = {
    "native": _patch_conv_native,
    "matmul": _patch_conv_matmul,
    "kernel": _patch_conv_matmul,
}
_DEPTHWISE_3X3 = {
    "native": _depthwise_3x3_native,
    "matmul": _depthwise_3x3_shifts,
    "kernel": _depthwise_3x3_kernel,
}
