"""Scaled dot-product attention, and the transposes that bring tokens into and out of it.

Heads vary slower than the channels of a head, as in torch: channel = head * head_dim + index.
"""

from __future__ import annotations

from mindspore import Tensor, ops


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v  (Vaswani et al. 2017, equation 1).

    Args:
        query: (..., heads, N, d).
        key: (..., heads, M, d).
        value: (..., heads, M, d).
        mask: added to the scores, broadcastable to (..., heads, N, M).

    Returns:
        (..., heads, N, d).
    """
    scale = query.shape[-1] ** -0.5
    scores = ops.BatchMatMul(transpose_b=True)(query * scale, key)
    if mask is not None:
        scores = scores + mask
    return ops.BatchMatMul()(ops.softmax(scores, -1), value)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, H, W, C) -> (B, heads, H * W, C / heads)."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height * width, heads, channels // heads))
    return ops.transpose(x, (0, 2, 1, 3))


def merge_heads(x: Tensor, height: int, width: int) -> Tensor:
    """(B, heads, H * W, d) -> (B, H, W, heads * d): the way back from `split_heads`."""
    _, heads, _, head_dim = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, height, width, heads * head_dim))


def partition_windows(x: Tensor, heads: int, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, heads, window * window, C / heads), windows row by row."""
    _, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = ops.reshape(x, (-1, rows, window, columns, window, heads, channels // heads))
    x = ops.transpose(x, (0, 1, 3, 5, 2, 4, 6))
    return ops.reshape(x, (-1, rows * columns, heads, window * window, channels // heads))


def merge_windows(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """(B, windows, heads, window * window, d) -> (B, H, W, heads * d)."""
    _, _, heads, _, head_dim = x.shape
    rows, columns = height // window, width // window
    x = ops.reshape(x, (-1, rows, columns, heads, window, window, head_dim))
    x = ops.transpose(x, (0, 1, 4, 2, 5, 3, 6))
    return ops.reshape(x, (-1, height, width, heads * head_dim))
