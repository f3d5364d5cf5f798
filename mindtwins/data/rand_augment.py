"""RandAugment on PIL pictures, with timm's operations and magnitudes.

Cubuk et al., "RandAugment: Practical automated data augmentation", arXiv 1909.13719. The levels run
from 0 to 10; in the "increasing" set (`inc1`) a higher level always changes the picture more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mindtwins.errors import UserError

MAX_LEVEL = 10.0
# A standard deviation above this asks for a uniform draw between 0 and the magnitude instead.
UNIFORM_ABOVE_STD = 100.0


@dataclass(frozen=True)
class Canvas:
    """How an operation that moves pixels samples them, and what it puts where none were."""

    interpolation: Image.Resampling
    fill: tuple[int, int, int]


# Level to argument -------------------------------------------------------------------------------

LevelToArgument = Callable[[float, np.random.Generator], float]


def _random_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _no_argument(level: float, rng: np.random.Generator) -> float:
    return 0.0


def _symmetric(maximum: float) -> LevelToArgument:
    """Up to +-maximum at level 10."""

    def argument(level: float, rng: np.random.Generator) -> float:
        return _random_sign(level / MAX_LEVEL * maximum, rng)

    return argument


def _enhance(level: float, rng: np.random.Generator) -> float:
    """0.1 at level 0 to 1.9 at level 10; 1 leaves the picture alone."""
    return level / MAX_LEVEL * 1.8 + 0.1


def _enhance_increasing(level: float, rng: np.random.Generator) -> float:
    """1 at level 0, 0.1 or 1.9 at level 10."""
    return max(0.1, 1.0 + _random_sign(level / MAX_LEVEL * 0.9, rng))


def _posterize(level: float, rng: np.random.Generator) -> float:
    """Bits that stay: 0 at level 0 to 4 at level 10."""
    return int(level / MAX_LEVEL * 4)


def _posterize_increasing(level: float, rng: np.random.Generator) -> float:
    """Bits that stay: 4 at level 0 to 0 at level 10."""
    return 4 - _posterize(level, rng)


def _solarize(level: float, rng: np.random.Generator) -> float:
    """The threshold from which values are inverted: 0 at level 0 to 256 at level 10."""
    return min(256, int(level / MAX_LEVEL * 256))


def _solarize_increasing(level: float, rng: np.random.Generator) -> float:
    """The threshold from which values are inverted: 256 at level 0 to 0 at level 10."""
    return 256 - _solarize(level, rng)


def _solarize_add(level: float, rng: np.random.Generator) -> float:
    """What is added to dark values: 0 at level 0 to 110 at level 10."""
    return min(128, int(level / MAX_LEVEL * 110))


# Argument to picture -----------------------------------------------------------------------------


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=canvas.interpolation,
        fillcolor=canvas.fill,
    )


def _auto_contrast(image: Image.Image, argument: float, canvas: Canvas) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize_image(image: Image.Image, argument: float, canvas: Canvas) -> Image.Image:
    return ImageOps.equalize(image)


def _invert_image(image: Image.Image, argument: float, canvas: Canvas) -> Image.Image:
    return ImageOps.invert(image)


def _rotate_image(image: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    return image.rotate(degrees, resample=canvas.interpolation, fillcolor=canvas.fill)


def _posterize_image(image: Image.Image, bits: float, canvas: Canvas) -> Image.Image:
    # Pillow refuses 0 bits, which would be a black picture anyway.
    return ImageOps.posterize(image, max(1, int(bits)))


def _solarize_image(image: Image.Image, threshold: float, canvas: Canvas) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add_image(image: Image.Image, addition: float, canvas: Canvas) -> Image.Image:
    table = [min(255, value + int(addition)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _shear_x(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, factor, 0, 0, 1, 0), canvas)


def _shear_y(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, factor, 1, 0), canvas)


def _translate_x(image: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), canvas)


def _translate_y(image: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), canvas)


def _enhancer(kind: type) -> Callable[[Image.Image, float, Canvas], Image.Image]:
    def enhance(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
        return kind(image).enhance(factor)

    return enhance


@dataclass(frozen=True)
class Operation:
    """One of RandAugment's operations."""

    argument: LevelToArgument
    apply: Callable[[Image.Image, float, Canvas], Image.Image]


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_no_argument, _auto_contrast),
    "Equalize": Operation(_no_argument, _equalize_image),
    "Invert": Operation(_no_argument, _invert_image),
    "Rotate": Operation(_symmetric(30.0), _rotate_image),
    "Posterize": Operation(_posterize, _posterize_image),
    "Solarize": Operation(_solarize, _solarize_image),
    "SolarizeAdd": Operation(_solarize_add, _solarize_add_image),
    "Color": Operation(_enhance, _enhancer(ImageEnhance.Color)),
    "Contrast": Operation(_enhance, _enhancer(ImageEnhance.Contrast)),
    "Brightness": Operation(_enhance, _enhancer(ImageEnhance.Brightness)),
    "Sharpness": Operation(_enhance, _enhancer(ImageEnhance.Sharpness)),
    "ShearX": Operation(_symmetric(0.3), _shear_x),
    "ShearY": Operation(_symmetric(0.3), _shear_y),
    "TranslateXRel": Operation(_symmetric(0.45), _translate_x),
    "TranslateYRel": Operation(_symmetric(0.45), _translate_y),
}

