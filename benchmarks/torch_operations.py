"""The operations of `mindtwins.layers` in PyTorch: functions of inputs and parameters.

Tokens are channels-last, (N, H, W, C); what works on maps permutes them first. RoIAlign and
suppression are torchvision's where it loads, see `benchmarks.torch_detection`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import OVERLAP, boxes_of, labels_of, normal
from benchmarks.timing import Timed
from benchmarks.torch_detection import operators
from benchmarks.workers import serve

HEADS = 2
timed = Timed()


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


def _mlp(x: Tensor, g: Tensor, b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(F.layer_norm(x, g.shape, g, b, 1e-6), w1, b1))
    return x + F.linear(hidden, w2, b2)


def _roi_align(boxes: Tensor, scores: Tensor, *levels: Tensor) -> Tensor:
    return operators().pool([_maps(level) for level in levels], 0, boxes, 7)


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
    "MLP": _mlp,
    "RoIAlign": _roi_align,
    "suppression": lambda boxes, scores: operators().nms(boxes, scores, OVERLAP),
}


def build(name: str, shapes: list[list[int]], boxes: int, backward: bool) -> None:
    """Get ready for an operation on boxes, if it is about some, and normal noise.

    Args:
        name: a key of `FUNCTIONS`.
        shapes: of its inputs and parameters.
        boxes: how many.
        backward: with its gradients.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    timed.start(lambda: _call(name, shapes, boxes, backward), lambda result: None)


def _call(name: str, shapes: list[list[int]], boxes: int, backward: bool) -> Callable[[], object]:
    function = FUNCTIONS[name]
    if boxes:
        function = partial(function, *map(torch.from_numpy, boxes_of(boxes)))
    tensors = [torch.from_numpy(normal(*shape)).requires_grad_() for shape in shapes]
    if not backward:
        return torch.inference_mode()(lambda: function(*tensors))
    result = function(*tensors).detach()
    # A level may have no region.
    return lambda: torch.autograd.grad(function(*tensors), tensors, result, allow_unused=True)


if __name__ == "__main__":
    serve(build, timed.turn)
