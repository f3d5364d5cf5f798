"""Image files and their labels: class folders, or a list file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mindtwins.data.decode import read_rgb
from mindtwins.data.folders import FolderListing, some
from mindtwins.data.notices import tell_once
from mindtwins.data.text_files import read_lines
from mindtwins.errors import UserError

# What other projects call the folders of the splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing", "eval", "dev"),
}


class ImageFolder:
    """Paths and labels of a data set; the files are not opened.

    `ImageFolder(root)` reads one folder per class and numbers classes and files in torchvision's
    order: class folders by name, files by (sub)folder and then by name, whatever the case of their
    extension. Files of every format that Pillow reads are images. What is passed over is told (see
    `mindtwins.data.folders`). `ImageFolder.from_list` reads a list file.

    Args:
        root: the folder.
        exif_orientation: whether `read` turns pictures upright.

    Attributes:
        root: the folder.
        listing: what says which images there are: the folder itself, or the list file.
        classes: the class names in label order; empty for a list file, whose labels are numbers.
        num_classes: number of classes (for a list file: the highest label plus one).
        paths: the image files, in order.
        labels: int32 (number of images,).

    Raises:
        UserError: the folder is missing or empty, or a class folder holds no image.
    """

    def __init__(self, root: str | os.PathLike[str], *, exif_orientation: bool = False) -> None:
        listing = FolderListing(root)
        classes = listing.class_folders()
        files = _read_class_folders(listing, classes)
        listing.tell()
        _tell_order(listing.root, classes)
        paths = [path for of_class in files for path in of_class]
        labels = [label for label, of_class in enumerate(files) for _ in of_class]
        self._fill(listing.root, tuple(classes), paths, labels, exif_orientation)

    @classmethod
    def from_list(
        cls,
        root: str | os.PathLike[str],
        list_file: str | os.PathLike[str],
        *,
        exif_orientation: bool = False,
    ) -> ImageFolder:
        """Read lines `path label`: the path relative to `root`, the label a number from 0.

        The path may contain spaces; empty lines are passed over.

        Raises:
            UserError: the list is missing, empty, or has a line of another form (which is named).
        """
        dataset = cls.__new__(cls)
        paths, labels = _read_list(os.fspath(root), os.fspath(list_file))
        dataset._fill(os.fspath(root), (), paths, labels, exif_orientation)
        dataset.listing = os.fspath(list_file)
        return dataset

    def _fill(
        self,
        root: str,
        classes: tuple[str, ...],
        paths: list[str],
        labels: list[int],
        exif_orientation: bool,
    ) -> None:
        self.root = self.listing = root
        self.classes = classes
        self.paths = paths
        self.labels = np.array(labels, dtype=np.int32)
        self.num_classes = max(labels) + 1
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The RGB picture of an image file.

        Raises:
            UnreadableImage: it is damaged.
        """
        return read_rgb(self.paths[index], self.exif_orientation)


def find_split(data_dir: str | os.PathLike[str], split: str, name: str = "") -> str:
    """Return the folder of a split: `data_dir/name`, or for evaluation `data_dir` itself.

    Args:
        data_dir: a folder with one folder per split, or for "val" the class folders themselves.
        split: "train" or "val".
        name: what the recipe calls it; empty: as `split`.

    Raises:
        UserError: neither is there.
    """
    data_dir, name = os.fspath(data_dir), name or split
    check_data_folder(data_dir)
    folder = os.path.join(data_dir, name)
    if os.path.isdir(folder):
        return folder
    listed = FolderListing(data_dir).class_folders()
    # A class may have the name of a split ("valid" beside "invalid"), but hardly all of them.
    has_splits = {"train", "val", "test"} & set(listed) or all(map(_is_split, listed))
    if split == "train" or (listed and has_splits):
        raise missing_split(data_dir, split, name)
    return data_dir


def _is_split(name: str) -> bool:
    return any(name.lower() in names for names in SPLIT_NAMES.values())


def check_data_folder(data_dir: str) -> None:
    """Raise a UserError unless it is there."""
    if not os.path.isdir(data_dir):
        raise UserError(
            f"data folder {data_dir} does not exist: give --data_dir an existing folder"
        )


def missing_split(data_dir: str, split: str, name: str) -> UserError:
    """What is wrong with a folder that should hold `name`, and which of its folders may be meant.

    Args:
        split: "train" or "val".
        name: the folder that the recipe asks for.
    """
    found = FolderListing(data_dir).class_folders()
    meant = [folder for folder in found if folder.lower() in SPLIT_NAMES[split]]
    parent, last = os.path.split(os.path.abspath(data_dir))
    if meant:
        advice = f"it has {', '.join(meant)}; say so with --{split}_split {meant[0]}"
    elif _is_split(last):
        advice = f"it seems to be a split itself; give --data_dir {parent}"
    else:
        advice = f"create {os.path.join(data_dir, name)}"
    return UserError(f"data folder {data_dir} has no '{name}' folder: {advice}")


def check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    """Check that a label means the same class in both data sets.

    Raises:
        UserError: they differ; some of the classes that only one of them has are named.
    """
    if not (train.classes and val.classes):  # a list file: labels are numbers, not names
        if val.num_classes > train.num_classes:
            raise UserError(
                f"{val.listing} has label {val.num_classes - 1} but {train.listing} only labels "
                f"0 to {train.num_classes - 1}: use one numbering of the classes for both"
            )
        return
    if train.classes != val.classes:
        only_train = some(sorted(set(train.classes) - set(val.classes)))
        only_val = some(sorted(set(val.classes) - set(train.classes)))
        raise UserError(
            f"the classes of {train.root} and {val.root} differ (only in the first: {only_train}; "
            f"only in the second: {only_val}): both need the same class folders"
        )


def _read_class_folders(listing: FolderListing, classes: Sequence[str]) -> list[list[str]]:
    """The image files of each class."""
    root = listing.root
    if not classes:
        raise UserError(f"image folder {root} holds no class folder: it needs one folder per class")
    files = listing.files([os.path.join(root, name) for name in classes])
    for name, images in zip(classes, files, strict=True):
        if not images:
            listing.tell()  # of images that are not read, perhaps
            raise UserError(
                f"class folder {os.path.join(root, name)} holds no image: if it is a class, fill "
                "it or name images and labels in a list file (dataset: list); if it is none, "
                "remove it from every split, since the folders' order numbers the classes"
            )
    return files


def _tell_order(root: str, classes: Sequence[str]) -> None:
    """Tell of names that differ in a number and do not stand in its order."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for name in classes:
        parts = re.split(r"([0-9]+)", name)
        if len(parts) == 3:
            alike[parts[0], parts[2]].append(int(parts[1]))
    if any(numbers != sorted(numbers) for numbers in alike.values()):
        tell_once(
            ("order", *classes),  # train's and val's alike
            f"the class folders of {root} are ordered as text, as torchvision does, not by their "
            f"numbers: {some(classes)}; for another order, name the labels in a list file "
            "(dataset: list)",
        )


def _read_list(root: str, list_file: str) -> tuple[list[str], list[int]]:
    lines = read_lines(list_file, "image list", file_names=True)
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        match = re.fullmatch(r"(.*\S)\s+([0-9]{1,9})", line)
        if match is None:
            raise UserError(
                f"{list_file}, line {number}: expected 'path label' with a label from 0 up to "
                f"999999999, found {line!r}"
            )
        paths.append(os.path.join(root, match[1]))
        labels.append(int(match[2]))
    if not paths:
        raise UserError(f"the image list {list_file} is empty: give one 'path label' per line")
    return paths, labels
