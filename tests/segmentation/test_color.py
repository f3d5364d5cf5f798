"""Color conversions against values that OpenCV 4.11 gave, and Python's `colorsys`."""

from __future__ import annotations

import colorsys

import numpy as np

from mindtwins.segmentation.color import hsv_to_rgb, rgb_to_hsv

RGB_TO_HSV = {
    (0, 0, 0): (0, 0, 0),
    (255, 255, 255): (0, 0, 255),
    (255, 0, 0): (0, 255, 255),
    (0, 255, 0): (60, 255, 255),
    (0, 0, 255): (120, 255, 255),
    (255, 255, 0): (30, 255, 255),
    (12, 200, 90): (72, 240, 200),
    (200, 12, 90): (168, 240, 200),
    (90, 12, 200): (133, 240, 200),
    (130, 129, 128): (15, 4, 130),
    (1, 2, 3): (105, 170, 3),
    (250, 128, 7): (15, 248, 250),
    (7, 128, 250): (105, 248, 250),
    (60, 61, 61): (90, 4, 61),
    (33, 99, 66): (75, 170, 99),
    (180, 90, 179): (150, 128, 180),
}
HSV_TO_RGB = {
    (0, 255, 255): (255, 0, 0),
    (30, 128, 200): (200, 200, 99),
    (45, 77, 13): (11, 13, 9),
    (89, 255, 128): (0, 128, 123),
    (90, 10, 250): (240, 250, 250),
    (120, 200, 100): (21, 21, 100),
    (150, 33, 66): (66, 57, 65),
    (179, 255, 255): (255, 0, 8),
    (179, 128, 90): (90, 44, 46),
    (60, 0, 77): (77, 77, 77),
    (100, 90, 0): (0, 0, 0),
    (10, 254, 255): (255, 85, 0),
}


def colors(table: dict[tuple[int, ...], tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(table), np.uint8), np.array(list(table.values()), np.uint8)


def test_opencvs_hsv() -> None:
    rgb, hsv = colors(RGB_TO_HSV)
    np.testing.assert_array_equal(rgb_to_hsv(rgb[None])[:, 0].T, hsv)


def test_opencvs_rgb() -> None:
    hsv, rgb = colors(HSV_TO_RGB)
    np.testing.assert_array_equal(hsv_to_rgb(hsv.T[:, None])[0], rgb)


def test_against_colorsys() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (1, 2000, 3), dtype=np.uint8)
    expected = np.array([colorsys.rgb_to_hsv(*color) for color in (colors[0] / 255).tolist()])
    hue, saturation, value = rgb_to_hsv(colors)[:, 0].astype(int)
    turn = np.abs(hue - 180 * expected[:, 0])
    assert np.minimum(turn, 180 - turn).max() < 0.6  # rounded, with rounded reciprocals
    assert np.abs(saturation - 255 * expected[:, 1]).max() < 0.6
    np.testing.assert_array_equal(value, colors.max(axis=2)[0])

    hsv = np.stack([colors[0, :, 0] % 180, colors[0, :, 1], colors[0, :, 2]])
    unit = (hsv.T / [180, 255, 255]).tolist()
    expected = 255 * np.array([colorsys.hsv_to_rgb(*color) for color in unit])
    difference = expected - hsv_to_rgb(hsv[:, None])[0]  # cut, not rounded
    assert difference.min() > -1e-4 and difference.max() < 1 + 1e-4
