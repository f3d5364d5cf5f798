"""Boxes: anchors, what a head's numbers mean of them, and how much they overlap.

Arrays in float32, x1 y1 x2 y2 in pixels; a width is x2 - x1, without one more. Each operation is in
the order of MMDetection 2.8.0, so that the roundings are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RATIOS = (0.5, 1.0, 2.0)  # height to width
# A decoded side is at most so many times the anchor's, and at least one so-manieth of it.
_LONGEST = np.float32(abs(math.log(16 / 1000)))
_LEAST_UNION = np.float32(1e-6)


def anchors_of_level(height: int, width: int, stride: int, scales: Sequence[float]) -> np.ndarray:
    """Anchors of a map, (height * width * ratios * scales, 4): row by row, pixel by pixel."""
    tall = np.sqrt(np.array(RATIOS, np.float32))
    factors = np.array(scales, np.float32)
    widths = (np.float32(stride) * (1 / tall)[:, None] * factors).ravel()
    heights = (np.float32(stride) * tall[:, None] * factors).ravel()
    half = np.float32(0.5)
    base = np.stack([-half * widths, -half * heights, half * widths, half * heights], 1)
    ys, xs = np.mgrid[:height, :width].astype(np.float32) * np.float32(stride)
    shifts = np.stack([xs, ys, xs, ys], -1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def decode(
    anchors: np.ndarray, deltas: np.ndarray, stds: Sequence[float], height: int, width: int
) -> np.ndarray:
    """Anchors or proposals (n, 4) moved and stretched by deltas (n, 4), clipped to a picture.

    Args:
        anchors: what the deltas are of.
        deltas: of the center in sides, and logarithms of the sides' factors, each over its std.
        stds: the four.
        height, width: of the picture.
    """
    dx, dy, dw, dh = (deltas * np.array(stds, np.float32)).T
    dw, dh = np.clip(dw, -_LONGEST, _LONGEST), np.clip(dh, -_LONGEST, _LONGEST)
    x1, y1, x2, y2 = anchors.T
    half = np.float32(0.5)
    sides = x2 - x1, y2 - y1
    center_x, center_y = (x1 + x2) * half + sides[0] * dx, (y1 + y2) * half + sides[1] * dy
    half_width, half_height = sides[0] * np.exp(dw) * half, sides[1] * np.exp(dh) * half
    xs = np.clip([center_x - half_width, center_x + half_width], 0, np.float32(width))
    ys = np.clip([center_y - half_height, center_y + half_height], 0, np.float32(height))
    return np.stack([xs[0], ys[0], xs[1], ys[1]], 1)


def encode(anchors: np.ndarray, boxes: np.ndarray, stds: Sequence[float]) -> np.ndarray:
    """The deltas (n, 4) that make anchors (n, 4) into boxes (n, 4): `decode` backwards."""
    ax1, ay1, ax2, ay2 = anchors.T
    x1, y1, x2, y2 = boxes.T
    half = np.float32(0.5)
    width, height = ax2 - ax1, ay2 - ay1
    dx = ((x1 + x2) * half - (ax1 + ax2) * half) / width
    dy = ((y1 + y2) * half - (ay1 + ay2) * half) / height
    dw, dh = np.log((x2 - x1) / width), np.log((y2 - y1) / height)
    return np.stack([dx, dy, dw, dh], 1) / np.array(stds, np.float32)


def areas(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) -> (n,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of each of (m, 4) with each of (n, 4), (m, n)."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    opposite = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod(np.maximum(opposite - corner, 0), -1)
    union = areas(first)[:, None] + areas(second)[None] - both
    return both / np.maximum(union, _LEAST_UNION)
