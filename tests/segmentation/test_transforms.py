"""Each step against its definition, and the pipelines against the steps done one after another."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.opencv_resampling import resize_image, resize_labels
from mindtwins.data.randomness import sample_generator
from mindtwins.errors import UserError
from mindtwins.segmentation import transforms
from mindtwins.segmentation.color import hsv_to_rgb, rgb_to_hsv
from mindtwins.segmentation.transforms import (
    SegmentationTransform,
    distort_colors,
    random_crop_box,
    random_scale,
    scale_levels,
)

# ImageNet's statistics as MMSegmentation states them, and divided by 255.
MEAN_255, STD_255 = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Label map of a 427 x 640 picture: 12 classes and ignored, in blocks of 40 pixels."""
    blocks = np.random.default_rng(0).choice([*range(12), 255], (11, 16)).astype(np.uint8)
    return blocks.repeat(40, axis=0).repeat(40, axis=1)[:427]


# Steps -------------------------------------------------------------------------------------------


def test_random_scale() -> None:
    drawn = np.array(
        [random_scale((2048, 512), (0.5, 2.0), sample_generator(0, 0, i)) for i in range(2000)]
    )
    longer, shorter = drawn.T
    np.testing.assert_array_equal(longer // 4, shorter)
    assert 1024 <= longer.min() < 1040 and 4080 < longer.max() <= 4096
    # Uniform: every tenth of the range holds a tenth of the draws, give or take 4 deviations.
    counts, _ = np.histogram(longer, bins=10, range=(1024, 4096))
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200 * 0.9)
    assert random_scale((2048, 512), (0.7, 0.7), sample_generator(0, 0, 0)) == (1433, 358)


def test_crop_lies_anywhere_and_inside() -> None:
    empty = np.zeros((30, 21), np.uint8)
    boxes = np.array(
        [random_crop_box(empty, 16, 1.0, sample_generator(0, 0, i)) for i in range(600)]
    )
    np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], 16)
    assert set(boxes[:, 0]) == set(range(6)) and set(boxes[:, 1]) == set(range(15))


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (10, 12)])
def test_crop_of_a_smaller_picture(shape: tuple[int, int]) -> None:
    left, top, right, bottom = random_crop_box(
        np.zeros(shape, np.uint8), 16, 0.75, sample_generator(0, 0, 0)
    )
    assert (bottom - top, right - left) == (min(shape[0], 16), min(shape[1], 16))
    assert top >= 0 and bottom <= shape[0]
    assert left >= 0 and right <= shape[1]


def acceptable(crop: np.ndarray, category_max_ratio: float) -> bool:
    """MMSegmentation's condition."""
    values, counts = np.unique(crop, return_counts=True)
    counts = counts[values != 255]
    return len(counts) > 1 and counts.max() / counts.sum() < category_max_ratio


def test_crop_avoids_a_dominating_class() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[60:, 60:] = 1
    labels[:, :10] = 255
    for index in range(100):
        rng, again = sample_generator(0, 0, index), sample_generator(0, 0, index)
        left, top, right, bottom = random_crop_box(labels, 40, 0.75, rng)
        for attempt in range(11):
            y, x = int(again.integers(61)), int(again.integers(61))
            if attempt == 10 or acceptable(labels[y : y + 40, x : x + 40], 0.75):
                break
        assert (left, top, right, bottom) == (x, y, x + 40, y + 40)


@pytest.mark.parametrize("value", [3, 255])
def test_crop_gives_up(value: int) -> None:
    """One class alone, or none at all: the eleventh box is taken."""
    rng, again = sample_generator(0, 0, 7), sample_generator(0, 0, 7)
    box = random_crop_box(np.full((50, 50), value, np.uint8), 20, 0.75, rng)
    for _ in range(11):
        top, left = int(again.integers(31)), int(again.integers(31))
    assert box == (left, top, left + 20, top + 20)


