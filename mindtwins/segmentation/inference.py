"""From logits to label maps: the protocol of the published scores.

The logits of a view are resized bilinearly to the network's input and then to the picture's own
size; each pixel's class is the one with the highest logit. With several views (sizes, flips) it is
the one with the highest mean probability. Large pictures can be covered by sliding windows, whose
logits are averaged where they overlap.

150 classes at a picture's own size are 50 million numbers or more, so they are never stored: both
resizes are one linear map per axis, applied tile by tile as two small matrix products, and a tile
is reduced to its classes while it lies in the cache. Sliding windows do store the sum of their
logits, at the size of the network's input: 4 bytes for each pixel and class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindtwins.layers.interpolation import interpolation_matrix

# Rows and columns of a tile. 150 classes of it take 600 kB.
TILE = (16, 64)

# Images, float32 (n, 3, h, w), to logits, (n, classes, h', w').
Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Window:
    """Sliding windows of size x size pixels, or the whole side where a picture is smaller.

    Args:
        size: in pixels.
        stride: from one window to the next, at most `size`, so that every pixel is covered; the
            last window is moved back into the picture.
    """

    size: int
    stride: int

    def starts(self, length: int) -> list[int]:
        """Where the windows begin along a side of `length` pixels."""
        last = max(length - self.size, 0)
        return [min(k * self.stride, last) for k in range(-(-last // self.stride) + 1)]


def predict_labels(
    forward: Forward,
    views: Sequence[np.ndarray],
    size: tuple[int, int],
    *,
    flip: bool = False,
    window: Window | None = None,
) -> np.ndarray:
    """Return each pixel's class.

    Args:
        forward: the model.
        views: the same n pictures at one size or more: float32 (n, 3, h, w) each.
        size: (height, width) of the pictures' own size.
        flip: whether each view is also seen mirrored.
        window: sliding windows instead of whole views.

    Returns:
        uint8 (n, height, width).
    """
    seen = []
    for images in views:
        seen.append((_logits(forward, images, window), images.shape[2:], False))
        if flip:
            mirrored = np.ascontiguousarray(images[:, :, :, ::-1])
            seen.append((_logits(forward, mirrored, window), images.shape[2:], True))
    pictures = range(len(views[0]))
    return np.stack(
        [
            _classes([_View(logits[i], net, size, mirrored) for logits, net, mirrored in seen])
            for i in pictures
        ]
    )


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly between the pixels' centers (torch's interpolate, align_corners False).

    Args:
        logits: float32 (h, w, classes).

    Returns:
        float32 (height, width, classes).
    """
    result = np.empty((height, width, logits.shape[2]), dtype=np.float32)
    for rows, columns, (tile,) in _tiles([_View(logits, logits.shape[:2], (height, width))]):
        result[rows, columns] = tile
    return result


def _logits(forward: Forward, images: np.ndarray, window: Window | None) -> np.ndarray:
    """Logits of whole images, or of windows put together: float32 (n, h', w', classes)."""
    if window is None:
        return np.ascontiguousarray(
            np.asarray(forward(images), dtype=np.float32).transpose(0, 2, 3, 1)
        )
    height, width = images.shape[2:]
    rows, columns = min(window.size, height), min(window.size, width)
    total: np.ndarray | None = None
    count = np.zeros((height, width, 1), dtype=np.float32)
    for top in window.starts(height):
        for left in window.starts(width):
            region = np.s_[top : top + rows, left : left + columns]
            part = _logits(forward, np.ascontiguousarray(images[(..., *region)]), None)
            if total is None:
                total = np.zeros((len(images), height, width, part.shape[3]), dtype=np.float32)
            for picture, logits in zip(total, part, strict=True):
                picture[region] += resize_logits(logits, rows, columns)
            count[region] += 1
    assert total is not None  # there is a window at least
    return total / count


@dataclass(frozen=True)
class _Band:
    """Some rows of an interpolation matrix, without the columns where all are 0."""

    target: slice
    source: slice
    weights: np.ndarray  # float32 (rows, columns)


class _View:
    """Logits (h, w, classes), to be resized to the network's input and then to `size`."""

    def __init__(
        self,
        logits: np.ndarray,
        network: tuple[int, ...],
        size: tuple[int, int],
        mirrored: bool = False,
    ) -> None:
        self.logits = logits
        rows, columns = (
            interpolation_matrix(middle, final) @ interpolation_matrix(first, middle)
            for first, middle, final in zip(logits.shape[:2], network, size, strict=True)
        )
        self.rows = _bands(rows, TILE[0])
        self.columns = _bands(columns[::-1] if mirrored else columns, TILE[1])

    def tile(self, row: int, column: int) -> np.ndarray:
        """The resized logits of one tile, float32 (rows, columns, classes)."""
        down, across = self.rows[row], self.columns[column]
        wide = np.matmul(across.weights, self.logits[down.source, across.source])
        return (down.weights @ wide.reshape(len(wide), -1)).reshape(-1, *wide.shape[1:])


def _bands(matrix: np.ndarray, step: int) -> list[_Band]:
    bands = []
    for start in range(0, len(matrix), step):
        weights = matrix[start : start + step]
        used = np.flatnonzero(weights.any(axis=0))
        source = slice(used[0], used[-1] + 1)
        weights = np.ascontiguousarray(weights[:, source], dtype=np.float32)
        bands.append(_Band(slice(start, start + len(weights)), source, weights))
    return bands


def _tiles(views: Sequence[_View]) -> Iterator[tuple[slice, slice, Iterator[np.ndarray]]]:
    """Rows, columns and the logits of every view, for each tile."""
    for row, down in enumerate(views[0].rows):
        for column, across in enumerate(views[0].columns):
            yield down.target, across.target, (view.tile(row, column) for view in views)


def _classes(views: Sequence[_View]) -> np.ndarray:
    """The classes of one picture, uint8 (height, width)."""
    size = views[0].rows[-1].target.stop, views[0].columns[-1].target.stop
    classes = np.empty(size, dtype=np.uint8)
    for rows, columns, tiles in _tiles(views):
        if len(views) == 1:
            (score,) = tiles  # a softmax would not change the order
        else:
            score = np.asarray(sum(map(_softmax, tiles)))
        classes[rows, columns] = score.argmax(axis=2)
    return classes


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return logits
