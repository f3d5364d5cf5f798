"""RGB to hue, saturation and value and back, as OpenCV does it.

A byte of hue stands for two degrees, 0 to 179; saturation and value run from 0 to 255.
"""

from __future__ import annotations

import numpy as np

HUES = 180  # the number of hues; a byte cannot count to 360

# OpenCV divides by tables of reciprocals in units of 1/4096; dividing by 0 gives 0.
_UNIT = 1 << 12
_levels = np.arange(1, 256)
_BY_VALUE = np.concatenate([[0], np.rint(255 * _UNIT / _levels)]).astype(np.int32)
_BY_RANGE = np.concatenate([[0], np.rint(HUES * _UNIT / (6 * _levels))]).astype(np.int32)


def rgb_to_hsv(pixels: np.ndarray) -> np.ndarray:
    """Convert as `cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)`.

    Args:
        pixels: uint8 (h, w, 3).

    Returns:
        uint8 (3, h, w): hue, saturation, value.
    """
    red, green, blue = (pixels[:, :, channel].astype(np.int32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _BY_VALUE[value] + _UNIT // 2) >> 12
    # The distance from the primary color that is the strongest (of equals the first).
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (hue * _BY_RANGE[spread] + _UNIT // 2) >> 12
    hue += HUES * (hue < 0)
    return np.stack([hue, saturation, value]).astype(np.uint8)


def _paleness() -> np.ndarray:
    """How far red, green and blue fall below the value at full saturation, float32 (3, HUES)."""
    position = np.arange(256, dtype=np.float32) * np.float32(6 / HUES)
    sector = np.floor(position).astype(int)
    ahead = position - sector.astype(np.float32)
    none, full = np.zeros_like(ahead), np.ones_like(ahead)
    falling, rising = ahead, 1 - ahead
    by_sector = [
        (none, rising, full),
        (falling, none, full),
        (full, none, rising),
        (full, falling, none),
        (rising, full, none),
        (none, full, falling),
    ]
    table = np.array(by_sector)  # (sector, channel, hue)
    return table[sector % 6, :, np.arange(256)].T.copy()


_PALENESS = _paleness()


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Convert as `cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)`.

    As in OpenCV's vector code the levels are cut to integers, so going there and back darkens a
    color a little. (OpenCV rounds in the pixels that do not fill a vector; and 1 value in 27,000
    lies so close to an integer that its fused arithmetic ends on the other side.)

    Args:
        hsv: uint8 (3, h, w): hue, saturation, value.

    Returns:
        uint8 (h, w, 3).
    """
    hue, saturation, value = hsv
    saturation = saturation * np.float32(1 / 255)
    value = value * np.float32(1 / 255)
    pixels = np.empty((*hue.shape, 3), dtype=np.uint8)
    for channel, table in enumerate(_PALENESS):
        level = table[hue]
        level *= saturation
        np.subtract(1, level, out=level)
        level *= value
        level *= 255
        pixels[:, :, channel] = level
    return pixels
