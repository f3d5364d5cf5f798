"""The evaluation transform of the published accuracies: resize, center crop, normalize.

Bit-equal to torchvision's Resize(int, bicubic) -> CenterCrop -> ToTensor -> Normalize on PIL
pictures, whose rounding rules `resized_size` and `center_crop` restate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from mindtwins.data.normalize import Normalize
from mindtwins.data.resample import resize_part


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) after resizing the shorter side; the longer one rounds down."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the central size x size square, after padding with black where the picture is smaller.

    An odd margin splits by Python's round (half to even) when cropping, and gives the extra row or
    column to the right and bottom when padding.
    """
    missing_width, missing_height = max(size - image.width, 0), max(size - image.height, 0)
    if missing_width or missing_height:
        left, top = missing_width // 2, missing_height // 2
        border = (left, top, missing_width - left, missing_height - top)
        image = ImageOps.expand(image, border)
    return image.crop(center_box(image.width, image.height, size))


def center_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return the (left, top, right, bottom) of the central square of a picture that holds it."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


class EvaluationTransform:
    """PIL RGB picture to a float32 (3, image_size, image_size) array.

    Args:
        image_size: side of the square the model sees, in pixels.
        crop_pct: image_size over the length the shorter side is resized to (0.875: 224 of 256).
        mean: per-channel mean of x / 255.
        std: per-channel standard deviation.
    """

    def __init__(
        self, image_size: int, crop_pct: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.image_size = image_size
        self.short_side = int(image_size / crop_pct)
        self.normalize = Normalize(mean, std)

    def __call__(self, image: Image.Image, out: np.ndarray | None = None) -> np.ndarray:
        """Return the normalized center of the picture, in `out` if that is given."""
        size = resized_size(image.width, image.height, self.short_side)
        if min(size) < self.image_size:
            image = image.resize(size, Image.Resampling.BICUBIC)
            return self.normalize(center_crop(image, self.image_size), out)
        box = center_box(*size, self.image_size)
        return self.normalize(resize_part(image, size, box, Image.Resampling.BICUBIC), out)
