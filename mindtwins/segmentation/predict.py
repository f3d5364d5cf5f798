"""Segmented pictures: overlays with a legend, label files, and the classes' shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mindtwins.data.colors import Color, distinct_colors
from mindtwins.data.decode import UnreadableImage, picture_size, read_pictures
from mindtwins.data.outputs import create_folder, derived_files
from mindtwins.errors import UserError
from mindtwins.execution import Inference, Model
from mindtwins.files import atomic_write
from mindtwins.models.twins import MINIMUM_SIZE
from mindtwins.segmentation import ade20k, digits
from mindtwins.segmentation.inference import Window, predict_labels
from mindtwins.segmentation.overlay import draw_overlay, write_labels
from mindtwins.segmentation.transforms import TestTransform

# The usual colors of known classes.
PALETTES = {known.CLASSES: known.PALETTE for known in (ade20k, digits)}


def segment(
    model: Model,
    transform: TestTransform,
    files: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    *,
    flip: bool = False,
    window: Window | None = None,
    skip_bad_images: bool = False,
    exif_orientation: bool = False,
) -> Iterator[dict]:
    """Segment image files; writes `NAME_overlay.png` and `NAME_labels.png`, the class numbers.

    Args:
        names: of the classes, by number.
        folder: where the pictures go; created if it is not there.
        flip, window: see `predict_labels`.
        skip_bad_images: tell of unreadable images instead of raising.
        exif_orientation: turn pictures upright before they are segmented.

    Returns:
        An iterator that segments as it goes: for each readable image its `file`, the `labels` and
        `overlay` files, and `shares`, the names of its classes with their part of the picture, the
        largest first.

    Raises:
        UserError: a file is no readable image (with `skip_bad_images`: none is) or too small, a
            file to write is one of the images or to be written twice, or the folder cannot be
            written.
    """
    endings = "_labels.png", "_overlay.png"
    targets = derived_files(files, folder, endings, "segmenting")
    for file in files:
        _check_size(file, transform, skip_bad_images, exif_orientation)
    create_folder(folder)
    palette = palette_for(names)
    bar = tqdm(targets, unit="image", leave=False, disable=None)
    pictures = read_pictures(bar, skip_bad_images, exif_orientation)
    return _segment(model, transform, pictures, targets, names, palette, flip, window)


def _segment(
    model: Model,
    transform: TestTransform,
    pictures: Iterator[tuple[Path, Image.Image]],
    targets: dict[Path, tuple[Path, ...]],
    names: Sequence[str],
    palette: Sequence[Color],
    flip: bool,
    window: Window | None,
) -> Iterator[dict]:
    inference = Inference(model)
    for file, picture in pictures:
        written, overlay = targets[file]
        labels = predict_labels(
            inference,
            [view[None] for view in transform(picture)],
            (picture.height, picture.width),
            flip=flip,
            window=window,
        )[0]
        write_labels(written, labels)
        with atomic_write(overlay) as stream:
            draw_overlay(picture, labels, names, palette).save(stream, format="png")
        yield {
            "file": str(file),
            "labels": str(written),
            "overlay": str(overlay),
            "shares": shares(labels, names),
        }


def shares(labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The names of the classes in a label map with their part of it, the largest first."""
    areas = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    order = np.argsort(-areas, kind="stable")
    return {names[i]: float(areas[i]) for i in order if areas[i] > 0}


def palette_for(names: Sequence[str]) -> Sequence[Color]:
    """The colors of classes, by number: the usual ones where they are known."""
    return PALETTES.get(tuple(names)) or distinct_colors(len(names))


def _check_size(
    file: Path, transform: TestTransform, skip_bad_images: bool, exif_orientation: bool
) -> None:
    """Check, by an image's header, that all of its views are large enough for the model.

    Raises:
        UserError: one is not, or the file is no readable image.
    """
    try:
        width, height = picture_size(file, exif_orientation)
    except UnreadableImage as error:
        if skip_bad_images:
            return
        raise UserError(f"cannot read image {file} ({error})") from error
    check_views(str(file), width, height, transform)


def check_views(name: str, width: int, height: int, transform: TestTransform) -> None:
    """Raise a UserError unless all views of a picture are large enough for the model."""
    for view_width, view_height in transform.sizes(width, height):
        if min(view_width, view_height) < MINIMUM_SIZE:
            raise UserError(
                f"{name} is {width} x {height} pixels, {view_width} x {view_height} after "
                f"resizing, but the model needs {MINIMUM_SIZE} on each side: crop the image "
                "closer to a square, or raise resize_scale or test_ratios"
            )


def describe(result: dict, top_k: int) -> str:
    """One line: the file, its largest classes, and where the overlay is."""
    shares = list(result["shares"].items())[:top_k]
    listing = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
    return f"{result['file']}: {listing} -> {result['overlay']}"
