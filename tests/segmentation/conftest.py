"""A small data set of pictures and label files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins.segmentation.dataset import ImageLabelFolder

CLASSES = tuple("abcde")
# (width, height) of the pictures: three sizes, some more than once.
SIZES = [(60, 45), (48, 64), (60, 45), (70, 50), (60, 45), (48, 64), (60, 45), (60, 45)]


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """RGB, uint8 (427, 640, 3)."""
    return load_sample_images().images[0]


@pytest.fixture
def pair_folder(photograph: np.ndarray, tmp_path: Path) -> Path:
    """Eight pairs in `images` and `labels`; the labels 0 to 5 in blocks of 5 pixels."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, (width, height) in enumerate(SIZES):
        top, left = int(rng.integers(300)), int(rng.integers(500))
        picture = Image.fromarray(photograph[top : top + height, left : left + width])
        picture.save(tmp_path / "images" / f"{number}.jpg", quality=95)
        blocks = rng.integers(0, 6, (height // 5 + 1, width // 5 + 1), dtype=np.uint8)
        labels = blocks.repeat(5, axis=0).repeat(5, axis=1)[:height, :width]
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


@pytest.fixture
def pairs(pair_folder: Path) -> ImageLabelFolder:
    """The eight pairs as a data set of five classes, with 0 ignored."""
    return ImageLabelFolder(
        pair_folder / "images", pair_folder / "labels", CLASSES, ignore_label_zero=True
    )
