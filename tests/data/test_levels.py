from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.decode import read_rgb

SIXTEEN = np.array([[0, 128, 129, 255, 256, 385, 386, 32896, 65278, 65535]], np.uint16)
# Divided by 257 and rounded.
SCALED = [0, 0, 1, 1, 1, 1, 2, 128, 254, 255]


def gray(values: np.ndarray, path: Path) -> list[int]:
    """The levels that come back from a file of these values."""
    Image.fromarray(values).save(path)
    pixels = np.asarray(read_rgb(str(path)))
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_divided_by_257(suffix: str, tmp_path: Path, told: Callable) -> None:
    assert gray(SIXTEEN, tmp_path / f"x.{suffix}") == SCALED
    assert told() == []


def test_big_endian_tiff(tmp_path: Path) -> None:
    Image.fromarray(SIXTEEN.astype(">u2")).save(tmp_path / "x.tif")
    assert Image.open(tmp_path / "x.tif").mode == "I;16B"
    assert np.asarray(read_rgb(str(tmp_path / "x.tif")))[0, :, 0].tolist() == SCALED


def test_every_level_of_8_bits_comes_back(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16)[None]
    assert gray(levels * 257, tmp_path / "x.png") == list(range(256))


def test_white_may_be_zero(tmp_path: Path) -> None:
    Image.fromarray(SIXTEEN).save(tmp_path / "x.tif", tiffinfo={262: 0})
    if Image.open(tmp_path / "x.tif").tag_v2[262] != 0:
        pytest.skip("this Pillow does not write such files")
    inverted = np.asarray(read_rgb(str(tmp_path / "x.tif")))[0, :, 0].tolist()
    assert inverted == [255 - level for level in SCALED]


def test_dark_pictures_of_16_bits_are_told_once(tmp_path: Path, told: Callable) -> None:
    values = np.array([[0, 2570, 4095]], np.uint16)  # 12 bits in 16
    assert gray(values, tmp_path / "a.png") == gray(values, tmp_path / "b.png") == [0, 10, 16]
    (notice,) = told()
    assert notice.startswith(f"notice: {tmp_path}/a.png: its largest value is 4095 of 65535")


@pytest.mark.parametrize(
    ("values", "levels", "notice"),
    [
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255], "32 bits from 0 to 255, taken as 0 for"),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255], "0 for black and 65535 for white"),
        (np.array([[-1024, 0, 3071]], np.int32), [0, 64, 255], "-1024 for black and 3071 for"),
        (np.array([[0, 10**6, 2 * 10**6]], np.int32), [0, 128, 255], "0 for black and 2e+06 for"),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], None),
        (np.array([[0, 12.5, 254.6]], np.float32), [0, 12, 254], "floats from 0 to 254.6"),
        (np.array([[0, 25700, 60000]], np.float32), [0, 100, 233], "and 65535 for white"),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255], "-1 for black and 1 for white"),
        (np.array([[np.nan, 1, np.inf, 3, -np.inf]], np.float32), [0, 1, 255, 3, 0], "1 to 3"),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0], None),
        (np.array([[5e5, 5e5]], np.float32), [0, 0], "floats from 500000 to 500000"),
    ],
)
def test_values_without_a_white_of_their_own(
    values: np.ndarray, levels: list[int], notice: str | None, tmp_path: Path, told: Callable
) -> None:
    assert gray(values, tmp_path / "x.tif") == levels
    assert [notice in text for text in told()] == ([] if notice is None else [True])


def test_other_pictures_of_that_scale_are_not_told(tmp_path: Path, told: Callable) -> None:
    for number, peak in enumerate((3000, 4000, 5000)):
        gray(np.array([[-peak, peak]], np.int32), tmp_path / f"{number}.tif")
    (notice,) = told()
    assert notice.startswith(f"notice: {tmp_path}/0.tif: integers of 32 bits from -3000 to 3000")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_other_modes_are_as_pillow_converts_them(
    mode: str, photographs: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / ("x.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "x.tif")
    if mode == "LAB":
        Image.merge("LAB", photographs[0].crop((0, 0, 90, 60)).split()).save(path)
    else:
        photographs[0].crop((0, 0, 90, 60)).convert(mode).save(path)
    expected = Image.open(path).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_rgb(str(path))), np.asarray(expected))
