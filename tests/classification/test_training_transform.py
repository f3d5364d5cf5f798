from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from mindtwins.classification.transforms import (
    EvaluationTransform,
    TrainingTransform,
    jitter_colors,
    random_crop_box,
)
from mindtwins.data.normalize import Normalize
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def boxes(width: int, height: int, count: int = 4000, **limits: tuple[float, float]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array(
        [random_crop_box(width, height, rng=rng, **{**IMAGENET, **limits}) for _ in range(count)]
    )


def test_crop_area_and_ratio() -> None:
    # A narrow range of areas, where every box fits at the first attempt: both are exact.
    left, top, right, bottom = boxes(500, 500, scale=(0.08, 0.5)).T
    areas = (right - left) * (bottom - top) / 500**2
    assert stats.kstest(areas, stats.uniform(0.08, 0.42).cdf).pvalue > 0.01
    log_ratios = np.log((right - left) / (bottom - top))
    limit = np.log(4 / 3)
    assert stats.kstest(log_ratios, stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.01
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 500 and bottom.max() <= 500


def test_crop_place_is_uniform() -> None:
    left, top, right, bottom = boxes(500, 400).T
    room_x, room_y = 500 - (right - left), 400 - (bottom - top)
    for start, room in (
        (left[room_x > 50], room_x[room_x > 50]),
        (top[room_y > 50], room_y[room_y > 50]),
    ):
        assert stats.kstest((start + 0.5) / (room + 1), stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 10), (493, 0, 506, 10)),  # round(10 * 4 / 3) = 13 wide
        ((10, 1000), (0, 493, 10, 506)),  # round(10 / (3 / 4)) = 13 high
    ],
)
def test_crop_that_cannot_fit_is_central(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert (boxes(*size, count=20, scale=(0.9, 1.0)) == box).all()


def test_crop_of_the_whole_picture() -> None:
    assert (boxes(30, 30, count=5, scale=(1.0, 1.0), ratio=(1.0, 1.0)) == (0, 0, 30, 30)).all()


def transform(**options: object) -> TrainingTransform:
    plain = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "auto_augment": ""}
    return TrainingTransform(48, MEAN, STD, **{**plain, "color_jitter": 0.0, **options})


@pytest.fixture(scope="module")
def square(photographs: list[Image.Image]) -> Image.Image:
    return photographs[1].crop((200, 100, 270, 170))


def test_without_randomness_it_is_the_evaluation_transform(square: Image.Image) -> None:
    ours = transform()(square, np.random.default_rng(0))
    np.testing.assert_array_equal(ours, EvaluationTransform(48, 1.0, MEAN, STD)(square))
    assert ours.dtype == np.float32


def test_crop_then_resize(square: Image.Image) -> None:
    ours = transform(scale=(0.3, 0.6))(square, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    rng.integers(1)  # the choice among one interpolation
    box = random_crop_box(70, 70, (0.3, 0.6), (1.0, 1.0), rng)
    expected = square.crop(box).resize((48, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(ours, Normalize(MEAN, STD)(expected))


def test_flip(square: Image.Image) -> None:
    straight = transform()(square, np.random.default_rng(0))
    flips = 0
    for seed in range(400):
        ours = transform(hflip=0.3)(square, np.random.default_rng(seed))
        flipped = bool((ours != straight).any())
        np.testing.assert_array_equal(ours, straight[:, :, ::-1] if flipped else straight)
        flips += flipped
    assert flips / 400 == pytest.approx(0.3, abs=0.06)


def test_color_jitter_range_and_order(square: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):

        def enhance(self: object, factor: float, kind: type = kind) -> Image.Image:
            calls.append((kind.__name__, factor))
            return square

        monkeypatch.setattr(kind, "enhance", enhance)
    for seed in range(1500):
        jitter_colors(square, np.random.default_rng(seed), 0.4)
    orders = {tuple(name for name, _ in calls[i : i + 3]) for i in range(0, len(calls), 3)}
    assert len(orders) == 6
    for name in ("Brightness", "Contrast", "Color"):
        factors = [factor for called, factor in calls if called == name]
        assert len(factors) == 1500
        assert stats.kstest(factors, stats.uniform(0.6, 0.8).cdf).pvalue > 0.01


def test_color_jitter_only_without_rand_augment(square: Image.Image) -> None:
    def run(**options: object) -> np.ndarray:
        return transform(**options)(square, np.random.default_rng(3))

    assert (run(color_jitter=0.4) != run()).any()
    policy = "rand-m9-mstd0.5-inc1"
    np.testing.assert_array_equal(
        run(color_jitter=0.4, auto_augment=policy), run(auto_augment=policy)
    )


def test_rand_augment_fills_with_the_mean_color(square: Image.Image) -> None:
    augment = transform(auto_augment="rand-m9").change_colors
    assert augment.fill == (124, 116, 104)
    assert augment.magnitude == 9
    assert augment.interpolations == (Image.Resampling.BICUBIC,)


def test_erasing_comes_last(square: Image.Image) -> None:
    ours = transform(erasing=RandomErasing(1.0, "const"))(square, np.random.default_rng(0))
    plain = transform()(square, np.random.default_rng(0))
    erased = (ours == 0).all(axis=0)
    assert 0.015 < erased.mean() < 0.34
    np.testing.assert_array_equal(ours[:, ~erased], plain[:, ~erased])


def test_unknown_interpolation() -> None:
    with pytest.raises(UserError, match="unknown interpolation 'nearest': use bicubic"):
        transform(interpolation="nearest")


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_same_generator_same_result(square: Image.Image, interpolation: str) -> None:
    full = TrainingTransform(48, MEAN, STD, erasing=RandomErasing(), interpolation=interpolation)
    first, second = (full(square, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
