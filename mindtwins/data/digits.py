"""scikit-learn's handwritten digits as image files, so that a demo takes ImageNet's own path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mindtwins.data.generated import write_generated_folder
from mindtwins.errors import UserError

SIZE = 32
VAL_EVERY = 5
NUM_IMAGES = 1797


def write_digits(folder: str | os.PathLike[str]) -> Path:
    """Write the digits data set as `folder/{train,val}/{0..9}/*.png`, unless it is there.

    The 1797 pictures of 8 x 8 pixels and 17 gray levels come with scikit-learn (the test part of
    UCI's "Optical Recognition of Handwritten Digits"). They are stored as 32 x 32 gray PNG files,
    enlarged bicubically, so that crops and shears need not move in steps of a source pixel. Every
    fifth picture of a class goes to val: 355 pictures, against 1442 in train.

    The folder appears whole or not at all, also when several processes write it at once.

    Args:
        folder: where to write; its parent folders are created.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists with other content, or cannot be written.
    """
    return write_generated_folder(
        folder, _write_images, files="*/*/*.png", count=NUM_IMAGES, name="digits"
    )


def load_digits() -> Any:
    """The digits as scikit-learn has them: `images` (1797, 8, 8) from 0 to 16, and `target`.

    Raises:
        UserError: scikit-learn is missing, which only demos need.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError(
            "the handwritten digits come with scikit-learn: pip install scikit-learn"
        ) from error
    return datasets.load_digits()


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return which of the digits belong to val, bool (n,): every fifth of its class."""
    seen = np.zeros(10, dtype=int)
    chosen = np.zeros(len(labels), dtype=bool)
    for number, label in enumerate(labels):
        seen[label] += 1
        chosen[number] = seen[label] % VAL_EVERY == 0
    return chosen


def _write_images(folder: Path) -> None:
    digits = load_digits()
    for split in ("train", "val"):
        for name in range(10):
            (folder / split / str(name)).mkdir(parents=True)
    in_val = held_out(digits.target)
    for number, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if in_val[number] else "train"
        picture = Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8))
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        picture.save(folder / split / str(label) / f"{number:04d}.png")