def convert(levels: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    """MMSegmentation's PhotoMetricDistortion.convert."""
    return np.clip(levels.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def test_scale_levels() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(2, 128)
    for factor, offset in [(1.3, 0), (0.5, 0), (1, 31.9), (1, -31.9), (1, 0)]:
        ours = scale_levels(levels, factor, offset)
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, convert(levels, factor, offset))


def distort_by_the_book(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """PhotoMetricDistortion step by step, with the same draws in the same order."""
    if rng.integers(2):
        pixels = convert(pixels, beta=rng.uniform(-32, 32))
    mode = rng.integers(2)
    contrast = rng.uniform(0.5, 1.5) if rng.integers(2) else 1
    if mode == 1:
        pixels = convert(pixels, contrast)
    if rng.integers(2):
        hsv = rgb_to_hsv(pixels)
        hsv[1] = convert(hsv[1], rng.uniform(0.5, 1.5))
        pixels = hsv_to_rgb(hsv)
    if rng.integers(2):
        hsv = rgb_to_hsv(pixels)
        hsv[0] = (hsv[0].astype(int) + rng.integers(-18, 18)) % 180
        pixels = hsv_to_rgb(hsv)
    if mode == 0:
        pixels = convert(pixels, contrast)
    return pixels


def test_distort_colors(photograph: np.ndarray) -> None:
    pixels = photograph[::8, ::8]
    unchanged = 0
    for index in range(200):
        ours = distort_colors(pixels, sample_generator(1, 0, index))
        expected = distort_by_the_book(pixels, sample_generator(1, 0, index))
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, expected)
        unchanged += np.array_equal(ours, pixels)
    assert 3 <= unchanged <= 25  # a sixteenth: 12.5


def test_distortion_covers_its_ranges() -> None:
    """A mid gray shows brightness and contrast."""
    gray = np.full((1, 1, 3), 100, np.uint8)
    levels = [int(distort_colors(gray, sample_generator(2, 0, i))[0, 0, 0]) for i in range(1000)]
    assert min(levels) in range(34, 40) and max(levels) in range(190, 199)


# The training pipeline ---------------------------------------------------------------------------


def by_the_book(
    pixels: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[int, int],
    ratio_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Resize all, crop, flip, distort, normalize, pad, one after another."""
    ratio = rng.uniform(*ratio_range)
    limits = int(scale[0] * ratio), int(scale[1] * ratio)
    height, width = labels.shape
    factor = min(max(limits) / max(height, width), min(limits) / min(height, width))
    target = int(width * factor + 0.5), int(height * factor + 0.5)
    pixels, labels = resize_image(pixels, target), resize_labels(labels, target)
    for attempt in range(11):
        top = int(rng.integers(max(target[1] - size, 0) + 1))
        left = int(rng.integers(max(target[0] - size, 0) + 1))
        crop = np.s_[top : top + size, left : left + size]
        if attempt == 10 or acceptable(labels[crop], 0.75):
            break
    pixels, labels = pixels[crop], labels[crop]
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    pixels = distort_by_the_book(pixels, rng)
    picture = ((pixels - MEAN_255) / STD_255).transpose(2, 0, 1)
    missing = ((0, size - labels.shape[0]), (0, size - labels.shape[1]))
    return np.pad(picture, ((0, 0), *missing)), np.pad(labels, missing, constant_values=255)


@pytest.mark.parametrize(
    ("size", "scale"), [(128, (512, 128)), (256, (512, 200)), (96, (300, 300))]
)
def test_training_pipeline(
    size: int, scale: tuple[int, int], photograph: np.ndarray, labels: np.ndarray
) -> None:
    transform = SegmentationTransform(size, MEAN, STD, scale=scale)
    padded = 0
    for index in range(12):
        ours = transform(Image.fromarray(photograph), labels, sample_generator(4, 2, index))
        expected = by_the_book(
            photograph, labels, sample_generator(4, 2, index), size, scale, (0.5, 2.0)
        )
        assert (ours[0].dtype, ours[0].shape) == (np.float32, (3, size, size))
        assert (ours[1].dtype, ours[1].shape) == (np.int32, (size, size))
        np.testing.assert_allclose(ours[0], expected[0], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(ours[1], expected[1])
        outside = (ours[0] == 0).all(axis=0)
        padded += outside.any()
        assert (ours[1][outside] == 255).all()
    assert (padded > 0) == (size > scale[1] // 2)


def test_published_defaults(photograph: np.ndarray, labels: np.ndarray) -> None:
    transform = SegmentationTransform(512, MEAN, STD)
    ours = transform(photograph, labels, sample_generator(0, 0, 3))
    expected = by_the_book(
        photograph, labels, sample_generator(0, 0, 3), 512, (2048, 512), (0.5, 2.0)
    )
    np.testing.assert_allclose(ours[0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[1], expected[1])


def test_steps_can_be_left_out(photograph: np.ndarray, labels: np.ndarray) -> None:
    """Nothing random but the scale, which is fixed: the picture itself."""
    transform = SegmentationTransform(
        640,
        MEAN,
        STD,
        scale=(640, 427),
        ratio_range=(1.0, 1.0),
        hflip=0.0,
        photometric_distortion=False,
    )
    picture, targets = transform(photograph, labels, sample_generator(0, 0, 0))
    expected = ((photograph - MEAN_255) / STD_255).transpose(2, 0, 1)
    np.testing.assert_allclose(picture[:, :427], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(targets[:427], labels)
    assert not picture[:, 427:].any() and (targets[427:] == 255).all()


def test_bad_options() -> None:
    with pytest.raises(UserError, match=r"ratio_range is \(2.0, 0.5\)"):
        SegmentationTransform(64, MEAN, STD, ratio_range=(2.0, 0.5))
    with pytest.raises(UserError, match=r"category_max_ratio is 1.5: it must lie in 0 to 1"):
        SegmentationTransform(64, MEAN, STD, category_max_ratio=1.5)


# The test pipeline -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (512, 683)),
        ((427, 640), (512, 767)),
        ((1000, 300), (1707, 512)),
        ((300, 2000), (307, 2048)),
    ],
)
def test_test_transform(
    size: tuple[int, int], expected: tuple[int, int], photograph: np.ndarray
) -> None:
    pixels = np.resize(photograph, (*size, 3))
    (view,) = transforms.TestTransform(MEAN, STD)(Image.fromarray(pixels))
    assert (view.dtype, view.shape) == (np.float32, (3, *expected))
    resized = resize_image(pixels, expected[::-1])
    np.testing.assert_allclose(
        view, ((resized - MEAN_255) / STD_255).transpose(2, 0, 1), rtol=0, atol=1e-6
    )


def test_views_of_several_scales(photograph: np.ndarray) -> None:
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    transform = transforms.TestTransform(MEAN, STD, ratios=ratios)
    views = transform(photograph)
    assert [view.shape[1:] for view in views] == [
        (256, 384),
        (384, 576),
        (512, 767),
        (640, 959),
        (768, 1151),
        (896, 1343),
    ]
    assert transform.sizes(640, 427) == [view.shape[:0:-1] for view in views]
    (single,) = transforms.TestTransform(MEAN, STD)(photograph)
    np.testing.assert_array_equal(views[2], single)
