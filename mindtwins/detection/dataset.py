"""Pictures with boxes and masks of their objects, in COCO's format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mindtwins.console import tell
from mindtwins.data.decode import UnreadableImage, read_rgb
from mindtwins.data.image_folder import check_data_folder, missing_split
from mindtwins.detection.annotations import AnnotationFile, read_annotations
from mindtwins.detection.run_lengths import decode_mask
from mindtwins.errors import UserError

# Pictures with a shorter side are not learned from.
SHORTEST_SIDE = 32


@dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: float32 (n, 4), x1 y1 x2 y2 in the picture's pixels.
        labels: int64 (n,), the numbers of the classes.
        masks: uint8 (n, height, width) of 0 and 1; None where masks are not asked for.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


class CocoDataset:
    """Pictures of a folder and the objects that an annotation file has for them.

    An annotation is no object to learn from where it is marked by `ignore`, lies outside of its
    picture, has no area, is less than a pixel wide or high, is of another category than the
    classes, or is a crowd. These are the rules of MMDetection 2.8's `CocoDataset`. How many were
    left out is told, and an evaluation still sees them all, as COCO's own does.

    Args:
        images_dir: the folder that the file names of the pictures start from.
        annotation_file: of COCO's format.
        classes: the names of the classes, by number; None: all categories, in the file's order.
        masks: whether the objects' masks are needed.
        training: leave out pictures with a side below 32 pixels, or without an annotation of one of
            the classes. (A picture with a crowd alone stays.)
        exif_orientation: whether pictures are turned upright by their EXIF orientation, as OpenCV
            does when it reads them.

    Attributes:
        root: the folder of the pictures.
        paths: their files, in the annotation file's order.
        image_ids: their ids.
        sizes: int64 (n, 2), the (width, height) of each as the annotation file states them.
        classes: the names of the classes.
        num_classes: their number.
        category_ids: the category's id in the annotation file of each class.
        masks: as given.
        exif_orientation: as given.

    Raises:
        UserError: the annotation file is not sound (see `read_annotations`) or lacks a class, a
            picture is not there, or no picture is left.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike[str],
        annotation_file: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        training: bool = False,
        exif_orientation: bool = True,
    ) -> None:
        self.root = os.fspath(images_dir)
        self.masks = masks
        self.exif_orientation = exif_orientation
        self._file = read_annotations(annotation_file, masks)
        self.category_ids = _category_ids(self._file, classes)
        self.classes = tuple(self._file.categories[number] for number in self.category_ids)
        self.num_classes = len(self.classes)
        images = self._file.images
        if training:
            of_classes = set(self.category_ids)
            with_objects = {
                annotation["image_id"]
                for annotation in self._file.annotations
                if annotation["category_id"] in of_classes
            }
            images = {
                number: image
                for number, image in images.items()
                if number in with_objects and min(image["width"], image["height"]) >= SHORTEST_SIDE
            }
            if not images:
                raise UserError(
                    f"the annotation file {self._file.path} has no picture to learn from: none of "
                    f"{SHORTEST_SIDE} x {SHORTEST_SIDE} pixels or more with an annotation of one "
                    f"of the {self.num_classes} classes"
                )
        self.image_ids = list(images)
        self.paths = [os.path.join(self.root, image["file_name"]) for image in images.values()]
        self.sizes = np.array([(image["width"], image["height"]) for image in images.values()])
        self._check_pictures()
        self._objects = self._sort_objects()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        """Read a picture, RGB, and its objects.

        Raises:
            UnreadableImage: the picture is damaged, or of another size than is stated.
        """
        return self.read_image(index), self.objects(index)

    def read_image(self, index: int) -> Image.Image:
        """Read a picture alone; see `read`."""
        image = read_rgb(self.paths[index], self.exif_orientation)
        width, height = self.sizes[index].tolist()
        if image.size != (width, height):
            raise UnreadableImage(
                f"it is {image.width} x {image.height} pixels, but {width} x {height} in "
                f"{self._file.path}"
            )
        return image

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of a picture, without reading it; their masks if the data set has them."""
        kept = self._objects[index]
        corners = [
            (left, top, left + width, top + height)
            for left, top, width, height in (annotation["bbox"] for annotation in kept)
        ]
        label = {number: label for label, number in enumerate(self.category_ids)}
        width, height = self.sizes[index].tolist()
        masks = masks and self.masks
        drawn = np.zeros((len(kept), height, width), dtype=np.uint8) if masks else None
        if drawn is not None:
            for mask, annotation in zip(drawn, kept, strict=True):
                mask[...] = decode_mask(annotation["segmentation"], height, width)
        return Objects(
            np.array(corners, dtype=np.float32).reshape(-1, 4),
            np.array([label[annotation["category_id"]] for annotation in kept], dtype=np.int64),
            drawn,
        )

    def segmentations(self, index: int) -> list[object]:
        """What the annotation file says of the masks of a picture's objects."""
        return [annotation["segmentation"] for annotation in self._objects[index]]

    def size(self, index: int) -> tuple[int, int]:
        """The (width, height) of a picture, as the annotation file states it."""
        width, height = self.sizes[index].tolist()
        return width, height

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """What predictions are compared with: pycocotools' `COCO.dataset`.

        All annotations of the pictures and classes are in it, with ids from 1 on: pycocotools takes
        an annotation with the id 0 for none. The dictionaries are copies, because it changes them.
        """
        images, categories = set(self.image_ids), set(self.category_ids)
        kept = [
            annotation
            for annotation in self._file.annotations
            if annotation["image_id"] in images and annotation["category_id"] in categories
        ]
        return {
            "images": [dict(self._file.images[number]) for number in self.image_ids],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.category_ids, self.classes, strict=True)
            ],
            "annotations": [{**kept, "id": number} for number, kept in enumerate(kept, start=1)],
        }

    def _check_pictures(self) -> None:
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(
                f"the picture {missing[0]}{more} of the annotation file {self._file.path} is not "
                "there: add it, or name the folder that holds the pictures"
            )

    def _sort_objects(self) -> list[list[dict[str, Any]]]:
        """The annotations to learn from, for each picture; what is left out is told."""
        images, categories = self._file.images, set(self.category_ids)
        of_image: dict[Any, list[dict[str, Any]]] = {number: [] for number in self.image_ids}
        left_out: Counter[str] = Counter()
        for annotation in self._file.annotations:
            number = annotation["image_id"]
            if number in of_image:
                reason = _left_out(annotation, images[number], categories)
                if reason:
                    left_out[reason] += 1
                else:
                    of_image[number].append(annotation)
        if left_out:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
            tell(f"annotations of {self._file.path} that are not learned from: {counts}")
        return list(of_image.values())


