"""Maps with their channels first or last.

These are functions, not layers: the formulation is that of the moment at which a graph is compiled.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import use_kernel


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
