"""What all tasks read off a recipe alike: data, the weights to start from, loader options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mindspore import nn

from mindtwins.checkpoint import (
    TRAINING_STATE,
    Checkpoint,
    expect_metadata,
    load_checkpoint,
    load_into,
)
from mindtwins.config import Config, InferConfig
from mindtwins.errors import UserError
from mindtwins.training.distributed import World


def check_data(config: Config, datasets: Sequence[str]) -> None:
    """Raise a UserError unless the recipe says where its data is, and of which kind."""
    if not config.data_dir:
        raise UserError("data_dir is missing: say where the images are with --data_dir")
    if config.dataset not in datasets:
        raise UserError(
            f"dataset {config.dataset} is not for task {config.task}: use one of "
            f"{', '.join(datasets)}"
        )


def read_start(config: Config) -> tuple[Checkpoint | None, dict]:
    """The checkpoint to start from, if there is one, and the dialect that it records."""
    if not config.ckpt_path:
        return None, {}
    checkpoint = load_checkpoint(config.ckpt_path)
    return checkpoint, (checkpoint.metadata or {}).get("dialect", {})


def as_trained(config: InferConfig) -> InferConfig:
    """The configuration with the task, the variant and the classes that its checkpoint states."""
    stated = load_checkpoint(config.ckpt_path).metadata or {}
    return replace(
        config,
        task=stated.get("task", config.task),
        model=stated.get("variant", config.model),
        num_classes=stated.get("num_classes") or config.num_classes,
    )


def read_class_names(config: Config) -> tuple[str, ...] | None:
    """The lines of the file `class_names`; None if the recipe names none.

    Raises:
        UserError: it cannot be read, or does not fit `num_classes`.
    """
    if not config.class_names:
        return None
    try:
        names = Path(config.class_names).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class_names {config.class_names}: {error}") from error
    if len(names) != config.num_classes:
        raise UserError(
            f"{config.class_names} has {len(names)} lines, but the model {config.num_classes}"
            " classes: one name per line is needed"
        )
    return tuple(names)


def asked_dialect(config: Config) -> dict[str, str]:
    """The conventions that the recipe states, in spite of what a checkpoint records."""
    fields = {
        "window_padding": config.window_padding,
        "patch_rounding": config.patch_rounding,
    }
    return {name: value for name, value in fields.items() if value}


def load_start(
    model: nn.Cell, checkpoint: Checkpoint, expected: Mapping, fresh: tuple[str, ...]
) -> None:
    """Load a checkpoint into a model, strictly, but for parameters that are to start anew.

    Args:
        expected: the model's metadata, which the checkpoint's must agree with.
        fresh: how the names of those parameters begin.

    Raises:
        UserError: the checkpoint does not fit.
    """
    keys = ["variant"] if fresh else ["variant", "num_classes"]
    expect_metadata(checkpoint, **{key: expected[key] for key in keys})
    if fresh:
        kept = {n: t for n, t in checkpoint.tensors.items() if not n.startswith(fresh)}
        initial = {
            parameter.name: parameter.asnumpy()
            for parameter in model.get_parameters()
            if parameter.name.startswith(fresh)
        }
        checkpoint = replace(checkpoint, tensors=kept | initial)
    load_into(model, checkpoint, allow_unused=TRAINING_STATE)


def loader_options(config: Config, world: World) -> dict:
    """Arguments that every loader takes."""
    return {
        "rank": world.rank,
        "world": world.size,
        "num_parallel_workers": config.num_parallel_workers,
        "python_multiprocessing": config.python_multiprocessing,
        "skip_bad_images": config.skip_bad_images,
    }
