"""Objects in picture files: drawn, and listed in JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspore import Tensor
from PIL import Image
from tqdm import tqdm

from mindtwins.data.colors import Color, distinct_colors
from mindtwins.data.decode import read_pictures
from mindtwins.data.outputs import create_folder, derived_files
from mindtwins.detection import digits
from mindtwins.detection.detections import Detections
from mindtwins.detection.evaluator import Detector
from mindtwins.detection.overlay import as_labels, draw_detections
from mindtwins.detection.transforms import TestTransform
from mindtwins.files import atomic_write

# The usual colors of known classes.
PALETTES = {digits.CLASSES: digits.PALETTE}


def detect(
    detector: Detector,
    transform: TestTransform,
    files: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    *,
    least_score: float,
    skip_bad_images: bool = False,
    exif_orientation: bool = True,
) -> Iterator[dict]:
    """Find objects in image files; writes `NAME_objects.png` and `NAME_objects.json`.

    Args:
        names: of the classes, by number.
        folder: where the files go; created if it is not there.
        least_score: objects with less are left out.
        skip_bad_images: tell of unreadable images instead of raising.
        exif_orientation: turn pictures upright before objects are looked for.

    Returns:
        An iterator that works as it goes: for each readable image its `file`, the `overlay` and
        `labels` files, and `objects`, the surest first: their `name`, `score` and `bbox`; see
        `as_labels`, which is what the JSON file holds, with masks.

    Raises:
        UserError: a file is no readable image (with `skip_bad_images`: none is), a file to write is
            one of the images or to be written twice, or the folder cannot be written.
    """
    targets = derived_files(files, folder, ("_objects.png", "_objects.json"), "drawing")
    create_folder(folder)
    bar = tqdm(targets, unit="image", leave=False, disable=None)
    pictures = read_pictures(bar, skip_bad_images, exif_orientation)
    return _detect(detector, transform, pictures, targets, names, least_score)


def _detect(
    detector: Detector,
    transform: TestTransform,
    pictures: Iterator[tuple[Path, Image.Image]],
    targets: dict[Path, tuple[Path, ...]],
    names: Sequence[str],
    least_score: float,
) -> Iterator[dict]:
    detector.set_train(False)
    for file, picture in pictures:
        overlay, labels = targets[file]
        image, geometry = transform(picture)
        (found,) = detector.predict(Tensor(image[None]), [geometry])
        found = at_least(found, least_score)
        objects = as_labels(found, names)
        with atomic_write(labels) as stream:
            stream.write(json.dumps(objects, indent=2).encode() + b"\n")
        with atomic_write(overlay) as stream:
            draw_detections(picture, found, names, palette_for(names)).save(stream, format="png")
        yield {
            "file": str(file),
            "overlay": str(overlay),
            "labels": str(labels),
            "objects": [{key: one[key] for key in ("name", "score", "bbox")} for one in objects],
        }


def at_least(detections: Detections, score: float) -> Detections:
    """Those that have a score or more."""
    kept = detections.scores >= score
    masks = None if detections.masks is None else detections.masks[kept]
    return Detections(
        detections.boxes[kept], detections.scores[kept], detections.labels[kept], masks
    )


def palette_for(names: Sequence[str]) -> Sequence[Color]:
    """The colors of classes, by number: the usual ones where they are known."""
    return PALETTES.get(tuple(names)) or distinct_colors(len(names))


def describe(result: dict, top_k: int) -> str:
    """One line: the file, its surest objects, and where the drawing is."""
    objects = result["objects"]
    listing = [f"{one['name']} {100 * one['score']:.1f} %" for one in objects[:top_k]]
    more = len(objects) - len(listing)
    if more:
        listing.append(f"{more} more")
    return f"{result['file']}: {', '.join(listing) or 'nothing found'} -> {result['overlay']}"
