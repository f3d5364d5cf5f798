"""Pictures with a label map each: image files and 8-bit grayscale PNGs of class numbers."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

from mindtwins.data.decode import (
    UnreadableImage,
    describe_damage,
    picture_size,
    read_rgb,
    swaps_sides,
)
from mindtwins.data.folders import IMAGE_SUFFIXES, FolderListing
from mindtwins.data.image_folder import check_data_folder, missing_split
from mindtwins.data.notices import about_file
from mindtwins.errors import UserError

# The label of pixels that count neither in the loss nor in the metrics.
IGNORED = 255

# What the header of a PNG file calls its colors.
_PNG_COLORS = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}
_PNG_START = b"\x89PNG\r\n\x1a\n"


class ImageLabelFolder:
    """Pairs of an image and a label file of the same name, in two folders of the same structure.

    A label file is an 8-bit grayscale PNG of the image's size whose values are class numbers. 255
    is ignored. With `ignore_label_zero`, as in ADE20K, 0 is ignored too and the classes are counted
    from 1 in the files.

    Args:
        images_dir: folder of the images.
        labels_dir: folder of the label files.
        classes: the names of the classes, by number; at most 255.
        ignore_label_zero: whether 0 in the files stands for no class.
        exif_orientation: whether images are turned upright by their EXIF orientation, because the
            labels are; label files are taken as they are.

    Attributes:
        root: the folder of the images.
        paths: the image files, ordered by name.
        label_paths: the label file of each.
        classes: the names of the classes.
        num_classes: their number.
        ignore_label_zero: as given.
        exif_orientation: as given.

    Raises:
        UserError: a folder is missing or empty, or an image or a label file stands alone.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike[str],
        labels_dir: str | os.PathLike[str],
        classes: Sequence[str],
        *,
        ignore_label_zero: bool = False,
        exif_orientation: bool = False,
    ) -> None:
        if not 0 < len(classes) <= IGNORED:
            raise UserError(
                f"{len(classes)} classes are named: a label file of 8 bits has room for 1 to "
                f"{IGNORED}"
            )
        self.root = os.fspath(images_dir)
        self.classes = tuple(classes)
        self.num_classes = len(self.classes)
        self.ignore_label_zero = ignore_label_zero
        self.exif_orientation = exif_orientation
        images = _files_below(self.root, IMAGE_SUFFIXES, "images")
        labels = _files_below(os.fspath(labels_dir), (".png",), "label files")
        _check_partners(images, labels, "image", f"label file in {os.fspath(labels_dir)}")
        _check_partners(labels, images, "label file", f"image in {self.root}")
        self.paths = list(images.values())
        self.label_paths = [labels[name] for name in images]
        first = int(ignore_label_zero)
        self._class_of = np.full(256, IGNORED, dtype=np.uint8)
        self._class_of[first : first + self.num_classes] = np.arange(self.num_classes)
        self._known = self._class_of != IGNORED
        self._known[[0, IGNORED] if ignore_label_zero else IGNORED] = True

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Read a pair: the RGB picture and its labels, uint8 (height, width), 255 for ignored.

        Raises:
            UnreadableImage: one of the two files is damaged, or their sizes differ.
            UserError: the label file is of another kind, or names a class that there is not.
        """
        path = self.label_paths[index]
        image = read_rgb(self.paths[index], self.exif_orientation)
        values = read_label_png(path)
        if image.size != values.shape[::-1]:
            self._refuse_size(index, image.size, values.shape[::-1])
        if not self._known[values].all():
            self._refuse(path, values)
        return image, self._class_of[values]

    def _refuse_size(self, index: int, size: tuple[int, ...], labeled: tuple[int, ...]) -> None:
        reason = (
            f"it is {_size(size)} pixels, but its label file {self.label_paths[index]} "
            f"{_size(labeled)}"
        )
        if size == labeled[::-1] and swaps_sides(self.paths[index]):
            other = str(not self.exif_orientation).lower()
            reason += f"; its EXIF orientation explains that: try --exif_orientation {other}"
        raise UnreadableImage(reason)

    def _refuse(self, path: str, values: np.ndarray) -> None:
        wrong = np.unique(values[~self._known[values]]).tolist()
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        first = int(self.ignore_label_zero)
        zero = "0 and 255" if self.ignore_label_zero else "255"
        raise UserError(
            f"label file {path} holds the label{'s' * (len(wrong) > 1)} {shown}, but the "
            f"{self.num_classes} classes are numbered {first} to {first + self.num_classes - 1}, "
            f"and {zero} ignored: correct the file or the number of classes"
        )

    def size(self, index: int) -> tuple[int, int]:
        """The (width, height) that the header of an image states; (0, 0) if it is damaged."""
        try:
            return picture_size(self.paths[index], self.exif_orientation)
        except UnreadableImage:  # reading it will tell
            return 0, 0


def read_label_png(path: str) -> np.ndarray:
    """Read a label file as it is: uint8 (height, width).

    Raises:
        UnreadableImage: it is damaged; the message names it.
        UserError: it is not an 8-bit grayscale PNG.
    """
    try:
        with about_file(path), open(path, "rb") as file:
            start = file.read(26)
            if start[:8] != _PNG_START or len(start) < 26:
                raise UnreadableImage(f"its label file {path} is not a PNG file, or cut short")
            # The header says it, not PIL's mode: PIL stretches 1, 2 and 4 bits to 0 to 255.
            depth, colors = start[24], start[25]
            if (depth, colors) != (8, 0):
                kind = f"{depth}-bit {_PNG_COLORS.get(colors, 'unknown')}"
                raise UserError(f"label file {path} is a {kind} PNG: {_advice(colors)}")
            return np.asarray(Image.open(file))
    except (UnreadableImage, UserError):
        raise
    except Exception as error:
        raise UnreadableImage(f"its label file {path}: {describe_damage(error)}") from error


def _advice(colors: int) -> str:
    if colors == 3:
        return (
            "if its palette indices are the class numbers, save them alone with "
            "PIL.Image.fromarray(numpy.asarray(image))"
        )
    return "save the class numbers as 8-bit grayscale"


def find_pairs(
    data_dir: str | os.PathLike[str],
    name: str,
    classes: Sequence[str],
    *,
    split: str | None = None,
    ignore_label_zero: bool = False,
    exif_orientation: bool = False,
) -> ImageLabelFolder:
    """The pairs `data_dir/images/name/*` and `data_dir/annotations/name/*.png`.

    Args:
        split: "train" or "val", where it is the recipe that says what its folders are called.

    Raises:
        UserError: as `ImageLabelFolder`.
    """
    data_dir = os.fspath(data_dir)
    check_data_folder(data_dir)
    images = os.path.join(data_dir, "images")
    if split and os.path.isdir(images) and not os.path.isdir(os.path.join(images, name)):
        raise missing_split(images, split, name)
    return ImageLabelFolder(
        os.path.join(images, name),
        os.path.join(data_dir, "annotations", name),
        classes,
        ignore_label_zero=ignore_label_zero,
        exif_orientation=exif_orientation,
    )


def _files_below(folder: str, suffixes: Collection[str], what: str) -> dict[str, str]:
    """Files by their path below the folder without suffix, in order; what is left out is told."""
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} of the {what} does not exist: create and fill it")
    listing = FolderListing(folder)
    (paths,) = listing.files([folder], suffixes)
    listing.tell()
    if not paths:
        raise UserError(f"the folder {folder} holds no {what}: fill it, or name another")
    files: dict[str, str] = {}
    for path in paths:
        key = os.path.splitext(os.path.relpath(path, folder))[0]
        if key in files:
            raise UserError(f"{files[key]} and {path} have the same name: remove one of them")
        files[key] = path
    return files


def _check_partners(files: dict[str, str], others: dict[str, str], one: str, other: str) -> None:
    alone = [path for name, path in files.items() if name not in others]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise UserError(f"{one} {alone[0]}{more} has no {other}: add it or remove the {one}")


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
