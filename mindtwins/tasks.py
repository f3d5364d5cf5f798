"""The one list of tasks: what models are trained for."""

from __future__ import annotations

import os
from dataclasses import replace

from mindspore import nn

from mindtwins.checkpoint import load_checkpoint
from mindtwins.classification.kind import ClassifierKind
from mindtwins.classification.task import Classification
from mindtwins.config import Config, InferConfig
from mindtwins.conversion.kinds import Kinds, identified
from mindtwins.errors import UserError
from mindtwins.segmentation.kind import SegmentorKind
from mindtwins.segmentation.task import Segmentation
from mindtwins.segmentation.variants import create_segmentor, list_segmentors
from mindtwins.training.recorded import states
from mindtwins.training.task import Task

__all__ = [
    "KINDS",
    "TASKS",
    "create_segmentor",
    "create_task",
    "list_segmentors",
    "load_model",
]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}
# What a conversion knows of each task's models.
KINDS: Kinds = {"classification": ClassifierKind(), "segmentation": SegmentorKind()}


def create_task(config: Config) -> Task:
    """The task of a recipe and of the checkpoint that it names, which is read here, once.

    What the checkpoint records holds where the recipe leaves it open.

    Raises:
        UserError: the checkpoint cannot be read, or is for another task than the recipe.
    """
    if not config.ckpt_path:
        return TASKS[config.task](config)
    checkpoint = identified(KINDS, load_checkpoint(config.ckpt_path))
    task = checkpoint.stated["task"]
    if states(config, "task") and config.task != task:
        raise UserError(
            f"{config.ckpt_path} is a checkpoint of task {task} (asked for: {config.task})"
        )
    return TASKS[task](replace(config, task=task), checkpoint)


def load_model(path: str | os.PathLike) -> nn.Cell:
    """Build the model that a checkpoint of this project holds, from the file alone.

    Args:
        path: `.ckpt` or `.safetensors`.

    Returns:
        The classifier or segmentor with its weights, in evaluation mode, and with three attributes:
        `preprocessing`, from an RGB picture to what the model takes; `classes`, their names by
        number (None where the file has none); `metadata`, all that the file says.

    Raises:
        UserError: (a ValueError) the file cannot be read, or holds no such model.
    """
    checkpoint = identified(KINDS, load_checkpoint(path))
    task = checkpoint.stated["task"]
    model = KINDS[task].create(checkpoint)
    described = TASKS[task](InferConfig(task=task, ckpt_path=os.fspath(path)), checkpoint)
    model.preprocessing = described.preprocessing()
    model.classes = described.classes
    model.metadata = checkpoint.metadata
    return model
