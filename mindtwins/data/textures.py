"""Backgrounds and surfaces of generated pictures, and digits upon them."""

from __future__ import annotations

import numpy as np
from PIL import Image

PICTURE = 128  # side of the generated pictures, and of the texture that a digit is cut out of


def blots(size: int, color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft blots around a color, float32 (size, size, 3), not clipped to 0..255.

    Args:
        size: of the square's side, in pixels.
        color: the mean levels of red, green and blue, (3,).
        rng: draws how many blots there are to a side, how strong they are, and where.
    """
    count = int(rng.integers(4, 33))
    depth = rng.uniform(5, 25)
    channels = [
        np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
        for noise in rng.standard_normal((3, count, count), dtype=np.float32)
    ]
    return np.stack(channels, axis=2) * np.float32(depth) + color.astype(np.float32)


def draw_digit(
    square: np.ndarray, digit: np.ndarray, levels: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Draw a digit into a square of a picture.

    Args:
        square: float (size, size, 3), a view of the picture.
        digit: how much ink there is, 0 to 1, (8, 8).
        levels: range of the mean levels of the ink's three colors.
        rng: draws the ink's texture.

    Returns:
        How much ink covers each pixel of the square, 0 to 1, (size, size).
    """
    size = len(square)
    small = Image.fromarray(digit.astype(np.float32))
    ink = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    stroke = blots(PICTURE, rng.uniform(*levels, 3), rng)[:size, :size]
    square += (stroke - square) * ink[:, :, None]
    return ink
