"""What a detector finds in a picture, and what it has to know of that picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """How a picture was made into a detector's input.

    Attributes:
        height, width: of the resized picture in pixels, before it is padded.
        scale_factor: float32 (4,), by which x1, y1, x2, y2 were multiplied; the two axes differ,
            since sides are rounded to pixels.
        original_height, original_width: of the picture before.
    """

    height: int
    width: int
    scale_factor: np.ndarray
    original_height: int
    original_width: int


@dataclass(frozen=True)
class Detections:
    """The objects in a picture, the surest first.

    Attributes:
        boxes: float32 (n, 4), x1 y1 x2 y2 in the original picture's pixels.
        scores: float32 (n,).
        labels: int64 (n,), the numbers of their classes.
        masks: bool (n, height, width), of the original picture; None of a detector that gives none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)
