from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mindtwins.data.rand_augment import (
    INCREASING_OPERATIONS,
    OPERATIONS,
    Canvas,
    RandAugment,
    parse_rand_augment,
)
from mindtwins.errors import UserError

BICUBIC = Image.Resampling.BICUBIC
FILL = (124, 116, 104)
TIMM_INCREASING = {
    name: f"{name}Increasing"
    for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
}


class FixedSign:
    """A generator whose uniform draws are all the same: below 0.5 keeps the sign."""

    def __init__(self, negative: bool) -> None:
        self.value = 0.9 if negative else 0.1

    def random(self) -> float:
        return self.value


@pytest.fixture(scope="module")
def picture(photographs: list[Image.Image]) -> Image.Image:
    return photographs[1].crop((200, 100, 361, 225))


def moved(picture: Image.Image, source: Callable[[int, int], tuple[float, float]]) -> np.ndarray:
    """Nearest-neighbor reference of a warp: output (x, y) comes from source(x, y)."""
    pixels = np.asarray(picture)
    out = np.empty_like(pixels)
    for y in range(picture.height):
        for x in range(picture.width):
            sx, sy = source(x, y)
            inside = 0 <= sx < picture.width and 0 <= sy < picture.height
            out[y, x] = pixels[int(sy), int(sx)] if inside else FILL
    return out


# Level 9, positive sign, the increasing set: what PIL has to be called with, worked out by hand.
DEFINITIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Rotate": lambda im: im.rotate(27.0, resample=BICUBIC, fillcolor=FILL),
    "Posterize": lambda im: ImageOps.posterize(im, 1),
    "Solarize": lambda im: ImageOps.solarize(im, 26),
    "SolarizeAdd": lambda im: im.point([v + 99 if v < 128 else v for v in range(256)] * 3),
    "Color": lambda im: ImageEnhance.Color(im).enhance(1.81),
    "Contrast": lambda im: ImageEnhance.Contrast(im).enhance(1.81),
    "Brightness": lambda im: ImageEnhance.Brightness(im).enhance(1.81),
    "Sharpness": lambda im: ImageEnhance.Sharpness(im).enhance(1.81),
    "ShearX": lambda im: im.transform(
        im.size, Image.Transform.AFFINE, (1, 0.27, 0, 0, 1, 0), BICUBIC, fillcolor=FILL
    ),
    "ShearY": lambda im: im.transform(
        im.size, Image.Transform.AFFINE, (1, 0, 0, 0.27, 1, 0), BICUBIC, fillcolor=FILL
    ),
    "TranslateXRel": lambda im: im.transform(
        im.size,
        Image.Transform.AFFINE,
        (1, 0, 0.405 * im.width, 0, 1, 0),
        BICUBIC,
        fillcolor=FILL,
    ),
    "TranslateYRel": lambda im: im.transform(
        im.size,
        Image.Transform.AFFINE,
        (1, 0, 0, 0, 1, 0.405 * im.height),
        BICUBIC,
        fillcolor=FILL,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_its_pil_definition(name: str, picture: Image.Image) -> None:
    operation = INCREASING_OPERATIONS[name]
    argument = operation.argument(9.0, FixedSign(negative=False))
    ours = operation.apply(picture, argument, Canvas(BICUBIC, FILL))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(DEFINITIONS[name](picture)))


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_timms(
    name: str,
    negative: bool,
    increasing: bool,
    picture: Image.Image,
    timm_module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = timm_module("auto_augment")
    sign = FixedSign(negative)
    monkeypatch.setattr(random, "random", sign.random)
    operation = (INCREASING_OPERATIONS if increasing else OPERATIONS)[name]
    timm_name = TIMM_INCREASING.get(name, name) if increasing else name
    for level in (0.0, 2.5, 5.0, 8.99, 9.3, 10.0):
        to_argument = timm.LEVEL_TO_ARG[timm_name]
        theirs = () if to_argument is None else to_argument(level, {})
        ours = operation.argument(level, sign)
        if theirs:
            assert ours == theirs[0]
        if name == "Posterize" and ours == 0:
            continue  # Pillow refuses what timm would call it with
        expected = timm.NAME_TO_OP[timm_name](picture, *theirs, fillcolor=FILL, resample=BICUBIC)
        actual = operation.apply(picture, ours, Canvas(BICUBIC, FILL))
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("TranslateXRel", lambda x, y: (x + 16, y)),
        ("TranslateYRel", lambda x, y: (x, y + 16)),
        ("ShearX", lambda x, y: (x + 0.5 + 0.25 * (y + 0.5), y)),
        ("ShearY", lambda x, y: (x, y + 0.5 + 0.25 * (x + 0.5))),
    ],
)
def test_geometry_without_pil(
    name: str, source: Callable[[int, int], tuple[float, float]], picture: Image.Image
) -> None:
    picture = picture.crop((0, 0, 64, 64))
    canvas = Canvas(Image.Resampling.NEAREST, FILL)
    ours = OPERATIONS[name].apply(picture, 0.25, canvas)
    np.testing.assert_array_equal(np.asarray(ours), moved(picture, source))