_INCREASING_ARGUMENTS: dict[str, LevelToArgument] = {
    "Posterize": _posterize_increasing,
    "Solarize": _solarize_increasing,
    "Color": _enhance_increasing,
    "Contrast": _enhance_increasing,
    "Brightness": _enhance_increasing,
    "Sharpness": _enhance_increasing,
}

INCREASING_OPERATIONS: dict[str, Operation] = {
    name: replace(operation, argument=_INCREASING_ARGUMENTS.get(name, operation.argument))
    for name, operation in OPERATIONS.items()
}


# The policy --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """Applies a few randomly chosen operations to a picture.

    Args:
        interpolations: of the operations that move pixels; with more than one, drawn each time.
        fill: RGB color of the pixels that move in from outside.
        magnitude: level of the operations (`m`).
        magnitude_std: standard deviation of each operation's level (`mstd`); infinite for a
            uniform draw between 0 and the magnitude.
        magnitude_max: levels are clipped to 0 to this (`mmax`).
        num_operations: operations drawn per picture, with replacement (`n`).
        prob: probability that a drawn operation is applied (`p`).
        increasing: whether a higher level always means a stronger change (`inc`).
    """

    interpolations: Sequence[Image.Resampling]
    fill: tuple[int, int, int]
    magnitude: float = MAX_LEVEL
    magnitude_std: float = 0.0
    magnitude_max: float = MAX_LEVEL
    num_operations: int = 2
    prob: float = 0.5
    increasing: bool = False

    @property
    def operations(self) -> dict[str, Operation]:
        """The operations to choose from, by name."""
        return INCREASING_OPERATIONS if self.increasing else OPERATIONS

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the operations to apply to one picture: their names and arguments, in order."""
        names = list(self.operations)
        drawn = []
        for choice in rng.integers(0, len(names), size=self.num_operations):
            if rng.random() < self.prob:
                name = names[choice]
                drawn.append((name, self.operations[name].argument(self._level(rng), rng)))
        return drawn

    def _level(self, rng: np.random.Generator) -> float:
        level = self.magnitude
        if math.isinf(self.magnitude_std):
            level = rng.uniform(0, level)
        elif self.magnitude_std > 0:
            level = rng.normal(level, self.magnitude_std)
        return min(max(level, 0.0), self.magnitude_max)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the augmented RGB picture, of the same size."""
        for name, argument in self.draw(rng):
            interpolation = self.interpolations[rng.integers(len(self.interpolations))]
            image = self.operations[name].apply(image, argument, Canvas(interpolation, self.fill))
        return image


def _flag(text: str) -> bool:
    return bool(int(text))


def _standard_deviation(text: str) -> float:
    value = float(text)
    return math.inf if value > UNIFORM_ABOVE_STD else value


# What a part of the policy string sets, and how its value reads.
_PARTS: dict[str, tuple[str, Callable[[str], float]]] = {
    "m": ("magnitude", float),
    "mstd": ("magnitude_std", _standard_deviation),
    "mmax": ("magnitude_max", float),
    "n": ("num_operations", int),
    "p": ("prob", float),
    "inc": ("increasing", _flag),
}


def parse_rand_augment(
    policy: str, interpolations: Sequence[Image.Resampling], fill: tuple[int, int, int]
) -> RandAugment:
    """Read a policy in timm's notation, such as `rand-m9-mstd0.5-inc1`.

    Parts, in any order: m (magnitude, default 10), mstd (its standard deviation, 0; above 100:
    uniform), mmax (upper limit, 10), n (operations per picture, 2), p (probability of each, 0.5),
    inc (1: higher means stronger, 0).

    Raises:
        UserError: the string does not start with `rand`, or a part is unknown.
    """
    kind, *parts = policy.split("-")
    if kind != "rand":
        raise UserError(
            f"augmentation policy {policy!r} is not a RandAugment one: write it like "
            "rand-m9-mstd0.5-inc1"
        )
    augment = RandAugment(interpolations, fill)
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in _PARTS:
            raise UserError(_unknown_part(policy, part))
        field, read = _PARTS[match[1]]
        try:
            changes: dict[str, Any] = {field: read(match[2])}
            augment = replace(augment, **changes)
        except ValueError as error:
            raise UserError(_unknown_part(policy, part)) from error
    return augment


def _unknown_part(policy: str, part: str) -> str:
    known = ", ".join(f"{name}<number>" for name in _PARTS)
    return f"augmentation policy {policy!r} has the unknown part {part!r}: use {known}"
