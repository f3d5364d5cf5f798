"""Annotation files in COCO's format, read and checked as a whole before anything starts."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

from mindtwins.data.decode import most_pixels
from mindtwins.detection.run_lengths import SHORTEST_POLYGON, are_finite, describe_flaw
from mindtwins.errors import UserError
from mindtwins.files import read_file

# What each entry of a list has to have, with its type in JSON.
_ID: tuple[type, ...] = (int, str)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": _ID, "file_name": (str,), "width": (int,), "height": (int,)},
    "categories": {"id": (int,), "name": (str,)},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": (int,), "bbox": (list,)},
}
_KINDS = {int: "a whole number", str: "a text", list: "a list"}
_ONE = {"images": "image", "categories": "category", "annotations": "annotation"}


@dataclass(frozen=True)
class AnnotationFile:
    """The content of a sound annotation file.

    Attributes:
        path: of the file.
        images: its pictures by their ids, in the file's order.
        categories: the names of its categories by their ids, in the file's order.
        annotations: its annotations in the file's order; each has an `iscrowd` and an `area`.
    """

    path: str
    images: dict[int | str, dict[str, Any]]
    categories: dict[int, str]
    annotations: list[dict[str, Any]]


def read_annotations(path: str | os.PathLike[str], masks: bool = False) -> AnnotationFile:
    """Read an annotation file in COCO's format.

    Where an annotation states no area, its box's is taken; where it does not say whether it is a
    crowd, it is none. Polygons of less than three corners, which cover nothing, are left out.

    Args:
        masks: whether the segmentations are needed, and so are checked.

    Raises:
        UserError: the file cannot be read, lacks something, contradicts itself, or holds a box or
            (with `masks`) a segmentation that cannot be.
    """
    path = os.fspath(path)
    data = _load(path)
    images = _entries(data, "images", path)
    categories = _entries(data, "categories", path)
    if len(set(map(type, images))) > 1:
        _refuse(path, "some of the image ids are numbers and some are texts")
    for image in images.values():
        width, height = image["width"], image["height"]
        if width < 1 or height < 1:
            _refuse(
                path,
                f"image {image['id']!r} is {_in_words(width)} x {_in_words(height)} pixels",
            )
        if width * height > most_pixels():
            raise UserError(
                f"the annotation file {path} says that image {image['id']!r} is "
                f"{_in_words(width)} x {_in_words(height)} pixels, but pictures of more than "
                f"{most_pixels()} are refused: correct it, or allow it with --max_pixels"
            )
    names = {number: " ".join(category["name"].split()) for number, category in categories.items()}
    name, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        _refuse(path, f"{count} categories are called {name!r}")
    annotations = [
        _complete(annotation, images, names, path, masks)
        for annotation in _entries(data, "annotations", path).values()
    ]
    return AnnotationFile(path, images, names, annotations)


def _load(path: str) -> dict[str, Any]:
    try:
        data = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the annotation file {path}: it is no JSON ({error}); fetch or write it "
            "anew"
        ) from error
    if not isinstance(data, dict):
        _refuse(path, f"it holds a {type(data).__name__} rather than an object of lists")
    return data


def _entries(data: dict[str, Any], kind: str, path: str) -> dict[Any, dict[str, Any]]:
    """The entries of a list by their ids."""
    entries = data.get(kind)
    if not isinstance(entries, list):
        _refuse(path, f"it has no list of {kind}")
    if not entries and kind != "annotations":
        _refuse(path, f"its list of {kind} is empty")
    found: dict[Any, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        for field, types in _FIELDS[kind].items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                meant = " or ".join(_KINDS[one] for one in types)
                _refuse(path, f"entry {place} of {kind} has no {field!r} that is {meant}")
        if entry["id"] in found:
            _refuse(path, f"the {_ONE[kind]} id {entry['id']!r} is there twice")
        found[entry["id"]] = entry
    return found


def _complete(
    annotation: dict[str, Any],
    images: dict[Any, dict[str, Any]],
    categories: dict[int, str],
    path: str,
    masks: bool,
) -> dict[str, Any]:
    """A checked annotation with all that is needed of it."""
    image = images.get(annotation["image_id"])
    what = f"annotation {annotation['id']!r}"
    if image is None:
        _refuse(path, f"{what} is of image {annotation['image_id']!r}, which there is not")
    if annotation["category_id"] not in categories:
        _refuse(path, f"{what} is of category {annotation['category_id']}, which there is not")
    box = annotation["bbox"]
    if len(box) != 4 or not are_finite(box) or min(box[2:]) < 0:
        _refuse(path, f"{what} has the box {box}, not x, y, a width and a height")
    complete = {"iscrowd": 0, "area": box[2] * box[3], **annotation}
    if not are_finite([complete["area"], complete["iscrowd"]]):
        _refuse(path, f"{what} has an area or a mark of a crowd that is no number")
    if masks:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [
                polygon
                for polygon in segmentation
                if not isinstance(polygon, list) or len(polygon) >= SHORTEST_POLYGON
            ]
            complete["segmentation"] = segmentation
        flaw = describe_flaw(segmentation, image["height"], image["width"])
        if flaw:
            _refuse(path, f"{what} {flaw}")
    return complete


def _in_words(number: int) -> str:
    """A whole number, however long."""
    if abs(number) < 10**20:
        return str(number)
    return f"{'-' * (number < 0)}10^{math.floor(math.log10(abs(number)))}"


def _refuse(path: str, what: str) -> NoReturn:
    raise UserError(f"the annotation file {path} is not in COCO's format: {what}; correct it")
