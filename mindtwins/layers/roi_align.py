"""RoIAlign (He et al. 2017, "Mask R-CNN", https://arxiv.org/abs/1703.06870) on a pyramid's maps.

As mmcv has it with `aligned` and sampling_ratio 0: a region is shifted by half a pixel, and each of
its bins is the mean of as many samples, bilinearly interpolated, as it has pixels to a side,
rounded up. MindSpore's own operator knows neither.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import use_kernel

# Regions that are worked on together where no kernel does: what bounds the memory.
_CHUNK = 256
# Samples that a pixel may count in, and one more on either side for rounding.
_NEAR = 6


def roi_align(maps: tuple[Tensor, ...], regions: Tensor, bins: int) -> Tensor:
    """Four maps (B, H_i, W_i, C) and regions (N, 6) -> (N, bins, bins, C).

    A function, not a layer: the formulation is that of the moment at which a graph is compiled.

    Args:
        maps: of a pyramid.
        regions: a row is (image, level, x1, y1, x2, y2), float32, in pixels of that level's map.
            What has no area or names no image or level of the maps gives zeros.
        bins: along each side of a region.
    """
    if use_kernel(maps[0]):
        return kernels.roi_align(*maps, regions, ops.zeros((bins, bins), ms.float32))
    image, level, x1, y1, x2, y2 = ops.split(regions, 1, 1)
    total = 0.0
    for index in range(len(maps)):
        batch, height, width, channels = maps[index].shape
        pixels = ops.reshape(ops.cast(maps[index], ms.float32), (batch, height, width * channels))
        rows = _weights(y1, y2, bins, height) * _equal(level, index)
        columns = _weights(x1, x2, bins, width)
        for picture in range(batch):
            of_image = ops.reshape(
                ops.slice(pixels, (picture, 0, 0), (1, height, width * channels)), (height, -1)
            )
            total = total + _average(of_image, rows * _equal(image, picture), columns)
    return ops.cast(ops.transpose(total, (0, 2, 1, 3)), maps[0].dtype)


def _average(lines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A mean of bilinear interpolations is a linear map of the rows and one of the columns.

    Args:
        lines: of a map, (H, W * C).
        rows, columns: each region's own maps (N, bins, H) and (N, bins, W), zeros where the map is
            not the region's.

    Returns:
        (N, bins across, bins down, C).
    """
    count, bins, width = columns.shape
    height = rows.shape[2]
    parts: tuple[Tensor, ...] = ()
    for begin in range(0, count, _CHUNK):
        size = min(_CHUNK, count - begin)
        down = ops.reshape(ops.slice(rows, (begin, 0, 0), (size, bins, height)), (-1, height))
        across = ops.slice(columns, (begin, 0, 0), (size, bins, width))
        kept = ops.reshape(ops.matmul(down, lines), (size, bins, width, -1))
        kept = ops.reshape(ops.transpose(kept, (0, 2, 1, 3)), (size, width, -1))
        parts = (*parts, ops.BatchMatMul()(across, kept))
    return ops.reshape(ops.concat(parts, 0), (count, bins, bins, -1))


def _equal(column: Tensor, value: int) -> Tensor:
    """(N, 1) -> (N, 1, 1), 1 where it is the value and else 0."""
    return ops.expand_dims(ops.cast(ops.equal(column, float(value)), ms.float32), 2)


def _weights(begin: Tensor, end: Tensor, bins: int, length: int) -> Tensor:
    """Sides (N, 1) of regions -> how much each pixel counts in each bin, (N, bins, length)."""
    start = begin - 0.5
    extent = ops.maximum((end - 0.5) - start, 0.0)
    bin_size = extent / bins
    grid = ops.ceil(bin_size)
    step = bin_size / ops.maximum(grid, 1.0)
    first = start + _range(bins) * bin_size + 0.5 * step  # (N, bins)
    # Two samples of a bin are at least half a pixel apart, so a pixel, which counts in those less
    # than 1 away, counts in four at most. Of one sample the distance is any.
    step = ops.select(grid > 1.0, step, ops.ones_like(step))
    first = ops.reshape(first, (-1, bins, 1, 1))
    step, grid = ops.reshape(step, (-1, 1, 1, 1)), ops.reshape(grid, (-1, 1, 1, 1))
    pixels = ops.reshape(_range(length), (1, 1, length, 1))
    index = ops.floor((pixels - 1.0 - first) / step) + _range(_NEAR)
    at = first + index * step
    counts = ops.logical_and(index >= 0.0, index < grid)
    counts = ops.logical_and(counts, ops.logical_and(at >= -1.0, at <= float(length)))
    at = ops.clamp(at, 0.0, float(length - 1))
    weight = ops.maximum(1.0 - ops.abs(at - pixels), 0.0) * ops.cast(counts, ms.float32)
    return ops.reduce_sum(weight, 3) / ops.maximum(ops.squeeze(grid, 3), 1.0)


@ops.constexpr
def _range(count: int) -> Tensor:
    return Tensor(np.arange(count, dtype=np.float32).reshape(1, count))
