"""Crops of real pictures, of any size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from mindtwins.data.photographs import normalized_crops, photograph_crops
from mindtwins.errors import UserError


def test_crops_are_the_photographs_in_turns_a_little_further_on():
    first, second = load_sample_images().images
    crops = photograph_crops(3, 100, 120)
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(crops[0], first[:100, :120])
    np.testing.assert_array_equal(crops[1], second[8:108, 8:128])
    np.testing.assert_array_equal(crops[2], first[16:116, 16:136])


def test_what_lies_beyond_is_mirrored():
    first, _ = load_sample_images().images
    (crop,) = photograph_crops(1, 500, 700)
    np.testing.assert_array_equal(crop[427:, :640], first[:353:-1])
    np.testing.assert_array_equal(crop[:427, 640:], first[:, :579:-1])


@pytest.mark.parametrize(("channels", "colors"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 0])])
def test_normalized(channels, colors):
    x = normalized_crops(2, channels, 40, 50)
    pixels = photograph_crops(2, 40, 50)[..., colors].transpose(0, 3, 1, 2) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (pixels - mean[colors].reshape(-1, 1, 1)) / std[colors].reshape(-1, 1, 1)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        photograph_crops(1, 32, 32)
