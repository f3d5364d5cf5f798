"""Which class is which: by name, never by its place in a list of folders."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from mindtwins.classification.imagenet import in_words
from mindtwins.console import tell
from mindtwins.data.image_folder import ImageFolder
from mindtwins.errors import UserError

_NAMES_SHOWN = 5


def number_by_name(data: ImageFolder, classes: Sequence[str], whose: str) -> ImageFolder:
    """The same files, labeled by the places of their classes' names among a model's.

    Args:
        data: class folders, or a list file, whose labels are numbers.
        classes: the names of the model's classes, in its order.
        whose: what knows these classes, for messages.

    Raises:
        UserError: a class folder that the model does not know, or a label beyond its classes.
    """
    numbers = [str(number) for number in range(len(classes))]
    if data.classes:
        names = list(data.classes)
    elif sorted(classes) == sorted(numbers):
        names = numbers  # then a label is the class of that name, wherever that stands
    else:
        return data
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in names[: data.num_classes] if name not in place]:
        raise UserError(
            f"{data.listing} has classes that {whose} does not know ({some(unknown)}): its "
            f"{len(classes)} classes are {some(classes)}{_imagenet_folders(classes)}"
        )
    if data.classes and len(names) < len(classes):
        tell(f"{data.root} has {len(names)} of the {len(classes)} classes")
    numbered = copy.copy(data)
    new_labels = np.array([place.get(name, -1) for name in names], dtype=np.int32)
    numbered.labels = new_labels[data.labels]
    numbered.classes = tuple(classes)
    numbered.num_classes = len(classes)
    return numbered


def _imagenet_folders(classes: Sequence[str]) -> str:
    """How ImageNet's folders are called, if the classes are its own."""
    words = in_words(classes[0])
    if words == classes[0]:
        return ""
    return (
        f", as ImageNet's folders are called ({classes[0]} is {words}): rename the folders, or "
        "give their names in the order of the model's classes with --class_names"
    )


def number_by_order(data: ImageFolder, num_classes: int, whose: str) -> ImageFolder:
    """The same files, numbered in the order of their folders, for a model that names no classes.

    Raises:
        UserError: there are more or fewer folders than classes, so that it cannot be known which is
            which.
    """
    if not data.classes:
        return data
    if data.num_classes != num_classes:
        raise UserError(
            f"{data.root} has {data.num_classes} class folders, but {whose} has {num_classes} "
            "classes and does not name them, so it cannot be known which is which: name all of "
            "them, one per line, in a file for --class_names"
        )
    tell(
        f"{whose} does not name its classes: the folders of {data.root} are numbered in the order "
        f"of their names, {data.classes[0]} = 0 to {data.classes[-1]} = {num_classes - 1}"
    )
    return data


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
