"""What all tasks read off a recipe alike: data, the weights to start from, loader options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

from mindtwins.checkpoint import Checkpoint
from mindtwins.config import Config
from mindtwins.console import tell
from mindtwins.data import text_files
from mindtwins.data.loader import LoaderOptions
from mindtwins.errors import UserError
from mindtwins.training.distributed import World
from mindtwins.training.recorded import states

AnyConfig = TypeVar("AnyConfig", bound=Config)


class LabeledData(Protocol):
    """What is compared of a data set: the names of its classes in their order, and where it is."""

    root: str
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int: ...


def check_data(config: Config, datasets: Sequence[str]) -> None:
    """Raise a UserError unless the recipe says where its data is, and of which kind."""
    if not config.data_dir:
        raise UserError("data_dir is missing: say where the images are with --data_dir")
    if config.dataset not in datasets:
        raise UserError(
            f"dataset {config.dataset} is not for task {config.task}: use one of "
            f"{', '.join(datasets)}"
        )


def with_known_dataset(config: AnyConfig, datasets: Sequence[str]) -> AnyConfig:
    """The recipe with a dataset of the task's own where it leaves that open."""
    if config.dataset not in datasets and not states(config, "dataset"):
        return replace(config, dataset=datasets[0])
    return config


def known_classes(config: Config, checkpoint: Checkpoint | None) -> tuple[str, ...] | None:
    """The names of the model's classes: the file `class_names`, else the checkpoint's, else None.

    Raises:
        UserError: the file cannot be read, or does not fit `num_classes`.
    """
    named = read_class_names(config)
    recorded = checkpoint and checkpoint.stated.get("classes")
    if named is not None and recorded and tuple(recorded) != named:
        tell(f"class names of {config.class_names} instead of the checkpoint's")
    return named or (tuple(recorded) if recorded else None)


def needs_new_head(
    checkpoint: Checkpoint,
    before: Sequence[str] | None,
    data: LabeledData,
    num_classes: int,
    is_training: bool,
    advice: str = "",
) -> bool:
    """Whether a training starts with a new classifier, since the checkpoint's is for other classes.

    Args:
        before: the names of the model's classes, or None.
        data: whose names are others.
        num_classes: of the recipe.
        is_training: whether the data is to train with.
        advice: how the message ends.

    Raises:
        UserError: the data to evaluate with has other classes.
    """
    path = checkpoint.path
    width = checkpoint.stated.get("num_classes", num_classes)
    if is_training and (before is not None or width != num_classes):
        tell(
            f"the classifier of {path} is for other classes: a new one for the "
            f"{data.num_classes} of {data.root} starts in its place"
        )
        return True
    if before is None:
        tell(f"{path} does not name its classes: they are taken for those of {data.root}")
        return False
    pairs = zip_longest(before, data.classes, fillvalue="no class")
    there, here = next(pair for pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"the classes of {data.root} are not those of {path}: {here!r} stands where that "
        f"has {there!r}{advice}"
    )


def check_usable(checkpoint: Checkpoint | None) -> None:
    """Raise a UserError for a checkpoint that the scripts have no pictures for."""
    if checkpoint is None:
        return
    channels = checkpoint.stated.get("in_channels", 3)
    if channels != 3:
        raise UserError(
            f"{checkpoint.path} is a model of {channels} input channels, but the "
            "scripts read RGB pictures: use it in Python, with mindtwins.load_model"
        )


def read_class_names(config: Config) -> tuple[str, ...] | None:
    """The names in the file `class_names`; None if the recipe names none.

    Raises:
        UserError: it cannot be read, or does not fit `num_classes`.
    """
    if not config.class_names:
        return None
    names = text_files.read_class_names(config.class_names)
    if len(names) != config.num_classes:
        raise UserError(
            f"{config.class_names} has {len(names)} names, but the model {config.num_classes} "
            "classes: give one name per class"
        )
    return names


def model_options(config: Config, checkpoint: Checkpoint | None, new_head: bool) -> dict[str, Any]:
    """The arguments that every task's model is created with: its weights, and how it computes.

    Raises:
        UserError: the scripts have no pictures for the checkpoint.
    """
    check_usable(checkpoint)
    return {
        "num_classes": config.num_classes,
        "ckpt_path": checkpoint,
        "drop_path_rate": config.drop_path_rate,
        "new_head": new_head,
        **asked_dialect(config),
    }


def asked_dialect(config: Config) -> dict[str, Any]:
    """The conventions that the recipe states, in spite of what a checkpoint records."""
    fields = {
        "window_padding": config.window_padding,
        "patch_rounding": config.patch_rounding,
    }
    return {name: value for name, value in fields.items() if value}


def loader_options(config: Config, world: World) -> LoaderOptions:
    """What the recipe tells every loader."""
    workers = config.num_parallel_workers
    if not states(config, "num_parallel_workers"):  # nobody asked for the default's number
        workers = min(workers, os.cpu_count() or 1)
    return LoaderOptions(
        world.rank,
        world.size,
        workers,
        python_multiprocessing=config.python_multiprocessing,
        skip_bad_images=config.skip_bad_images,
    )
