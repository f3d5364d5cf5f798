"""Image files and their labels: class folders, or a list file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from mindtwins.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")


class ImageFolder:
    """Paths and labels of a data set; the files are not opened.

    `ImageFolder(root)` reads one folder per class and numbers classes and files in torchvision's
    order: class folders by name, files by (sub)folder and then by name, whatever the case of their
    extension. `ImageFolder.from_list` reads a list file.

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

    def __init__(self, root: str | os.PathLike[str]) -> None:
        classes = _class_folders(os.fspath(root))
        self._fill(os.fspath(root), classes, *_read_class_folders(os.fspath(root), classes))

    @classmethod
    def from_list(
        cls, root: str | os.PathLike[str], list_file: str | os.PathLike[str]
    ) -> ImageFolder:
        """Read lines `path label`: the path relative to `root`, the label a number from 0.

        The path may contain spaces; empty lines are passed over.

        Raises:
            UserError: the list is missing, empty, or has a line of another form (which is named).
        """
        dataset = cls.__new__(cls)
        dataset._fill(os.fspath(root), (), *_read_list(os.fspath(root), os.fspath(list_file)))
        dataset.listing = os.fspath(list_file)
        return dataset

    def _fill(
        self, root: str, classes: tuple[str, ...], paths: list[str], labels: list[int]
    ) -> None:
        self.root = self.listing = root
        self.classes = classes
        self.paths = paths
        self.labels = np.array(labels, dtype=np.int32)
        self.num_classes = max(labels) + 1

    def __len__(self) -> int:
        return len(self.paths)


def find_split(data_dir: str | os.PathLike[str], split: str) -> str:
    """Return the folder of a split: `data_dir/split`, or for evaluation `data_dir` itself.

    Args:
        data_dir: a folder with one folder per split, or for "val" the class folders themselves.
        split: "train" or "val".

    Raises:
        UserError: neither is there.
    """
    data_dir = os.fspath(data_dir)
    if not os.path.isdir(data_dir):
        raise UserError(
            f"data folder {data_dir} does not exist: give --data_dir an existing folder"
        )
    folder = os.path.join(data_dir, split)
    if os.path.isdir(folder):
        return folder
    others = [name for name in SPLITS if os.path.isdir(os.path.join(data_dir, name))]
    if split == "train" or others:
        raise UserError(f"data folder {data_dir} has no '{split}' folder: create {folder}")
    return data_dir


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
        only_train = _some(sorted(set(train.classes) - set(val.classes)))
        only_val = _some(sorted(set(val.classes) - set(train.classes)))
        raise UserError(
            f"the classes of {train.root} and {val.root} differ (only in the first: {only_train}; "
            f"only in the second: {only_val}): both need the same class folders"
        )


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _class_folders(root: str) -> tuple[str, ...]:
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot read the image folder {root}: {error.strerror}") from error
    if not names:
        raise UserError(f"image folder {root} holds no class folder: it needs one folder per class")
    return tuple(names)


def _read_class_folders(root: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = os.path.join(root, name)
        files = _images_below(folder)
        if not files:
            raise UserError(
                f"class folder {folder} holds no image ({', '.join(EXTENSIONS)}): "
                "fill it or remove it"
            )
        paths += files
        labels += [label] * len(files)
    return paths, labels


def _images_below(folder: str) -> list[str]:
    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(EXTENSIONS)
    ]


def _read_list(root: str, list_file: str) -> tuple[list[str], list[int]]:
    try:
        with open(list_file, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the image list {list_file}: {error}") from error
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
