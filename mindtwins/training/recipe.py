"""What all tasks read off a recipe alike: data, the weights to start from, loader options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mindspore import nn

from mindtwins.checkpoint import Checkpoint, expect_metadata, load_checkpoint, load_into
from mindtwins.config import Config
from mindtwins.config.options import DATASETS
from mindtwins.errors import UserError
from mindtwins.training.distributed import World

# Tensors that a training checkpoint holds beside the weights.
TRAINING_STATE = ("optimizer.", "loss_scale.", "ema.")


def check_data(config: Config) -> None:
    """Raise a UserError unless the recipe says where its data is, and of which kind."""
    if not config.data_dir:
        raise UserError("data_dir is missing: say where the images are with --data_dir")
    if config.dataset not in DATASETS[config.task]:
        raise UserError(
            f"dataset {config.dataset} is not for task {config.task}: use one of "
            f"{', '.join(DATASETS[config.task])}"
        )


def read_start(config: Config) -> tuple[Checkpoint | None, dict]:
    """The checkpoint to start from, if there is one, and the dialect that it records."""
    if not config.ckpt_path:
        return None, {}
    checkpoint = load_checkpoint(config.ckpt_path)
    return checkpoint, (checkpoint.metadata or {}).get("dialect", {})


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
