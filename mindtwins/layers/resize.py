"""Changing the size of maps (B, H, W, C), as torch does.

Each of these is a linear map of the rows and another of the columns. Where MindSpore's own
operators are slow, on the CPU, both are products with a small matrix. These are functions, not
layers: the formulation is that of the moment at which a graph is compiled.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation_in_graph, use_kernel
from mindtwins.layers.interpolation import interpolation_matrix, neighbors


def resize_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, height, width, C); torch's F.interpolate, align_corners False."""
    if x.shape[1] == height and x.shape[2] == width:
        return x
    if use_kernel(x):
        rows = _neighbor_table(x.shape[1], height)
        columns = _neighbor_table(x.shape[2], width)
        return kernels.resize_bilinear(x, rows, columns)
    if formulation_in_graph() == "native":
        x = ops.transpose(x, (0, 3, 1, 2))
        x = ops.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        return ops.transpose(x, (0, 2, 3, 1))
    return _multiply(x, _bilinear(x.shape[1], height), _bilinear(x.shape[2], width))


def resize_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, height, width, C); torch's F.interpolate, mode "nearest"."""
    if x.shape[1] == height and x.shape[2] == width:
        return x
    if formulation_in_graph() == "native":
        x = ops.transpose(x, (0, 3, 1, 2))
        x = ops.interpolate(x, size=(height, width), mode="nearest")
        return ops.transpose(x, (0, 2, 3, 1))
    return _multiply(x, _nearest(x.shape[1], height), _nearest(x.shape[2], width))


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """(B, H, W, C) -> (B, bins, bins, C), means over bins; torch's AdaptiveAvgPool2d."""
    if formulation_in_graph() == "native":
        x = ops.adaptive_avg_pool2d(ops.transpose(x, (0, 3, 1, 2)), bins)
        return ops.transpose(x, (0, 2, 3, 1))
    return _multiply(x, _bin_means(x.shape[1], bins), _bin_means(x.shape[2], bins))


def _multiply(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows by a matrix (height, H) and columns by one (width, W)."""
    batch, in_height, in_width, channels = x.shape
    height, width = rows.shape[0], columns.shape[0]
    rows = ops.broadcast_to(ops.cast(rows, x.dtype), (batch, height, in_height))
    x = ops.BatchMatMul()(rows, ops.reshape(x, (batch, in_height, in_width * channels)))
    columns = ops.broadcast_to(ops.cast(columns, x.dtype), (batch * height, width, in_width))
    x = ops.BatchMatMul()(columns, ops.reshape(x, (batch * height, in_width, channels)))
    return ops.reshape(x, (batch, height, width, channels))


def resized_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of bilinearly resized logits, summed over all pixels.

    Args:
        logits: (B, H, W, classes) float32.
        labels: (B, height, width) int32; pixels with a negative label count nothing.

    Returns:
        float32 scalar.
    """
    _, height, width = labels.shape
    if use_kernel(logits):
        # In one pass, without the resized logits: 160 MB for one image of 512 x 512 with 150
        # classes, and as much again for each of their softmax and gradients.
        rows = _neighbor_table(logits.shape[1], height)
        columns = _neighbor_table(logits.shape[2], width)
        return ops.reduce_sum(kernels.cross_entropy(logits, labels, rows, columns))
    logits = resize_bilinear(logits, height, width)
    log_probabilities = ops.reshape(ops.log_softmax(logits, -1), (-1, logits.shape[-1]))
    labels = ops.reshape(labels, (-1, 1))
    counts = ops.cast(labels >= 0, ms.float32)
    of_label = ops.gather_elements(log_probabilities, 1, ops.maximum(labels, 0))
    return -ops.reduce_sum(of_label * counts)


@ops.constexpr
def _neighbor_table(size: int, new: int) -> Tensor:
    """`interpolation.neighbors` as the kernels want them, float32 (new, 2)."""
    return Tensor(np.stack(neighbors(size, new), 1).astype(np.float32))


@ops.constexpr
def _bilinear(size: int, new: int) -> Tensor:
    """Weights (new, size) of linear interpolation."""
    return Tensor(interpolation_matrix(size, new).astype(np.float32))


@ops.constexpr
def _nearest(size: int, new: int) -> Tensor:
    """A one (new, size) where each new point is copied from; rounded in float32, as torch does."""
    source = np.floor(np.arange(new, dtype=np.float32) * np.float32(size / new)).astype(int)
    return Tensor(np.eye(size, dtype=np.float32)[np.minimum(source, size - 1)])


@ops.constexpr
def _bin_means(size: int, bins: int) -> Tensor:
    """Weights (bins, size); neighboring bins overlap where `size` is no multiple of them."""
    matrix = np.zeros((bins, size), np.float32)
    for index in range(bins):
        begin, end = index * size // bins, -(-(index + 1) * size // bins)
        matrix[index, begin:end] = 1 / (end - begin)
    return Tensor(matrix)
