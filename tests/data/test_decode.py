from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mindtwins.config import Config
from mindtwins.data.decode import (
    UnreadableImage,
    limit_pixels,
    picture_size,
    read_rgb,
    read_thumbnail,
    swaps_sides,
)
from mindtwins.errors import UserError


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_rgb(str(tmp_path / "absent.jpg"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_damage_is_one_kind_of_error(
    tmp_path: Path, photographs: list[Image.Image], suffix: str
) -> None:
    path = tmp_path / f"picture.{suffix}"
    photographs[0].crop((0, 0, 64, 48)).save(path)
    whole = path.read_bytes()
    assert read_rgb(str(path)).size == (64, 48)
    for content in (b"", b"not an image", whole[: len(whole) // 2], whole[:20]):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage) as caught:
            read_rgb(str(path))
        assert str(caught.value) and "\n" not in str(caught.value)


def test_random_bytes_changed_never_raise_anything_else(
    tmp_path: Path, photographs: list[Image.Image]
) -> None:
    path = tmp_path / "picture.jpg"
    photographs[1].crop((0, 0, 64, 48)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 700)] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert read_rgb(str(path)).mode == "RGB"
        except UnreadableImage:
            failures += 1
    assert 0 < failures < 200


def rotated(photograph: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph.crop((0, 0, 64, 48)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(
    suffix: str,
    orientation: int,
    tmp_path: Path,
    photographs: list[Image.Image],
    told: Callable,
) -> None:
    path = str(rotated(photographs[0], tmp_path / f"x.{suffix}", orientation))
    stored = Image.open(path).convert("RGB")
    # Not applied: the published accuracies were measured without.
    np.testing.assert_array_equal(read_rgb(path), stored)
    assert picture_size(path) == stored.size == (64, 48)
    notice = f"its EXIF orientation is {orientation}; --exif_orientation true turns"
    assert [notice in text for text in told()] == [True] * (orientation > 1)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    np.testing.assert_array_equal(read_rgb(path, exif_orientation=True), upright)
    assert picture_size(path, exif_orientation=True) == upright.size
    assert swaps_sides(path) == (orientation >= 5)
    assert len(told()) <= 1


def test_pillow_turns_tiff_by_itself(tmp_path: Path, photographs: list[Image.Image]) -> None:
    path = str(rotated(photographs[0], tmp_path / "x.tif", 6))
    for exif_orientation in (False, True):
        assert read_rgb(path, exif_orientation).size == picture_size(path, exif_orientation)
    np.testing.assert_array_equal(read_rgb(path, True), Image.open(path).convert("RGB"))


def test_a_damaged_orientation_is_none(tmp_path: Path, photographs: list[Image.Image]) -> None:
    path = tmp_path / "x.jpg"
    photographs[0].crop((0, 0, 64, 48)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09nonsense")
    assert read_rgb(str(path), exif_orientation=True).size == (64, 48)


def test_largest_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = str(tmp_path / "x.png")
    Image.new("L", (50, 40)).save(path)
    limit_pixels(1998)
    for read in (read_rgb, picture_size):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        message = (
            "Image size (2000 pixels) exceeds limit of 1998 pixels; allow it with --max_pixels"
        )
        assert str(caught.value) == message
    limit_pixels(2000)
    assert read_rgb(path).size == (50, 40)


def test_pillow_s_limit_is_the_default() -> None:
    before = Image.MAX_IMAGE_PIXELS
    limit_pixels(Config().max_pixels)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("name", "size"), [("x.jpg", (300, 200)), ("x.png", (90, 120))])
def test_thumbnails_fit(
    name: str, size: tuple[int, int], tmp_path: Path, photographs: list[Image.Image]
) -> None:
    photographs[0].save(tmp_path / name)
    small = read_thumbnail(str(tmp_path / name), size)
    assert small.mode == "RGB" and (small.width == size[0] or small.height == size[1])
    assert abs(small.width / small.height - 640 / 427) < 0.02
    reference = photographs[0].resize(small.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, float) - np.asarray(reference, float)).mean() < 8


def test_thumbnails_of_odd_pictures(tmp_path: Path, photographs: list[Image.Image]) -> None:
    Image.fromarray(np.full((400, 400), 25700, np.uint16)).save(tmp_path / "deep.png")
    small = np.asarray(read_thumbnail(str(tmp_path / "deep.png"), (40, 40)))
    assert small.shape == (40, 40, 3) and (small == 100).all()
    turned = str(rotated(photographs[0], tmp_path / "turned.jpg", 6))
    assert read_thumbnail(turned, (20, 20)).size == (20, 15)
    assert read_thumbnail(turned, (20, 20), exif_orientation=True).size == (15, 20)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*bad\.png \(not an image format"):
        read_thumbnail(str(tmp_path / "bad.png"), (20, 20))
