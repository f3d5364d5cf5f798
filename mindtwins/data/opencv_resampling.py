"""Resizing of pictures and label maps, byte for byte as OpenCV does it.

The published segmentors were trained and scored on pictures resized by `cv2.resize`: bilinear
between the pixels' centers without smoothing, also when shrinking, where Pillow's filters would
average. OpenCV computes it in fixed point; the same integers are computed here.
"""

from __future__ import annotations

import numpy as np

# OpenCV's weights of the two neighbors are multiples of 1/2048.
ONE = 2048


def rescaled_size(width: int, height: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of the largest picture of the same shape that fits `scale`.

    At least 1 x 1; halves round up, as in MMSegmentation.

    Args:
        width: in pixels.
        height: in pixels.
        scale: the limits of the two sides, in either order: (2048, 512) stands for a longer side of
            at most 2048 and a shorter one of at most 512 pixels.
    """
    factor = min(max(scale) / max(width, height), min(scale) / min(width, height))
    return max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)


def resize_image(
    pixels: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Resize as `cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)`.

    Args:
        pixels: uint8 (h, w, channels).
        size: (width, height) to resize to.
        box: (left, top, right, bottom) of the part of the result that is wanted; default: all.

    Returns:
        uint8 (bottom - top, right - left, channels).
    """
    width, height = size
    left, top, right, bottom = box or (0, 0, width, height)
    if pixels.shape[:2] == (height, width):
        return pixels[top:bottom, left:right].copy()
    if pixels.shape[:2] == (2 * height, 2 * width):
        # Here OpenCV rounds once, the mean of four pixels, rather than twice.
        part = pixels[2 * top : 2 * bottom, 2 * left : 2 * right].astype(np.uint16)
        rows = part[::2] + part[1::2]
        return ((rows[:, ::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)

    upper, lower, low_weight = _neighbors(pixels.shape[0], height, top, bottom)
    before, after, after_weight = _neighbors(pixels.shape[1], width, left, right)
    used, row_of = np.unique(np.concatenate([upper, lower]), return_inverse=True)
    source = pixels if len(used) == len(pixels) else pixels[used]

    # a * (1 - t) + b * t = a * ONE + (b - a) * t in units of 1/ONE, below 2**20.
    first = source.take(before, axis=1).astype(np.int32)
    second = source.take(after, axis=1).astype(np.int32)
    second -= first
    second *= after_weight[:, None]
    first *= ONE
    first += second
    first >>= 4

    # The products of the two rows are cut to integers one by one.
    weight = low_weight[:, None, None]
    result = first[row_of[: len(upper)]]
    result *= ONE - weight
    result >>= 16
    below = first[row_of[len(upper) :]]
    below *= weight
    below >>= 16
    result += below
    result += 2
    result >>= 2
    return result.astype(np.uint8)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as `cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)`.

    Args:
        labels: (h, w) of any type.
        size: (width, height) to resize to.

    Returns:
        (height, width) of the same type.
    """
    width, height = size
    rows = _nearest(labels.shape[0], height)
    columns = _nearest(labels.shape[1], width)
    return labels[rows].take(columns, axis=1)


def _step(source: int, target: int) -> float:
    return 1 / (target / source)  # rounded as OpenCV rounds


def _nearest(source: int, target: int) -> np.ndarray:
    return np.minimum((np.arange(target) * _step(source, target)).astype(int), source - 1)


def _neighbors(
    source: int, target: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each place in [start, stop) of the target, and the latter's
    weight in 1/ONE; beyond the edge lies the pixel at the edge."""
    points = ((np.arange(start, stop) + 0.5) * _step(source, target) - 0.5).astype(np.float32)
    before = np.floor(points).astype(np.int64)
    weight = np.rint((points - before.astype(np.float32)) * ONE).astype(np.int32)
    return before.clip(0, source - 1), (before + 1).clip(0, source - 1), weight
