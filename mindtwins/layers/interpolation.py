"""The weights of linear interpolation along one axis, as torch has them (align_corners False).

Points lie at the middle of their pixels, `size` old ones and `new` ones on the same length. A new
point before the first old one, or after the last, has that one's value.
"""

from __future__ import annotations

import numpy as np


def neighbors(size: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new point the index of the old one before it, and how much the one after it counts.

    Returns:
        int (new,) and float64 (new,), the latter from 0 to 1. The last old point counts as the one
        after itself.
    """
    points = np.maximum((np.arange(new) + 0.5) * (size / new) - 0.5, 0)
    before = np.minimum(points.astype(int), size - 1)
    return before, points - before


def interpolation_matrix(size: int, new: int) -> np.ndarray:
    """The same as a matrix, float64 (new, size): new values are its product with the old ones."""
    before, fraction = neighbors(size, new)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new), before), 1 - fraction)
    np.add.at(matrix, (np.arange(new), np.minimum(before + 1, size - 1)), fraction)
    return matrix
