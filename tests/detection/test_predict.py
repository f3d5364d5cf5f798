"""Objects in image files: what is written, and what is refused before anything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mindtwins.detection import transforms
from mindtwins.detection.detections import Detections, Geometry
from mindtwins.detection.overlay import draw_detections
from mindtwins.detection.predict import PALETTES, describe, detect, palette_for
from mindtwins.errors import UserError

NAMES = ("cat", "dog")
TRANSFORM = transforms.TestTransform((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), scale=(64, 48))


class Halves:
    """Finds a dog in a picture's left half and, less certain, a cat in its upper half."""

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks
        self.shapes: list[tuple[int, ...]] = []

    def set_train(self, mode: bool = True) -> None:
        assert not mode

    def predict(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        self.shapes.append(images.shape)
        (geometry,) = geometries
        height, width = geometry.original_height, geometry.original_width
        boxes = np.float32([[0, 0, width / 2, height], [0, 0, width, height / 2]])
        masks = np.zeros((2, height, width), bool)
        masks[0, :, : width // 2] = masks[1, : height // 2] = True
        scores = np.float32([0.75, 0.25])
        return [Detections(boxes, scores, np.array([1, 0]), masks if self.masks else None)]


@pytest.fixture
def files(photograph: np.ndarray, tmp_path: Path) -> list[Path]:
    Image.fromarray(photograph[:60, :80]).save(tmp_path / "a.png")
    Image.fromarray(photograph[:90, :40]).save(tmp_path / "b.jpg")
    return [tmp_path / "a.png", tmp_path / "b.jpg"]


def found(files: list[Path], folder: Path, detector: Halves | None = None, **options: Any) -> list:
    options = {"least_score": 0.5, **options}
    return list(detect(detector or Halves(), TRANSFORM, files, NAMES, folder, **options))


def test_what_is_written(files: list[Path], tmp_path: Path) -> None:
    detector = Halves()
    folder = tmp_path / "out" / "put"
    first, second = found(files, folder, detector, least_score=0.2)
    assert detector.shapes == [(1, 3, 64, 64), (1, 3, 64, 32)]
    assert (first["file"], second["file"]) == tuple(map(str, files))
    assert first["objects"] == [
        {"name": "dog", "score": 0.75, "bbox": [0, 0, 40, 60]},
        {"name": "cat", "score": 0.25, "bbox": [0, 0, 80, 30]},
    ]
    objects = json.loads((folder / "b_objects.json").read_text())
    assert second["labels"] == str(folder / "b_objects.json")
    assert [(one["name"], one["label"], one["score"]) for one in objects] == [
        ("dog", 1, 0.75),
        ("cat", 0, 0.25),
    ]
    assert objects[0]["segmentation"]["size"] == [90, 40]
    geometry = TRANSFORM.geometry(80, 60)
    (expected,) = detector.predict(Tensor(np.zeros((1, 3, 64, 64))), [geometry])
    drawn = draw_detections(Image.open(files[0]), expected, NAMES, palette_for(NAMES))
    with Image.open(first["overlay"]) as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(drawn))


def test_uncertain_objects_are_left_out(files: list[Path], tmp_path: Path) -> None:
    first, _ = found(files, tmp_path, Halves(masks=False))
    assert [one["name"] for one in first["objects"]] == ["dog"]
    (one,) = json.loads((tmp_path / "a_objects.json").read_text())
    assert "segmentation" not in one
    assert describe(first, 5) == f"{files[0]}: dog 75.0 % -> {tmp_path / 'a_objects.png'}"
    nothing, _ = found(files, tmp_path, least_score=0.9)
    assert describe(nothing, 5).startswith(f"{files[0]}: nothing found -> ")
    both, _ = found(files, tmp_path, least_score=0)
    assert describe(both, 1).startswith(f"{files[0]}: dog 75.0 %, 1 more -> ")


def test_what_is_refused(files: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "a.bmp"
    with Image.open(files[0]) as image:
        image.save(twin)
    with pytest.raises(UserError, match=r"a\.png and .*a\.bmp would both be written to"):
        found([*files, twin], tmp_path / "out")
    source = tmp_path / "a_objects.png"
    files[0].rename(source)
    Image.new("RGB", (40, 40)).save(files[0])
    with pytest.raises(UserError, match=r"drawing .*a\.png would overwrite the image .*a_objects"):
        found([files[0], source], tmp_path)
    with pytest.raises(UserError, match="cannot create the folder"):
        found(files, files[1] / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_files(files: list[Path], tmp_path: Path) -> None:
    files[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*a\.png"):
        found(files, tmp_path)
    assert [one["file"] for one in found(files, tmp_path, skip_bad_images=True)] == [str(files[1])]


def test_colors() -> None:
    assert len(palette_for(NAMES)) == 2
    (digits,) = PALETTES
    assert palette_for(list(digits)) == PALETTES[digits]
