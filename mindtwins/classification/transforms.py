"""The training and evaluation transforms of the published classifiers.

Training: random crop and flip, RandAugment or color jitter, normalize, erase, with timm's and
torchvision's semantics; every draw comes from the generator that is passed in. Evaluation: resize,
center crop, normalize, bit-equal to torchvision's Resize(int, bicubic) -> CenterCrop -> ToTensor ->
Normalize on PIL pictures, whose rounding rules `resized_size` and `center_crop` restate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mindtwins.data.normalize import Normalize
from mindtwins.data.rand_augment import parse_rand_augment
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.data.resample import resize_part
from mindtwins.errors import UserError

CROP_ATTEMPTS = 10

# "random" draws one of the two every time that pixels are resampled.
INTERPOLATIONS: dict[str, tuple[Image.Resampling, ...]] = {
    "bicubic": (Image.Resampling.BICUBIC,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}

_JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom) of a random resized crop.

    The area is uniform in `scale` times the picture's, the aspect ratio (width over height)
    log-uniform in `ratio`. After ten boxes that do not fit it is the largest central one whose
    ratio is within the limits.
    """
    for _ in range(CROP_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * ratio[1]))
    crop_height = min(height, round(width / ratio[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def jitter_colors(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation, in random order.

    Each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    for choice in rng.permutation(len(_JITTERED)):
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        image = _JITTERED[choice](image).enhance(factor)
    return image


class TrainingTransform:
    """PIL RGB picture and random generator to a float32 (3, image_size, image_size) array.

    Args:
        image_size: side of the square the model sees, in pixels.
        mean: per-channel mean of x / 255; also the fill color of RandAugment.
        std: per-channel standard deviation.
        scale: range of the crop's area, relative to the picture's.
        ratio: range of the crop's width over its height.
        hflip: probability of a flip.
        auto_augment: a policy such as `rand-m9-mstd0.5-inc1`; empty for none.
        color_jitter: strength of the color jitter; as in timm it is ignored with RandAugment.
        erasing: random erasing after normalization; None for none.
        interpolation: "bicubic", "bilinear" or "random".

    Raises:
        UserError: the policy or the interpolation is unknown.
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        auto_augment: str = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.4,
        erasing: RandomErasing | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f"unknown interpolation {interpolation!r}: use {', '.join(INTERPOLATIONS)}"
            )
        self.image_size = image_size
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip
        self.erasing = erasing
        self.interpolations = INTERPOLATIONS[interpolation]
        self.normalize = Normalize(mean, std)
        self.change_colors: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None
        if auto_augment:
            red, green, blue = (min(255, round(255 * value)) for value in mean)
            fill = (red, green, blue)
            self.change_colors = parse_rand_augment(auto_augment, self.interpolations, fill)
        elif color_jitter > 0:
            self.change_colors = partial(jitter_colors, strength=color_jitter)

    def __call__(
        self, image: Image.Image, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the augmented, normalized picture, in `out` if that is given."""
        interpolation = self.interpolations[rng.integers(len(self.interpolations))]
        box = random_crop_box(image.width, image.height, self.scale, self.ratio, rng)
        size = self.image_size, self.image_size
        image = Image.fromarray(
            np.ascontiguousarray(resize_part(image.crop(box), size, (0, 0, *size), interpolation))
        )
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.change_colors is not None:
            image = self.change_colors(image, rng)
        array = self.normalize(image, out)
        if self.erasing is not None:
            self.erasing(array, rng)
        return array


def resized_side(image_size: int, crop_pct: float) -> int:
    """Return the length that the shorter side is resized to before the crop; it rounds down."""
    return int(image_size / crop_pct)


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
        self.short_side = resized_side(image_size, crop_pct)
        self.normalize = Normalize(mean, std)

    def __call__(self, image: Image.Image, out: np.ndarray | None = None) -> np.ndarray:
        """Return the normalized center of the picture, in `out` if that is given."""
        size = resized_size(image.width, image.height, self.short_side)
        if min(size) < self.image_size:
            image = image.resize(size, Image.Resampling.BICUBIC)
            return self.normalize(center_crop(image, self.image_size), out)
        box = center_box(*size, self.image_size)
        return self.normalize(resize_part(image, size, box, Image.Resampling.BICUBIC), out)
