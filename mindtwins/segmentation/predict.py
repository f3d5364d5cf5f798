"""Segmented pictures: overlays with a legend, label files, and the classes' shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindtwins.data.decode import read_picture
from mindtwins.files import atomic_write
from mindtwins.segmentation import ade20k, digits
from mindtwins.segmentation.inference import Window, predict_labels
from mindtwins.segmentation.overlay import distinct_colours, draw_overlay, write_labels
from mindtwins.segmentation.transforms import TestTransform

# The usual colours of known classes.
PALETTES = {known.CLASSES: known.PALETTE for known in (ade20k, digits)}


def segment(
    model: nn.Cell,
    transform: TestTransform,
    files: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    *,
    flip: bool = False,
    window: Window | None = None,
) -> list[dict]:
    """Segment image files; writes `NAME_overlay.png` and `NAME.png`, the class numbers.

    Args:
        names: of the classes, by number.
        folder: where the pictures go; created if it is not there.
        flip, window: see `predict_labels`.

    Returns:
        For each image its `file`, the `labels` and `overlay` files, and `shares`: the names of its
        classes with their part of the picture, the largest first.

    Raises:
        UserError: a file is no readable image, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    palette = PALETTES.get(tuple(names)) or distinct_colours(len(names))
    results = []
    for file in tqdm(files, unit="image", leave=False, disable=None):
        picture = read_picture(file)
        labels = predict_labels(
            lambda images: model(Tensor(images)).asnumpy(),
            [view[None] for view in transform(picture)],
            (picture.height, picture.width),
            flip=flip,
            window=window,
        )[0]
        written = folder / f"{file.stem}.png"
        write_labels(written, labels)
        overlay = folder / f"{file.stem}_overlay.png"
        with atomic_write(overlay) as stream:
            draw_overlay(picture, labels, names, palette).save(stream, format="png")
        areas = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        order = np.argsort(-areas, kind="stable")
        results.append(
            {
                "file": str(file),
                "labels": str(written),
                "overlay": str(overlay),
                "shares": {names[i]: float(areas[i]) for i in order if areas[i] > 0},
            }
        )
    return results


def describe(result: dict, top_k: int) -> str:
    """One line: the file, its largest classes, and where the overlay is."""
    shares = list(result["shares"].items())[:top_k]
    listing = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
    return f"{result['file']}: {listing} -> {result['overlay']}"
