"""The operations of `mindtwins.layers` in PyTorch: functions of inputs and parameters.

Tokens are channels-last, (N, H, W, C); what works on maps permutes them first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import labels_of

HEADS = 2


def _maps(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 3, 1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


def _window_attention(qkv: Tensor) -> Tensor:
    n, side, _, channels = qkv.shape
    windows, depth = side // 7, channels // (3 * HEADS)
    x = qkv.reshape(n, windows, 7, windows, 7, 3, HEADS, depth).permute(5, 0, 1, 3, 6, 2, 4, 7)
    out = _attend(*x.reshape(3, n, windows**2, HEADS, 49, depth).unbind(0))
    out = out.reshape(n, windows, windows, HEADS, 7, 7, depth).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(n, side, side, HEADS * depth)


def _cross_attention(tokens: Tensor, pair: Tensor) -> Tensor:
    n, depth = len(tokens), tokens.shape[-1] // HEADS
    query = tokens.reshape(n, -1, HEADS, depth).transpose(1, 2)
    pair = pair.reshape(n, -1, 2, HEADS, depth).permute(2, 0, 3, 1, 4)
    return _attend(query, *pair.unbind(0)).transpose(1, 2).reshape(tokens.shape)


def _cross_entropy(logits: Tensor) -> Tensor:
    size = 4 * logits.shape[1]
    labels = torch.from_numpy(labels_of(len(logits), size)).long()
    resized = F.interpolate(_maps(logits), (size, size), mode="bilinear")
    return F.cross_entropy(resized, labels, reduction="sum")


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "patches": lambda x, w, b: F.conv2d(_maps(x), w, b, stride=w.shape[-1]),
    "depthwise 3x3": lambda x, w, b: F.conv2d(_maps(x), w, b, padding=1, groups=len(w)),
    "LayerNorm": lambda x, g, b: F.layer_norm(x, g.shape, g, b, 1e-6),
    "Dense": F.linear,
    "Dense and GELU": lambda x, w, b: F.gelu(F.linear(x, w, b)),
    "window attention": _window_attention,
    "cross attention": _cross_attention,
    "3x3 convolution": lambda x, w: F.conv2d(_maps(x), w, padding=1),
    "batch norm": lambda x, g, b: F.batch_norm(_maps(x), None, None, g, b, training=True),
    "bilinear": lambda x: F.interpolate(_maps(x), scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(_maps(x), scale_factor=2, mode="nearest"),
    "pool": lambda x: F.adaptive_avg_pool2d(_maps(x), 6),
    "cross entropy": _cross_entropy,
}
