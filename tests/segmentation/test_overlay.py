from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.errors import UserError
from mindtwins.segmentation.ade20k import PALETTE
from mindtwins.segmentation.dataset import read_label_png
from mindtwins.segmentation.overlay import draw_overlay, write_labels

NAMES = ("wall", "sky", "chest of drawers")
COLORS = ((120, 120, 120), (6, 230, 230), (200, 0, 30))


def test_overlay(photograph: np.ndarray) -> None:
    labels = np.zeros((427, 640), np.uint8)
    labels[:300, :320] = 2
    labels[:3] = 1
    labels[420:] = 255
    sheet = draw_overlay(Image.fromarray(photograph), labels, NAMES, COLORS)
    assert sheet.mode == "RGB" and sheet.height == 427 and 740 < sheet.width < 900
    pixels = np.asarray(sheet)
    colors = np.array([*COLORS, (0, 0, 0)], float)[np.where(labels == 255, 3, labels)]
    blended = 0.4 * photograph + 0.6 * colors
    assert np.abs(pixels[:, :640] - blended).max() <= 1
    # The legend's swatches: the largest class first.
    middle = [tuple(pixels[8 + 10 + 20 * line, 640 + 14]) for line in range(5)]
    assert middle == [COLORS[0], COLORS[2], (0, 0, 0), COLORS[1], (255, 255, 255)]
    assert (pixels[8:28, 640 + 30 :].min(axis=(0, 2)) < 100).any()  # there is text


def test_small_pictures_are_enlarged(photograph: np.ndarray) -> None:
    picture = Image.fromarray(photograph[:100, :90])
    labels = np.zeros((100, 90), np.uint8)
    pixels = np.asarray(draw_overlay(picture, labels, NAMES, COLORS))
    assert pixels.shape[0] == 300  # three times as large, to 256 pixels or more
    blended = 0.4 * photograph[:100, :90] + 0.6 * np.array(COLORS[0])
    assert np.abs(pixels[::3, :270:3] - blended).max() <= 1
    np.testing.assert_array_equal(pixels[2::3, 2:270:3], pixels[::3, :270:3])


def test_long_legends_are_cut(photograph: np.ndarray) -> None:
    labels = np.arange(150, dtype=np.uint8).repeat(200).reshape(30, 1000)
    picture = Image.fromarray(np.resize(photograph, (30, 1000, 3)))
    names = tuple(f"class {number}" for number in range(150))
    pixels = np.asarray(draw_overlay(picture, labels, names, PALETTE))
    assert pixels.shape[0] == 76  # a low picture still gets three lines
    assert (pixels[30:, :1000] == 255).all()
    swatches = [tuple(pixels[18 + 20 * line, 1014]) for line in range(3)]
    assert swatches == [PALETTE[0], PALETTE[1], (255, 255, 255)]  # "and 148 more" has no color


def test_other_modes_and_sizes(photograph: np.ndarray) -> None:
    picture = Image.fromarray(photograph).convert("L")
    labels = np.zeros((427, 640), np.uint8)
    assert draw_overlay(picture, labels, NAMES, COLORS).mode == "RGB"
    with pytest.raises(ValueError, match="the picture is"):
        draw_overlay(picture, labels.T, NAMES, COLORS)


def test_written_labels_are_read_back(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 149, 255], (20, 30)).astype(np.uint8)
    write_labels(tmp_path / "x.png", labels)
    np.testing.assert_array_equal(read_label_png(str(tmp_path / "x.png")), labels)
    with pytest.raises(UserError, match="cannot write"):
        write_labels(tmp_path / "no" / "x.png", labels)


@pytest.mark.slow
def test_the_legend_grows_with_the_picture(photograph: np.ndarray) -> None:
    def swatch_height(width: int, height: int) -> int:
        picture = Image.fromarray(photograph).resize((width, height))
        sheet = draw_overlay(picture, np.full((height, width), 2, np.uint8), NAMES, COLORS)
        pixels = np.asarray(sheet)[:, width:]
        return int((pixels == COLORS[2]).all(axis=2).any(axis=1).sum())

    assert [swatch_height(*size) for size in ((640, 427), (640, 640), (300, 400))] == [13] * 3
    # 4000 x 3000 has 5.4 times the sides of 640 x 640.
    assert 64 <= swatch_height(4000, 3000) <= 68
    assert swatch_height(3000, 4000) == swatch_height(4000, 3000)
    assert 24 <= swatch_height(4000, 400) <= 26


def test_names_that_no_font_has(photograph: np.ndarray, told: Callable) -> None:
    names = ("wall", "天空\n\uffff", "chest of drawers")
    labels = np.ones((427, 640), np.uint8)
    wide = draw_overlay(Image.fromarray(photograph), labels, names, COLORS)
    narrow = draw_overlay(Image.fromarray(photograph), labels, NAMES, COLORS)
    assert wide.width > narrow.width + 40  # characters as their numbers
    (notice,) = told()
    assert "\uffff" in notice and "drawn as U+ and their number" in notice
