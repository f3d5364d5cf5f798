"""Each step against its definition, and the transforms against the steps done one after another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.opencv_resampling import resize_image, resize_labels
from mindtwins.data.randomness import sample_generator
from mindtwins.detection import transforms
from mindtwins.detection.dataset import Objects
from mindtwins.detection.transforms import (
    DetectionTransform,
    crop,
    flip,
    padded,
    random_crop_box,
    resize,
)
from mindtwins.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# ImageNet's statistics as MMDetection states them.
MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Replay:
    """A generator that gives prepared draws, and checks what they are drawn from."""

    def __init__(self, draws: list[Any]) -> None:
        self.draws = draws

    def integers(self, *bounds: int) -> int:
        value, *expected = self.draws.pop(0)
        assert list(bounds) == expected
        return value

    def random(self) -> float:
        return self.draws.pop(0)


def replay(*draws: Any) -> np.random.Generator:
    return cast(np.random.Generator, Replay(list(draws)))


@pytest.fixture
def objects() -> Objects:
    """Three objects in a picture of 640 x 427; the masks are not those of the boxes."""
    boxes = np.array([[10.5, 20, 300.25, 400], [-5, 0, 12, 450], [600, 1, 640, 30]], np.float32)
    masks = np.random.default_rng(0).integers(0, 2, (3, 427, 640), dtype=np.uint8)
    return Objects(boxes, np.array([4, 0, 4]), masks)


NOTHING = Objects(
    np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 427, 640), np.uint8)
)


def test_resize(photograph: np.ndarray, objects: Objects) -> None:
    pixels, resized = resize(photograph, objects, (1333, 800))
    np.testing.assert_array_equal(pixels, resize_image(photograph, (1199, 800)))
    factor = np.float32([1199 / 640, 800 / 427])
    expected = objects.boxes.reshape(3, 2, 2) * factor
    expected = expected.clip(0, np.float32([1199, 800])).reshape(3, 4)
    np.testing.assert_array_equal(resized.boxes, expected)
    assert resized.boxes.dtype == np.float32
    np.testing.assert_array_equal(resized.labels, objects.labels)
    assert objects.masks is not None and resized.masks is not None
    for mask, before in zip(resized.masks, objects.masks, strict=True):
        np.testing.assert_array_equal(mask, resize_labels(before, (1199, 800)))
    nothing = resize(photograph, NOTHING, (1333, 800))[1]
    assert nothing.masks is not None and nothing.masks.shape == (0, 800, 1199)
    assert nothing.boxes.shape == (0, 4)
    assert resize(photograph, Objects(objects.boxes, objects.labels), (99, 99))[1].masks is None


def test_what_has_no_area_in_float32_is_left_out() -> None:
    """0.000001 of a pixel at the right border, which float64 sees."""
    boxes = np.array([[10, 5, 20, 15], [639.999999, 10, 659.999999, 40]], np.float32)
    masks = np.zeros((2, 30, 640), np.uint8)
    masks[0, 5:15, 10:20] = 1
    _, left = resize(
        np.zeros((30, 640, 3), np.uint8), Objects(boxes, np.arange(2), masks), (640, 30)
    )
    assert left.boxes.tolist() == [[10, 5, 20, 15]] and left.labels.tolist() == [0]
    np.testing.assert_array_equal(left.masks, masks[:1])


def test_flip(photograph: np.ndarray, objects: Objects) -> None:
    pixels, flipped = flip(photograph, objects)
    np.testing.assert_array_equal(pixels, photograph[:, ::-1])
    expected = [[339.75, 20, 629.5, 400], [628, 0, 645, 450], [0, 1, 40, 30]]
    np.testing.assert_array_equal(flipped.boxes, np.float32(expected))
    assert objects.masks is not None and flipped.masks is not None
    np.testing.assert_array_equal(flipped.masks, objects.masks[:, :, ::-1])


def test_crop(photograph: np.ndarray, objects: Objects) -> None:
    """Boxes are moved and cut; those that only touch the part are dropped."""
    pixels, cropped = crop(photograph, objects, (12, 25, 600, 300))
    np.testing.assert_array_equal(pixels, photograph[25:300, 12:600])
    np.testing.assert_array_equal(cropped.boxes, np.float32([[0, 0, 288.25, 275]]))
    assert cropped.labels.tolist() == [4]
    assert objects.masks is not None and cropped.masks is not None
    np.testing.assert_array_equal(cropped.masks, objects.masks[:1, 25:300, 12:600])
    nothing = crop(photograph, objects, (400, 100, 500, 200))[1]
    assert (len(nothing), nothing.boxes.shape) == (0, (0, 4))
    assert nothing.masks is not None and nothing.masks.shape == (0, 100, 100)


@pytest.mark.parametrize(
    ("draws", "box"),
    [
        ([(400, 384, 501), (384, 384, 601), (0, 101), (216, 417)], (216, 0, 600, 400)),
        ([(500, 384, 501), (600, 384, 601), (0, 1), (200, 201)], (200, 0, 800, 500)),
    ],
)
def test_random_crop_box(draws: list[Any], box: tuple[int, ...]) -> None:
    assert random_crop_box(500, 800, (384, 600), replay(*draws)) == box


def test_sides_shorter_than_a_crop_stay_whole() -> None:
    draws = [(100, 100, 101), (390, 384, 401), (0, 1), (10, 11)]
    assert random_crop_box(100, 400, (384, 600), replay(*draws)) == (10, 0, 400, 100)


def test_single_scale(photograph: np.ndarray, objects: Objects) -> None:
    """Resized, then flipped; normalized, then padded with zeros."""
    transform = DetectionTransform(MEAN, STD)
    for draw, flips in ((0.49, True), (0.5, False)):
        sample = transform(Image.fromarray(photograph), objects, replay(draw))
        pixels, expected = resize(photograph, objects, (1333, 800))
        if flips:
            pixels, expected = flip(pixels, expected)
        assert (sample.height, sample.width) == (800, 1199)
        assert (sample.picture.shape, sample.picture.dtype) == ((3, 800, 1216), np.float32)
        normalized = (pixels - np.float32(MEAN_255)) / np.float32(STD_255)
        inner = sample.picture[:, :, :1199].transpose(1, 2, 0)
        np.testing.assert_allclose(inner, normalized, rtol=0, atol=1e-6)
        assert not sample.picture[:, :, 1199:].any()
        np.testing.assert_array_equal(sample.objects.boxes, expected.boxes)
        assert sample.objects.masks is not None and expected.masks is not None
        np.testing.assert_array_equal(sample.objects.masks, expected.masks)


def test_multi_scale_without_a_crop(photograph: np.ndarray, objects: Objects) -> None:
    """Flipped, then resized to one of eleven sizes."""
    transform = DetectionTransform(MEAN, STD, multi_scale=True)
    sample = transform(photograph, objects, replay(0.1, (0, 2), (3, 11)))
    pixels, expected = resize(*flip(photograph, objects), (1333, 576))
    assert (sample.height, sample.width) == pixels.shape[:2] == (576, 863)
    np.testing.assert_array_equal(sample.objects.boxes, expected.boxes)
    assert sample.objects.masks is not None and expected.masks is not None
    np.testing.assert_array_equal(sample.objects.masks, expected.masks)


def test_multi_scale_with_a_crop(photograph: np.ndarray, objects: Objects) -> None:
    transform = DetectionTransform(MEAN, STD, multi_scale=True)
    draws = [(1, 2), (1, 3), (450, 384, 501), (384, 384, 601), (7, 51), (300, 366), (10, 11)]
    sample = transform(photograph, objects, replay(0.9, *draws))
    pixels, expected = resize(photograph, objects, (1333, 500))
    pixels, expected = crop(pixels, expected, (300, 7, 684, 457))
    pixels, expected = resize(pixels, expected, (1333, 800))
    assert (sample.height, sample.width) == pixels.shape[:2] == (938, 800)
    assert sample.picture.shape == (3, 960, 800)
    np.testing.assert_array_equal(sample.objects.boxes, expected.boxes)
    assert sample.objects.masks is not None and expected.masks is not None
    np.testing.assert_array_equal(sample.objects.masks, expected.masks)


def test_draws_depend_on_their_place_alone(photograph: np.ndarray, objects: Objects) -> None:
    transform = DetectionTransform(MEAN, STD, multi_scale=True)
    part = photograph[:100, :120]
    small = Objects(objects.boxes, objects.labels)

    def draw(epoch: int, index: int) -> bytes:
        return transform(part, small, sample_generator(3, epoch, index)).picture.tobytes()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(epoch, index) for epoch in range(3) for index in range(2)}) > 3


def test_test_transform(photograph: np.ndarray) -> None:
    picture, geometry = transforms.TestTransform(MEAN, STD)(Image.fromarray(photograph))
    assert (geometry.height, geometry.width) == (800, 1199)
    assert (geometry.original_height, geometry.original_width) == (427, 640)
    expected = np.float32([1.8734375, 1.8735363, 1.8734375, 1.8735363])
    np.testing.assert_array_equal(geometry.scale_factor, expected)
    assert geometry.scale_factor.dtype == np.float32
    sample = DetectionTransform(MEAN, STD)(photograph, NOTHING, replay(0.9))
    np.testing.assert_array_equal(picture, sample.picture)


@pytest.mark.parametrize(
    ("side", "expected"), [(1, 32), (31, 32), (32, 32), (33, 64), (1333, 1344)]
)
def test_padding(side: int, expected: int) -> None:
    assert padded(side, 7) == (expected, 32)


@pytest.mark.parametrize("kind", [transforms.TestTransform, DetectionTransform])
def test_scales_that_cannot_be(kind: Any) -> None:
    for scale in ((0, 800), (800,)):
        with pytest.raises(UserError, match=r"resize_scale is .*: give two sides"):
            kind(MEAN, STD, scale=scale)


# MMDetection's own -------------------------------------------------------------------------------


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "fixtures" / "transforms.npz"))


@pytest.mark.parametrize("name", ["single_0", "single_1", *(f"multi_{n}" for n in range(6))])
def test_as_mmdetection(theirs: dict[str, np.ndarray], name: str) -> None:
    """Bit for bit with the same draws, in the same order."""
    masks = np.unpackbits(theirs["masks"], axis=-1)[:, :, :151]
    before = Objects(theirs["boxes"], theirs["labels"], masks)
    flips, *draws = theirs[f"{name}_draws"].tolist()
    # Its 0 stands for the flip. It draws sizes of crops between two bounds, all else from 0 on.
    draws = [(value, stop) if not start else (value, start, stop) for value, start, stop in draws]
    given = replay(float(flips[0]), *draws)
    transform = DetectionTransform(MEAN, STD, multi_scale=name.startswith("multi"))
    pixels: list[np.ndarray] = []
    transform.normalize = watched(transform.normalize, pixels)
    sample = transform(theirs["picture"], before, given)
    assert not cast(Any, given).draws
    assert pixels[0].shape == tuple(theirs[f"{name}_shape"])
    assert digest(pixels[0]) == theirs[f"{name}_pixels_sha256"]
    np.testing.assert_array_equal(sample.objects.boxes, theirs[f"{name}_boxes"])
    np.testing.assert_array_equal(sample.objects.labels, theirs[f"{name}_labels"])
    assert sample.objects.masks is not None
    assert sample.objects.masks.shape == tuple(theirs[f"{name}_masks_shape"])
    assert digest(sample.objects.masks) == theirs[f"{name}_masks_sha256"]


def watched(normalize: Any, seen: list[np.ndarray]) -> Any:
    """Normalizes, and keeps what it was given."""

    def normalize_and_keep(pixels: np.ndarray, out: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return normalize(pixels, out=out)

    return normalize_and_keep
