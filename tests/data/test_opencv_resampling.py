"""Resizing against values that OpenCV 4.11 gave, and against torch's bilinear interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mindtwins.data.opencv_resampling import rescaled_size, resize_image, resize_labels


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (683, 512)),
        ((640, 427), (767, 512)),
        ((300, 1000), (512, 1707)),
        ((2000, 300), (2048, 307)),
        ((683, 512), (683, 512)),
        ((512, 683), (512, 683)),
        ((5000, 2), (2048, 1)),
        ((9000, 2), (2048, 1)),  # never 0
    ],
)
def test_rescaled_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert rescaled_size(*size, (2048, 512)) == expected
    assert rescaled_size(*size, (512, 2048)) == expected


def pattern(height: int, width: int, cross: int = 0) -> np.ndarray:
    y, x, channel = np.mgrid[:height, :width, :3]
    return ((67 * y + 41 * x + 29 * channel + cross * x * y) % 256).astype(np.uint8)


OPENCV = [
    (
        (6, 7),
        0,
        [
            [0, 20, 48, 75, 102, 123],
            [38, 62, 95, 127, 159, 183],
            [86, 115, 141, 131, 157, 186],
            [134, 168, 170, 43, 46, 79],
            [182, 128, 76, 78, 116, 155],
            [120, 90, 73, 130, 133, 121],
            [12, 58, 120, 182, 116, 35],
        ],
    ),
    ((3, 2), 1, [[87, 155, 63], [165, 116, 173]]),
    (
        (9, 3),
        2,
        [
            [80, 88, 108, 128, 148, 168, 155, 138, 131],
            [192, 161, 76, 7, 37, 66, 96, 126, 137],
            [48, 62, 102, 132, 95, 59, 89, 128, 143],
        ],
    ),
]


@pytest.mark.parametrize(("size", "channel", "expected"), OPENCV)
def test_opencvs_values(size: tuple[int, int], channel: int, expected: list[list[int]]) -> None:
    resized = resize_image(pattern(5, 4, cross=13), size)
    assert resized[:, :, channel].tolist() == expected


def test_opencvs_values_at_half_the_size() -> None:
    resized = resize_image(pattern(4, 6), (3, 2))
    assert resized[:, :, 0].tolist() == [[54, 136, 154], [188, 78, 96]]


SIZES = [
    ((30, 40), (61, 53)),
    ((61, 53), (30, 40)),
    ((40, 60), (20, 30)),  # a half
    ((60, 40), (20, 10)),
    ((20, 30), (40, 60)),
    ((1, 7), (5, 3)),
    ((33, 1), (4, 9)),
    ((25, 31), (25, 90)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_up_to_rounding(source: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    exact = functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].double(), size=target, mode="bilinear"
    )
    resized = resize_image(pixels, target[::-1])
    assert (resized.dtype, resized.shape) == (np.uint8, (*target, 3))
    difference = resized - exact[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() < 1


@pytest.mark.parametrize(("source", "target"), [*SIZES, ((30, 40), (30, 40))])
def test_a_box_is_a_part_of_the_whole(source: tuple[int, int], target: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    whole = resize_image(pixels, target[::-1])
    for _ in range(10):
        top, left = (int(rng.integers(side)) for side in target)
        bottom, right = (
            int(rng.integers(top, target[0])) + 1,
            int(rng.integers(left, target[1])) + 1,
        )
        part = resize_image(pixels, target[::-1], (left, top, right, bottom))
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_same_size_changes_nothing() -> None:
    pixels = pattern(9, 11)
    np.testing.assert_array_equal(resize_image(pixels, (11, 9)), pixels)


def test_labels_have_opencvs_values() -> None:
    labels = np.arange(20, dtype=np.uint8).reshape(5, 4)
    enlarged = resize_labels(labels, (7, 6))
    assert enlarged[:, 0].tolist() == [0, 0, 4, 8, 12, 16]
    assert enlarged[0].tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert resize_labels(labels, (3, 3)).tolist() == [[0, 1, 2], [4, 5, 6], [12, 13, 14]]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_labels_are_torchs_nearest(source: tuple[int, int], target: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 150, source, dtype=np.uint8)
    expected = functional.interpolate(torch.from_numpy(labels)[None, None], size=target)
    resized = resize_labels(labels, target[::-1])
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected[0, 0].numpy())
