"""Handwritten digits scattered on textures, in COCO's format: a data set for a demo.

The digits come with scikit-learn; everything else is drawn from a fixed seed. A digit's mask is its
strokes, without their blurred rims, and its box is the mask's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mindtwins.data.colors import distinct_colors
from mindtwins.data.digits import held_out, load_digits
from mindtwins.data.generated import write_generated_folder
from mindtwins.data.textures import PICTURE, blots, draw_digit
from mindtwins.detection.dataset import CocoDataset, find_coco
from mindtwins.detection.run_lengths import encode_masks

CLASSES = tuple("0123456789")
PALETTE = distinct_colors(10)
NUM_IMAGES = {"train": 800, "val": 100}

SIZE = PICTURE
DIGIT_SIZES = (28, 52)
MOST_DIGITS = 8
# A digit is placed where it overlaps no other's square by more pixels than this on both axes.
OVERLAP = 4
# A pixel with more ink, 0 to 1, is a stroke's.
STROKE = 0.5
# Ranges of the mean levels of the three colors: dark backgrounds, bright strokes.
BACKGROUND_LEVELS, STROKE_LEVELS = (0, 130), (130, 255)
SEED = 21


def write_detection_digits(folder: str | os.PathLike[str]) -> Path:
    """Write `folder/{train,val}/*.jpg` and `folder/annotations/*.json`, unless they are there.

    800 pictures of 128 x 128 pixels to train and 100 to validate, with up to eight digits each. The
    handwriting in the validation pictures does not occur in the others: it is the part that the
    demo of classification validates with.

    The folder appears whole or not at all, also when several processes write it at once.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists with other content, or cannot be written; or scikit-learn or
            pycocotools is missing.
    """
    return write_generated_folder(
        folder,
        _write_images,
        files="*/*.*",
        count=sum(NUM_IMAGES.values()) + len(NUM_IMAGES),
        name="detection digits",
    )


def find_digits(
    folder: str | os.PathLike[str], split: str, *, masks: bool = False, training: bool = False
) -> CocoDataset:
    """Return the pictures of a split, "train" or "val"; see `CocoDataset`."""
    return find_coco(folder, split, classes=CLASSES, masks=masks, training=training)


def _write_images(folder: Path) -> None:
    digits = load_digits()
    in_val = held_out(digits.target)
    (folder / "annotations").mkdir()
    for number, (split, count) in enumerate(NUM_IMAGES.items()):
        rng = np.random.Generator(np.random.Philox([SEED, number]))
        chosen = np.flatnonzero(in_val == (split == "val"))
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            picture, labels, masks = _compose(
                digits.images[chosen] / 16, digits.target[chosen], rng
            )
            name = f"{index:04d}.jpg"
            Image.fromarray(picture).save(folder / split / name, quality=95)
            images.append({"id": index + 1, "file_name": name, "width": SIZE, "height": SIZE})
            for annotation in _annotations(labels, masks):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": index + 1, **annotation}
                )
        content = {
            "images": images,
            "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(CLASSES)],
            "annotations": annotations,
        }
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))


def _annotations(labels: list[int], masks: np.ndarray) -> list[dict[str, Any]]:
    """What an annotation file says of the objects of a picture."""
    found = []
    for label, mask, code in zip(labels, masks, encode_masks(masks), strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        found.append(
            {
                "category_id": 1 + label,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": code,
            }
        )
    return found


def _compose(
    inks: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """One picture with its digits.

    Args:
        inks: the digits to choose from, 0 to 1, (n, 8, 8).
        classes: what they are, 0 to 9, (n,).

    Returns:
        uint8 (SIZE, SIZE, 3); the labels of m digits; their masks, bool (m, SIZE, SIZE).
    """
    picture = blots(SIZE, rng.uniform(*BACKGROUND_LEVELS, 3), rng)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    squares: list[tuple[int, int, int]] = []
    for _ in range(int(rng.integers(1, MOST_DIGITS + 1))):
        size = int(rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        top, left = rng.integers(SIZE - size + 1, size=2).tolist()
        if any(_overlaps((top, left, size), square) for square in squares):
            continue
        squares.append((top, left, size))
        which = rng.integers(len(inks))
        cell = np.s_[top : top + size, left : left + size]
        ink = draw_digit(picture[cell], inks[which], STROKE_LEVELS, rng)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[cell] = ink > STROKE
        for other in masks:  # a later digit lies over the earlier ones
            other &= ~mask
        labels.append(int(classes[which]))
        masks.append(mask)
    return picture.clip(0, 255).astype(np.uint8), labels, np.stack(masks)


def _overlaps(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two squares (top, left, size) overlap by more than a few pixels on both axes."""
    return all(
        min(one[axis] + one[2], other[axis] + other[2]) - max(one[axis], other[axis]) > OVERLAP
        for axis in (0, 1)
    )
