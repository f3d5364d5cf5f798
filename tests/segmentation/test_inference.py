"""The test protocol against the same steps written down with torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from mindtwins.segmentation.inference import Window, predict_labels, resize_logits

CLASSES = 7


def model(images: torch.Tensor) -> torch.Tensor:
    """Something with a stride of 4 that is not the same mirrored: (n, 3, h, w) to logits."""
    weight = torch.from_numpy(np.random.default_rng(5).standard_normal((CLASSES, 3, 7, 7))).float()
    return functional.conv2d(functional.pad(images, (3, 3, 3, 3)), weight, stride=4)


def forward(images: np.ndarray) -> np.ndarray:
    assert images.dtype == np.float32 and images.flags.c_contiguous
    return model(torch.from_numpy(images)).numpy()


def interpolate(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def whole(images: torch.Tensor) -> torch.Tensor:
    return interpolate(model(images), images.shape[2:])


def slide(images: torch.Tensor, crop: int, stride: int) -> torch.Tensor:
    """MMSegmentation's slide_inference, without the final resize."""
    n, _, height, width = images.shape
    sums = images.new_zeros((n, CLASSES, height, width))
    count = images.new_zeros((1, 1, height, width))
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            sums[:, :, top:bottom, left:right] += whole(images[:, :, top:bottom, left:right])
            count[:, :, top:bottom, left:right] += 1
    assert count.min() > 0
    return sums / count


def assert_same_classes(ours: np.ndarray, score: torch.Tensor, margin: float) -> None:
    """Compare where the best two scores differ by more than the rounding of float32."""
    best = score.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1]).numpy() > margin
    assert clear.mean() > 0.999
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours[clear], score.argmax(dim=1).numpy()[clear])


def pictures(*sizes: tuple[int, int], n: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((n, 3, *size), dtype=np.float32) for size in sizes]


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (128, 171), (90, 300)])
def test_resize_logits(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).standard_normal((33, 43, 150), dtype=np.float32)
    expected = interpolate(torch.from_numpy(logits).permute(2, 0, 1)[None].double(), size)
    np.testing.assert_allclose(
        resize_logits(logits, *size), expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(
    ("network", "size"),
    [((64, 86), (60, 80)), ((50, 70), (50, 70)), ((33, 64), (101, 203)), ((64, 40), (17, 9))],
)
def test_whole_images(network: tuple[int, int], size: tuple[int, int]) -> None:
    (images,) = pictures(network)
    ours = predict_labels(forward, [images], size)
    assert_same_classes(ours, interpolate(whole(torch.from_numpy(images)), size), 1e-4)


@pytest.mark.parametrize(
    ("network", "crop", "stride"),
    [((64, 86), 32, 21), ((64, 64), 32, 32), ((24, 100), 32, 20), ((20, 24), 32, 16)],
)
def test_sliding_windows(network: tuple[int, int], crop: int, stride: int) -> None:
    (images,) = pictures(network)
    ours = predict_labels(forward, [images], (70, 90), window=Window(crop, stride))
    expected = interpolate(slide(torch.from_numpy(images), crop, stride), (70, 90))
    assert_same_classes(ours, expected, 1e-4)


@pytest.mark.parametrize("window", [None, Window(32, 21)])
def test_several_scales_and_flips(window: Window | None) -> None:
    size = (60, 81)
    views = pictures((32, 43), (64, 86), (96, 130))
    ours = predict_labels(forward, views, size, flip=True, window=window)
    seen: Callable[[torch.Tensor], torch.Tensor] = (
        whole if window is None else lambda images: slide(images, window.size, window.stride)
    )
    total = torch.zeros(2, CLASSES, *size)
    for view in map(torch.from_numpy, views):
        total += interpolate(seen(view), size).softmax(dim=1)
        total += interpolate(seen(view.flip(3)), size).softmax(dim=1).flip(3)
    assert_same_classes(ours, total / 6, 1e-5)


def test_flip_alone_matters() -> None:
    views = pictures((64, 86))
    assert (
        predict_labels(forward, views, (60, 80))
        != predict_labels(forward, views, (60, 80), flip=True)
    ).any()


def test_pictures_do_not_depend_on_their_batch() -> None:
    (images,) = pictures((64, 86), n=3)
    together = predict_labels(forward, [images], (60, 80))
    for image, labels in zip(images, together, strict=True):
        np.testing.assert_array_equal(predict_labels(forward, [image[None]], (60, 80))[0], labels)
