"""Handwritten digits pasted on textures, in ADE20K's layout: a data set for a demo.

The digits come with scikit-learn; everything else is drawn from a fixed seed. A pixel of a digit's
stroke belongs to the class of the digit, the rest to the background; the blurred rim of a stroke is
ignored (0 in the label files, as in ADE20K, whose classes are counted from 1).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from mindtwins.data.colors import distinct_colors
from mindtwins.data.digits import held_out, load_digits
from mindtwins.data.generated import write_generated_folder
from mindtwins.data.textures import PICTURE, blots, draw_digit
from mindtwins.segmentation.ade20k import SPLITS
from mindtwins.segmentation.dataset import ImageLabelFolder, find_pairs

CLASSES = (*"0123456789", "background")
PALETTE = (*distinct_colors(10), (70, 70, 70))
NUM_IMAGES = {"train": 800, "val": 100}

SIZE = PICTURE
CELL = 42  # an image has 3 x 3 cells, and in each of them there is at most one digit
DIGIT_SIZES = (36, 42)
OCCUPIED = 0.85  # part of the cells that have a digit
# Of the ink, 0 to 1: a pixel with more than the first is a stroke's, one with less than the second
# the background's.
STROKE, BLANK = 0.5, 0.2
# Ranges of the mean levels of the three colors: dark backgrounds, bright strokes.
BACKGROUND_LEVELS, STROKE_LEVELS = (0, 130), (130, 255)
SEED = 20


def write_segmentation_digits(folder: str | os.PathLike[str]) -> Path:
    """Write `folder/{images,annotations}/{training,validation}/*`, unless they are there.

    800 pictures of 128 x 128 pixels to train and 100 to validate, with up to nine digits each. The
    handwriting in the validation pictures does not occur in the others: it is the part that the
    demo of classification validates with.

    The folder appears whole or not at all, also when several processes write it at once.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists with other content, or cannot be written.
    """
    return write_generated_folder(
        folder,
        _write_images,
        files="*/*/*.*",
        count=2 * sum(NUM_IMAGES.values()),
        name="segmentation digits",
    )


def find_digits(folder: str | os.PathLike[str], split: str) -> ImageLabelFolder:
    """Return the pairs of a split, "train" or "val"."""
    return find_pairs(folder, SPLITS[split], CLASSES, ignore_label_zero=True)


def _write_images(folder: Path) -> None:
    digits = load_digits()
    in_val = held_out(digits.target)
    for number, (split, count) in enumerate(NUM_IMAGES.items()):
        rng = np.random.Generator(np.random.Philox([SEED, number]))
        chosen = np.flatnonzero(in_val == (split == "val"))
        for kind in ("images", "annotations"):
            (folder / kind / SPLITS[split]).mkdir(parents=True)
        for index in range(count):
            picture, labels = _compose(digits.images[chosen] / 16, digits.target[chosen], rng)
            name = f"{SPLITS[split]}/{index:04d}"
            Image.fromarray(picture).save(folder / "images" / f"{name}.jpg", quality=95)
            Image.fromarray(labels).save(folder / "annotations" / f"{name}.png")


def _compose(
    inks: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One picture, uint8 (SIZE, SIZE, 3), and the values of its label file, uint8 (SIZE, SIZE).

    Args:
        inks: the digits to choose from, 0 to 1, (n, 8, 8).
        classes: what they are, 0 to 9, (n,).
    """
    picture = blots(SIZE, rng.uniform(*BACKGROUND_LEVELS, 3), rng)
    labels = np.full((SIZE, SIZE), len(CLASSES), dtype=np.uint8)
    for corner in np.ndindex(SIZE // CELL, SIZE // CELL):
        if rng.random() > OCCUPIED:
            continue
        which = rng.integers(len(inks))
        size = int(rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        top, left = np.array(corner) * CELL + rng.integers(CELL - size + 1, size=2)
        cell = np.s_[top : top + size, left : left + size]
        ink = draw_digit(picture[cell], inks[which], STROKE_LEVELS, rng)
        labels[cell][ink > BLANK] = 0
        labels[cell][ink > STROKE] = classes[which] + 1
    return picture.clip(0, 255).astype(np.uint8), labels
