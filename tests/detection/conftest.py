"""A small data set in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import SIZES, content
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """RGB, uint8 (427, 640, 3)."""
    return load_sample_images().images[0]


@pytest.fixture
def coco_folder(photograph: np.ndarray, tmp_path: Path) -> Path:
    """`images/{0..4}.png` and `annotations.json`, which is `content()`."""
    (tmp_path / "images").mkdir()
    for number, (width, height) in enumerate(SIZES):
        picture = Image.fromarray(photograph[50 : 50 + height, 90 * number :][:, :width])
        picture.save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "annotations.json").write_text(json.dumps(content()))
    return tmp_path
