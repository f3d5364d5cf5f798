"""Small masks of boxes, pasted into pictures."""

from __future__ import annotations

import math

import numpy as np

THRESHOLD = np.float32(0.5)


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks (n, side, side) of probabilities in boxes (n, 4) -> bool (n, height, width).

    A pixel is of the mask where that, interpolated at the pixel's center and 0 outside of the box,
    is at least 0.5: MMDetection's paste by torch's grid_sample.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (x1, y1, x2, y2), picture in zip(masks, boxes, pasted, strict=True):
        # Beyond a box the interpolation is below the threshold; one pixel more for its rounding.
        top, bottom = max(math.floor(y1) - 1, 0), min(math.ceil(y2) + 1, height)
        left, right = max(math.floor(x1) - 1, 0), min(math.ceil(x2) + 1, width)
        if top >= bottom or left >= right:
            continue
        rows = _interpolation(top, bottom, y1, y2, mask.shape[0])
        columns = _interpolation(left, right, x1, x2, mask.shape[1])
        picture[top:bottom, left:right] = rows @ mask @ columns.T >= THRESHOLD
    return pasted


def _interpolation(begin: int, end: int, low: float, high: float, cells: int) -> np.ndarray:
    """Weights (pixels, cells) of the cells of a box's side at the centers of pixels."""
    centers = np.arange(begin, end, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (centers - low) / (high - low) * np.float32(2) - np.float32(1)
    at[np.isinf(at)] = 0  # a box without extent
    at = ((at + 1) * cells - 1) / 2
    distances = abs(at[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(1 - distances, 0).astype(np.float32)
