"""RoIAlign of every formulation against a plain loop, and its gradients against torch's."""

import functools
import math

import mindspore as ms
import numpy as np
import pytest
import torch
from layer_checks import FORMULATIONS, tokens
from mindspore import Tensor, nn

from mindtwins import layers
from mindtwins.reference import detection

CHANNELS = 19
SIZES = ((20, 30), (10, 15), (5, 8), (3, 4))
# image, level, and a box in pixels of the level: usual, thin, of less than a pixel, at and over the
# edges, of no area, and what names no image or level.
REGIONS = np.array(
    [
        [0, 0, 3.2, 4.1, 20.7, 17.3],
        [1, 0, -2.5, -3.5, 34, 24],
        [1, 1, 0, 0, 15, 10],
        [0, 1, 5.01, 2.3, 5.6, 9.9],
        [0, 2, 1.5, 0.5, 7.5, 1.25],
        [1, 3, -4, -3, 8, 6],
        [0, 3, -90, -8.3, 200, 7],
        [0, 3, 0.1, 0.2, 0.3, 0.4],
        [0, 0, 40, 30, 60, 50],
        [1, 2, 2, 2, 2, 4],
        [-1, 0, 1, 1, 9, 9],
        [0, 4, 1, 1, 9, 9],
    ],
    np.float32,
)
NOTHING = slice(8, None)  # of the regions: outside of the map, without area, or of no map


def maps():
    return [tokens(2, *size, CHANNELS) for size in SIZES]


def interpolate(image, y, x):
    """One sample of a map (H, W, C); 0 outside."""
    height, width = image.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def by_definition(region, bins):
    image, level, x1, y1, x2, y2 = region.astype(float)
    out = np.zeros((bins, bins, CHANNELS))
    if image < 0 or level >= len(SIZES):
        return out
    picture = maps()[int(level)][int(image)].astype(float)
    high, wide = (y2 - y1) / bins, (x2 - x1) / bins
    rows, columns = math.ceil(high), math.ceil(wide)
    for row in range(bins):
        for column in range(bins):
            for i in range(rows):
                for j in range(columns):
                    y = y1 - 0.5 + row * high + (i + 0.5) * high / rows
                    x = x1 - 0.5 + column * wide + (j + 0.5) * wide / columns
                    out[row, column] += interpolate(picture, y, x) / (rows * columns)
    return out


@functools.cache
def expected_features(bins):
    return np.stack([by_definition(region, bins) for region in REGIONS])


class Align(nn.Cell):
    """The sum of the features, each with a weight of its own, and the features."""

    def __init__(self, bins):
        super().__init__()
        self.bins = bins
        self.weights = Tensor(weights(bins))

    def construct(self, *inputs):
        out = layers.roi_align(inputs[:4], inputs[4], self.bins)
        return (out * self.weights).sum(), out


def weights(bins):
    shape = (len(REGIONS), bins, bins, CHANNELS)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bins", [7, pytest.param(14, marks=pytest.mark.slow)])
@pytest.mark.parametrize("formulation", FORMULATIONS[1:])
def test_features_and_gradients(formulation, bins):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # without a graph to build
    inputs = (*map(Tensor, maps()), Tensor(REGIONS))
    with layers.use_formulation(formulation):
        work = ms.value_and_grad(Align(bins), (0, 1, 2, 3), has_aux=True)
        (_, features), gradients = work(*inputs)
    expected = expected_features(bins)
    assert not expected[NOTHING].any() and expected[: NOTHING.start].any((1, 2, 3)).all()
    # A place of 30 pixels is rounded by 2e-6 of one, and neighbors differ by up to 6.
    np.testing.assert_allclose(features.asnumpy(), expected, atol=1e-5)

    sources = [torch.from_numpy(x).double().requires_grad_() for x in maps()]
    total = 0
    for region, weight in zip(REGIONS[: NOTHING.start], weights(bins), strict=False):
        image = sources[int(region[1])][int(region[0])].permute(2, 0, 1)
        found = detection.roi_align(image, torch.from_numpy(region[2:]).double(), bins)
        total = total + (found.permute(1, 2, 0) * torch.from_numpy(weight)).sum()
    total.backward()
    for ours, source in zip(gradients, sources, strict=True):
        np.testing.assert_allclose(ours.asnumpy(), source.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS[1:])
def test_in_a_graph(formulation):
    """More regions than are worked on together where no kernel does."""
    regions = np.tile(REGIONS, (22, 1))
    inputs = (*map(Tensor, maps()), Tensor(regions))

    class Aligned(nn.Cell):
        def construct(self, *inputs):
            return layers.roi_align(inputs[:4], inputs[4], 2)

    with layers.use_formulation(formulation):
        features = Aligned()(*inputs).asnumpy()
    expected = expected_features(2)
    np.testing.assert_allclose(features, np.tile(expected, (22, 1, 1, 1)), atol=1e-5)


def test_broken_regions_give_zeros():
    regions = np.tile(REGIONS[:1], (4, 1))
    regions[0, 2], regions[1, 5], regions[2, 0], regions[3, 1] = np.nan, np.inf, np.nan, np.nan
    features = layers.roi_align(tuple(map(Tensor, maps())), Tensor(regions), 3).asnumpy()
    assert not features.any()
