from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindtwins.detection import digits as digits_module
from mindtwins.detection.digits import (
    CLASSES,
    NUM_IMAGES,
    PALETTE,
    find_digits,
    write_detection_digits,
)
from mindtwins.errors import UserError


@pytest.fixture(scope="module")
def small() -> dict[str, int]:
    return {"train": 12, "val": 5}


@pytest.fixture
def folder(small: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small version of the data set, which is made in the same way."""
    monkeypatch.setattr(digits_module, "NUM_IMAGES", small)
    return write_detection_digits(tmp_path / "deep" / "er" / "digits")


def test_what_a_picture_holds(folder: Path, small: dict[str, int]) -> None:
    seen = []
    for split, count in small.items():
        data = find_digits(folder, split, masks=True, training=True)
        assert (len(data), data.num_classes, data.classes) == (count, 10, CLASSES)
        for index in range(count):
            image, objects = data.read(index)
            assert image.size == (128, 128) and 1 <= len(objects) <= 8
            seen += objects.labels.tolist()
            assert objects.masks is not None
            assert objects.masks.sum(axis=0).max() <= 1
            gray = np.asarray(image.convert("L"), float)
            for box, mask in zip(objects.boxes.astype(int), objects.masks, strict=True):
                left, top, right, bottom = box
                inner = mask[top:bottom, left:right]
                assert inner.sum() == mask.sum() > 20
                assert inner.any(axis=0)[[0, -1]].all() and inner.any(axis=1)[[0, -1]].all()
                # Strokes are brighter than what is around them.
                assert gray[mask == 1].mean() > gray[top:bottom, left:right][inner == 0].mean()
    assert len(set(seen)) == 10
    assert len(PALETTE) == len(set(PALETTE)) == 10


def test_masks_match_the_handwriting() -> None:
    """Digits that are each one stroke down: as high as their squares, and a quarter as wide."""
    ink = np.zeros((1, 8, 8))
    ink[0, :, 3:5] = 1
    picture, labels, masks = digits_module._compose(ink, np.array([7]), np.random.default_rng(0))
    assert picture.dtype == np.uint8 and picture.shape == (128, 128, 3)
    assert set(labels) == {7} and len(labels) == len(masks)
    for annotation in digits_module._annotations(labels, masks):
        _, _, width, height = annotation["bbox"]
        assert annotation["category_id"] == 8
        assert 28 <= height <= 52 and height / 4 - 1 <= width <= height / 4 + 3
        assert annotation["area"] == width * height


def test_handwriting_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two splits draw from separate digits; all are those that classification holds out."""
    monkeypatch.setattr(digits_module, "NUM_IMAGES", {"train": 1, "val": 1})
    chosen: list[int] = []
    compose = digits_module._compose

    def watch(
        inks: np.ndarray, classes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[int], np.ndarray]:
        chosen.append(len({ink.tobytes() for ink in inks}))
        return compose(inks, classes, rng)

    monkeypatch.setattr(digits_module, "_compose", watch)
    write_detection_digits(tmp_path / "digits")
    assert chosen == [1442, 355]


def test_second_call_changes_nothing_and_first_is_deterministic(
    folder: Path, tmp_path: Path
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_detection_digits(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    again = write_detection_digits(tmp_path / "again")
    files = sorted(folder.glob("*/*.*"))
    assert len(files) == 19
    for path in files:
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_incomplete_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits" / "train").mkdir(parents=True)
    (tmp_path / "digits" / "train" / "0000.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="holds 1 of the detection digits' 902 files"):
        write_detection_digits(tmp_path / "digits")
    assert NUM_IMAGES == {"train": 800, "val": 100}