def _left_out(annotation: dict[str, Any], image: dict[str, Any], categories: set[int]) -> str:
    """Why an annotation is no object to learn from; empty if it is one."""
    left, top, width, height = annotation["bbox"]
    across = min(left + width, image["width"]) - max(left, 0)
    down = min(top + height, image["height"]) - max(top, 0)
    if annotation.get("ignore"):
        return "marked to be ignored"
    if annotation["category_id"] not in categories:
        return "of other categories"
    if annotation["iscrowd"]:
        return "of crowds"
    if annotation["area"] <= 0 or min(width, height) < 1:
        return "of no area or less than a pixel wide or high"
    if min(across, down) <= 0:
        return "outside of their pictures"
    return ""


def _category_ids(file: AnnotationFile, classes: Sequence[str] | None) -> list[int]:
    """The id of each class's category."""
    if classes is None:
        return list(file.categories)
    ids = {name: number for number, name in file.categories.items()}
    missing = [name for name in classes if name not in ids]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"the annotation file {file.path} has no category {missing[0]!r}{more}, which is one "
            "of the classes: name the classes as its categories are named"
        )
    return [ids[name] for name in classes]


def find_coco(
    data_dir: str | os.PathLike[str],
    name: str,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    masks: bool = False,
    training: bool = False,
    exif_orientation: bool = True,
) -> CocoDataset:
    """The pictures of `data_dir/NAME` with `data_dir/annotations/instances_NAME.json`.

    Args:
        name: such as "train2017".
        split: "train" or "val", where it is the recipe that says what its folders are called.

    Raises:
        UserError: as `CocoDataset`.
    """
    data_dir = os.fspath(data_dir)
    check_data_folder(data_dir)
    images = os.path.join(data_dir, name)
    if not os.path.isdir(images):
        if split:
            raise missing_split(data_dir, split, name)
        raise UserError(f"the folder {images} of the pictures does not exist: create and fill it")
    return CocoDataset(
        images,
        os.path.join(data_dir, "annotations", f"instances_{name}.json"),
        classes=classes,
        masks=masks,
        training=training,
        exif_orientation=exif_orientation,
    )