def test_posterize_keeps_at_least_one_bit(picture: Image.Image) -> None:
    operation = INCREASING_OPERATIONS["Posterize"]
    assert operation.argument(10.0, FixedSign(False)) == 0
    ours = operation.apply(picture, 0, Canvas(BICUBIC, FILL))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture) & 0x80)


def test_same_operations_as_timm(timm_module: Callable[[str], ModuleType]) -> None:
    timm = timm_module("auto_augment")
    assert list(OPERATIONS) == timm._RAND_TRANSFORMS
    assert [TIMM_INCREASING.get(name, name) for name in INCREASING_OPERATIONS] == (
        timm._RAND_INCREASING_TRANSFORMS
    )


# Parsing -----------------------------------------------------------------------------------------


def parse(policy: str) -> RandAugment:
    return parse_rand_augment(policy, (BICUBIC,), FILL)


def test_parse() -> None:
    assert parse("rand") == RandAugment((BICUBIC,), FILL)
    assert parse("rand-m9-mstd0.5-inc1") == RandAugment(
        (BICUBIC,), FILL, magnitude=9, magnitude_std=0.5, increasing=True
    )
    assert parse("rand-n3-inc0-p0.7-mmax12-m11-mstd101") == RandAugment(
        (BICUBIC,),
        FILL,
        magnitude=11,
        magnitude_std=math.inf,
        magnitude_max=12,
        num_operations=3,
        prob=0.7,
    )


@pytest.mark.parametrize("part", ["x3", "m", "mstd", "tweights", "n1.5", "m9x", "", "M9"])
def test_unknown_part_is_named(part: str) -> None:
    with pytest.raises(UserError, match=f"unknown part '{part}'"):
        parse(f"rand-m9-{part}")


def test_other_policy() -> None:
    with pytest.raises(UserError, match="'augmix-m5' is not a RandAugment one"):
        parse("augmix-m5")


# Statistics --------------------------------------------------------------------------------------


def draws(policy: str, count: int) -> list[list[tuple[str, float]]]:
    augment, rng = parse(policy), np.random.default_rng(0)
    return [augment.draw(rng) for _ in range(count)]


def test_operations_are_applied_uniformly_and_half_of_the_time() -> None:
    count = 30_000
    applied = draws("rand-m9-mstd0.5-inc1", count)
    sizes = Counter(len(operations) for operations in applied)
    for size, share in enumerate((0.25, 0.5, 0.25)):
        assert sizes[size] / count == pytest.approx(share, abs=0.01)
    names = Counter(name for operations in applied for name, _ in operations)
    assert set(names) == set(OPERATIONS)
    for name in OPERATIONS:
        assert names[name] / count == pytest.approx(1 / 15, abs=0.006)


def test_number_and_probability_of_operations() -> None:
    sizes = [len(operations) for operations in draws("rand-m9-n4-p0.25", 10_000)]
    assert max(sizes) == 4
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.03)
    assert {len(operations) for operations in draws("rand-n3-p1", 50)} == {3}


def angles(policy: str) -> np.ndarray:
    return np.array(
        [value for drawn in draws(policy, 20_000) for name, value in drawn if name == "Rotate"]
    )


def test_levels_without_noise() -> None:
    values = angles("rand-m9-inc1")
    np.testing.assert_allclose(np.abs(values), 27.0)
    assert np.mean(values > 0) == pytest.approx(0.5, abs=0.04)


def test_levels_with_noise() -> None:
    levels = np.abs(angles("rand-m9-mstd0.5-inc1")) / 3
    assert levels.max() == 10.0  # clipped: two standard deviations above the mean
    assert np.mean(levels == 10.0) == pytest.approx(0.0228, abs=0.012)
    assert levels.mean() == pytest.approx(9.0, abs=0.05)
    assert levels.std() == pytest.approx(0.5, abs=0.04)


def test_uniform_levels_and_higher_limit() -> None:
    levels = np.abs(angles("rand-m12-mstd101-mmax12")) / 3
    np.testing.assert_allclose(np.quantile(levels, [0.25, 0.5, 0.75]), [3, 6, 9], atol=0.6)
    assert levels.max() > 11.5


def test_augment_applies_what_it_draws(picture: Image.Image) -> None:
    augment = parse("rand-m9-mstd0.5-inc1")
    for seed in range(20):
        expected = picture
        for name, argument in augment.draw(np.random.default_rng(seed)):
            canvas = Canvas(BICUBIC, FILL)
            expected = INCREASING_OPERATIONS[name].apply(expected, argument, canvas)
        ours = augment(picture, np.random.default_rng(seed))
        assert ours.size == picture.size
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_random_interpolation_uses_both(picture: Image.Image) -> None:
    both = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    augment = RandAugment(both, FILL, num_operations=1, prob=1.0)
    expected = {
        np.asarray(picture.rotate(sign * 30.0, resample=interpolation, fillcolor=FILL)).tobytes()
        for interpolation in both
        for sign in (-1, 1)
    }
    seen = set()
    for seed in range(1000):
        if augment.draw(np.random.default_rng(seed))[0][0] == "Rotate":
            seen.add(np.asarray(augment(picture, np.random.default_rng(seed))).tobytes())
    assert seen == expected
