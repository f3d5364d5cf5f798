"""Scaled dot-product attention, and the transposes that bring tokens into and out of it.

Heads vary slower than the channels of a head, as in torch: channel = head * head_dim + index.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation, use_kernel


class WindowAttention(nn.Cell):
    """Multi-head attention of tokens to those of their own window.

    (B, H, W, 3 C) -> (B, H, W, C), where the channels are queries, keys and values one after the
    other, and H and W are multiples of the window size. `mask`, if any, is added to the scores:
    (1, windows, 1, window_size**2, window_size**2), windows row by row.
    """

    def __init__(self, heads: int, window_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.formulation = formulation()
        self.sizes = Tensor([heads, window_size], ms.int32)
        self.no_mask = Tensor([0], ms.float32)
        self.window = Tensor(np.zeros((window_size, window_size), np.float32))  # for its shape

    def extend_repr(self) -> str:
        return f"heads={self.heads}, window_size={self.window_size}, {self.formulation}"

    def construct(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        if use_kernel(qkv, self.formulation):
            return kernels.window_attention(qkv, self.no_mask if mask is None else mask, self.sizes)
        _, height, width, channels = qkv.shape
        query, key, value = ops.split(qkv, channels // 3, -1)
        out = attend(
            partition_windows(query, self.heads, self.window_size),
            partition_windows(key, self.heads, self.window_size),
            partition_windows(value, self.heads, self.window_size),
            mask,
        )
        return merge_windows(out, height, width, self.window_size)


class CrossAttention(nn.Cell):
    """Multi-head attention of all tokens of one map to all tokens of another.

    Queries (B, H, W, C), keys and values one after the other (B, h, w, 2 C) -> (B, H, W, C).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.formulation = formulation()
        self.sizes = Tensor([heads], ms.int32)

    def extend_repr(self) -> str:
        return f"heads={self.heads}, {self.formulation}"

    def construct(self, query: Tensor, key_value: Tensor) -> Tensor:
        if use_kernel(query, self.formulation):
            return kernels.global_attention(query, key_value, self.sizes)
        _, height, width, channels = query.shape
        key, value = ops.split(key_value, channels, -1)
        out = attend(
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
        )
        return merge_heads(out, height, width)


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


def partition_windows(x: Tensor, heads: int, window_size: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, heads, window_size**2, C / heads), windows row by row."""
    _, height, width, channels = x.shape
    rows, columns = height // window_size, width // window_size
    x = ops.reshape(x, (-1, rows, window_size, columns, window_size, heads, channels // heads))
    x = ops.transpose(x, (0, 1, 3, 5, 2, 4, 6))
    return ops.reshape(x, (-1, rows * columns, heads, window_size**2, channels // heads))


def merge_windows(x: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """(B, windows, heads, window_size**2, d) -> (B, H, W, heads * d)."""
    _, _, heads, _, head_dim = x.shape
    rows, columns = height // window_size, width // window_size
    x = ops.reshape(x, (-1, rows, columns, heads, window_size, window_size, head_dim))
    x = ops.transpose(x, (0, 1, 4, 2, 5, 3, 6))
    return ops.reshape(x, (-1, height, width, heads * head_dim))
