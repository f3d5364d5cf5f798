"""Random erasing of normalized pictures, with timm's semantics.

Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindtwins.errors import UserError

MIN_AREA, MAX_AREA = 0.02, 1 / 3
MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3
ATTEMPTS = 10

# What replaces the pixels of a (channels, height, width) rectangle; it is normalized data, so zero
# is the mean color and a standard normal draw is a typical one.
_FILLS: dict[str, Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray | float]] = {
    "const": lambda rng, shape: 0.0,
    "rand": lambda rng, shape: rng.standard_normal((shape[0], 1, 1), dtype=np.float32),
    "pixel": lambda rng, shape: rng.standard_normal(shape, dtype=np.float32),
}


@dataclass(frozen=True)
class RandomErasing:
    """Replaces random rectangles of a picture.

    A rectangle covers 2 % to a third of the picture, divided by the number of rectangles; its
    aspect ratio is log-uniform in 0.3 to 1 / 0.3; one that does not fit is drawn again, up to ten
    times.

    Args:
        prob: probability that a picture is erased at all.
        mode: "const" (the mean color), "rand" (one random color per rectangle) or "pixel" (one
            per pixel).
        count: most rectangles per picture; their number is uniform in 1 to count.

    Raises:
        UserError: a value is outside its range.
    """

    prob: float = 0.25
    mode: str = "pixel"
    count: int = 1

    def __post_init__(self) -> None:
        if self.mode not in _FILLS:
            raise UserError(f"unknown random erasing mode {self.mode!r}: use {', '.join(_FILLS)}")
        if not 0 <= self.prob <= 1:
            raise UserError(f"random erasing probability is {self.prob}: it must lie in 0 to 1")
        if self.count < 1:
            raise UserError(f"random erasing count is {self.count}: it must be at least 1")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Erase in place; `image` is float32 (channels, height, width), normalized."""
        if rng.random() >= self.prob:
            return
        count = int(rng.integers(1, self.count + 1))
        for _ in range(count):
            self._erase_one(image, 1 / count, rng)

    def _erase_one(self, image: np.ndarray, share: float, rng: np.random.Generator) -> None:
        channels, height, width = image.shape
        for _ in range(ATTEMPTS):
            area = rng.uniform(MIN_AREA, MAX_AREA) * height * width * share
            aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top = int(rng.integers(0, height - rows + 1))
                left = int(rng.integers(0, width - columns + 1))
                fill = _FILLS[self.mode](rng, (channels, rows, columns))
                image[:, top : top + rows, left : left + columns] = fill
                return
