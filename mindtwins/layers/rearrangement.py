"""Maps with their channels first or last, or with fewer pixels.

These are functions, not layers: the formulation is that of the moment at which a graph is compiled.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import use_kernel
from mindtwins.layers.padding import pad_bottom_right


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    batch, channels, height, width = x.shape
    rows = swap_axes(ops.reshape(x, (batch, channels, height * width)))
    return ops.reshape(rows, (batch, height, width, channels))


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    batch, height, width, channels = x.shape
    rows = swap_axes(ops.reshape(x, (batch, height * width, channels)))
    return ops.reshape(rows, (batch, channels, height, width))


def swap_axes(x: Tensor) -> Tensor:
    """(A, B, C) -> (A, C, B)."""
    if use_kernel(x):
        return kernels.swap_axes(x)
    return ops.transpose(x, (0, 2, 1))


def subsample(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C): every other pixel, the first included."""
    x = pad_bottom_right(x, x.shape[1] % 2, x.shape[2] % 2)
    batch, height, width, channels = x.shape
    # Slices of pairs: a stride, or an index, takes many times as long on the CPU.
    pairs = ops.reshape(x, (batch, height // 2, 2, width // 2, 2 * channels))
    first = ops.slice(pairs, (0, 0, 0, 0, 0), (batch, height // 2, 1, width // 2, channels))
    return ops.reshape(first, (batch, height // 2, width // 2, channels))
