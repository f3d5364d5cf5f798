"""Bytes to normalized float32, bit-equal to torchvision's ToTensor and Normalize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


class Normalize:
    """Turns an RGB picture into (x / 255 - mean) / std, by table lookup.

    A byte has only 256 values, so the three float32 roundings of ToTensor (division) and Normalize
    (subtraction, division) are done once per value and channel.

    Args:
        mean: per-channel mean of x / 255, three numbers.
        std: per-channel standard deviation, three numbers.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        center, spread = np.asarray([mean, std], dtype=np.float32)[:, :, None]
        self.table = (levels - center) / spread  # (3, 256)

    def __call__(
        self, image: Image.Image | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the picture as float32 (3, height, width), in `out` if that is given.

        Args:
            image: a PIL RGB picture or uint8 (height, width, 3).
            out: float32 (3, height, width), contiguous or not.
        """
        pixels = np.asarray(image)
        normalized = np.empty((3, *pixels.shape[:2]), dtype=np.float32) if out is None else out
        for channel, table in enumerate(self.table):
            np.take(table, pixels[:, :, channel], out=normalized[channel], mode="clip")
        return normalized
