"""Backgrounds and surfaces of generated pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image


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
