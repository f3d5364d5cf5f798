from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.decode import UnreadableImage, read_rgb


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


def test_exif_orientation_is_not_applied(tmp_path: Path, photographs: list[Image.Image]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    path = tmp_path / "rotated.jpg"
    photographs[0].save(path, exif=exif)
    assert read_rgb(str(path)).size == photographs[0].size
