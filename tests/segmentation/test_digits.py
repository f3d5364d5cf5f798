from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.errors import UserError
from mindtwins.segmentation import digits as digits_module
from mindtwins.segmentation.digits import (
    CLASSES,
    NUM_IMAGES,
    PALETTE,
    find_digits,
    write_segmentation_digits,
)


@pytest.fixture(scope="module")
def small() -> dict[str, int]:
    return {"train": 12, "val": 5}


@pytest.fixture
def folder(small: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small version of the data set, which is made in the same way."""
    monkeypatch.setattr(digits_module, "NUM_IMAGES", small)
    return write_segmentation_digits(tmp_path / "deep" / "er" / "digits")


def test_what_a_picture_holds(folder: Path, small: dict[str, int]) -> None:
    areas = np.zeros(256, int)
    for split, count in small.items():
        pairs = find_digits(folder, split)
        assert (len(pairs), pairs.num_classes, pairs.classes) == (count, 11, CLASSES)
        for index in range(count):
            image, labels = pairs.read(index)
            assert (image.size, labels.shape) == ((128, 128), (128, 128))
            areas += np.bincount(labels.ravel(), minlength=256)
            # Strokes are brighter than the background.
            gray = np.asarray(image.convert("L"), float)
            assert gray[labels < 10].mean() > gray[labels == 10].mean() + 30
    assert areas[:11].all() and areas[255]
    assert areas[11:255].sum() == 0
    parts = areas / areas.sum()
    assert 0.55 < parts[10] < 0.8 and 0.03 < parts[255] < 0.2
    assert len(PALETTE) == len(set(PALETTE)) == 11


def test_labels_match_the_handwriting() -> None:
    """A digit alone, enlarged: its strokes lie where the ink is."""
    ink = np.zeros((1, 8, 8))
    ink[0, :, 3:5] = 1
    rng = np.random.default_rng(0)
    picture, values = digits_module._compose(ink, np.array([7]), rng)
    assert set(np.unique(values)) == {0, 8, 11}
    columns = np.flatnonzero((values[:42] == 8).any(axis=0))
    columns = columns[columns < 42]
    assert 8 <= columns[-1] - columns[0] + 1 <= 11  # two of eight columns of 36 to 42 pixels
    assert picture.dtype == np.uint8 and picture.shape == (128, 128, 3)


def test_handwriting_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two splits draw from separate digits; all are those that classification holds out."""
    from sklearn.datasets import load_digits

    monkeypatch.setattr(digits_module, "NUM_IMAGES", {"train": 1, "val": 1})
    chosen: list[np.ndarray] = []

    def compose(
        inks: np.ndarray, classes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen.append(inks * 16)
        return np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)

    monkeypatch.setattr(digits_module, "_compose", compose)
    write_segmentation_digits(tmp_path / "digits")
    train, val = chosen
    assert (len(train), len(val)) == (1442, 355)
    images = load_digits().images
    everything = sorted(image.tobytes() for image in images)
    assert sorted(image.tobytes() for image in (*train, *val)) == everything


def test_second_call_changes_nothing_and_first_is_deterministic(
    folder: Path, tmp_path: Path
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_segmentation_digits(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    again = write_segmentation_digits(tmp_path / "again")
    files = sorted(folder.glob("*/*/*.*"))
    assert len(files) == 34
    for path in files:
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_incomplete_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "digits" / "images" / "training"
    path.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(path / "0000.jpg")
    with pytest.raises(UserError, match="holds 1 of the segmentation digits' 1800 files"):
        write_segmentation_digits(tmp_path / "digits")
    assert NUM_IMAGES == {"train": 800, "val": 100}
