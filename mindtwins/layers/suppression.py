"""Greedy non-maximum suppression, on arrays: how many boxes are left is known only afterwards."""

from __future__ import annotations

import ctypes

import numpy as np

from mindtwins.layers.kernels.loading import library


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes that are kept, best first.

    A box goes if a better one that is kept overlaps it by more than `threshold`: intersection over
    union, strictly greater, in float32. Of equal scores the first comes first.

    Args:
        boxes: (n, 4) float32, x1 y1 x2 y2.
        scores: (n,).
        threshold: of the overlap.
    """
    order = np.argsort(-scores, kind="stable")
    corners = np.ascontiguousarray(boxes[order].T, np.float32)
    return order[_kept(corners, float(np.float32(threshold)))]


def _kept(corners: np.ndarray, threshold: float) -> np.ndarray:
    """Corners (4, n), best first -> whether each box is kept, bool (n,)."""
    count = corners.shape[1]
    keep = np.ones(count, bool)
    file = library()
    if file is not None:
        ctypes.CDLL(str(file)).mindtwins_suppress(
            ctypes.c_void_p(corners.ctypes.data),
            ctypes.c_int64(count),
            ctypes.c_float(threshold),
            ctypes.c_void_p(keep.ctypes.data),
        )
        return keep
    x1, y1, x2, y2 = corners
    areas = (x2 - x1) * (y2 - y1)
    for index in range(count):
        if keep[index]:
            rest = slice(index + 1, None)
            widths = np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest])
            heights = np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest])
            both = np.maximum(widths, 0) * np.maximum(heights, 0)
            keep[rest] &= ~(both > np.float32(threshold) * (areas[index] + areas[rest] - both))
    return keep
