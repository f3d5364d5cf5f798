"""The one list of tasks: what models are trained for."""

from __future__ import annotations

import os
from dataclasses import replace

from mindspore import nn

from mindtwins.checkpoint import Checkpoint, expect_metadata, load_checkpoint
from mindtwins.classification.export import ClassifierExport
from mindtwins.classification.kind import ClassifierKind
from mindtwins.classification.service import ClassificationService
from mindtwins.classification.task import Classification
from mindtwins.config import Config, InferConfig, PredictConfig, ValidateConfig
from mindtwins.conversion.kinds import Kinds, identified
from mindtwins.errors import UserError
from mindtwins.export.kinds import ExportKinds
from mindtwins.export.onnx_model import OnnxModel
from mindtwins.segmentation.export import SegmentorExport
from mindtwins.segmentation.kind import SegmentorKind
from mindtwins.segmentation.service import SegmentationService
from mindtwins.segmentation.task import Segmentation
from mindtwins.segmentation.variants import create_segmentor, list_segmentors
from mindtwins.serving.service import Services
from mindtwins.training.recipe import asked_dialect, check_usable
from mindtwins.training.recorded import states
from mindtwins.training.task import Task

__all__ = [
    "EXPORTS",
    "KINDS",
    "SERVICES",
    "TASKS",
    "create_segmentor",
    "create_task",
    "list_segmentors",
    "load_model",
    "load_onnx",
]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}
# What a conversion knows of each task's models.
KINDS: Kinds = {"classification": ClassifierKind(), "segmentation": SegmentorKind()}
# What an export knows of them.
EXPORTS: ExportKinds = {"classification": ClassifierExport(), "segmentation": SegmentorExport()}
# What a server knows of them.
SERVICES: Services = {
    "classification": ClassificationService,
    "segmentation": SegmentationService,
}


def create_task(config: Config) -> Task:
    """The task of a recipe and of the checkpoint that it names, which is read here, once.

    What the checkpoint records holds where the recipe leaves it open.

    Raises:
        UserError: the checkpoint cannot be read, or is for another task than the recipe.
    """
    if not config.ckpt_path:
        return TASKS[config.task](config)
    return _task_of(config, identified(KINDS, load_checkpoint(config.ckpt_path)))


def exported_task(config: ValidateConfig | PredictConfig) -> tuple[Task, OnnxModel]:
    """The task of a recipe and of the exported file that it names, and that file's model.

    Raises:
        UserError: the file cannot be read, is not for the images of the scripts, or is for another
            task than the recipe.
    """
    if config.ckpt_path:
        raise UserError(
            f"ckpt_path ({config.ckpt_path}) and onnx_path ({config.onnx_path}) contradict each"
            " other: name the one file whose model is to run"
        )
    model = OnnxModel(config.onnx_path)
    described = Checkpoint({}, model.metadata, model.path)
    task = _task_of(config, described)
    outputs = model.metadata["export"]["outputs"]
    if outputs != ["logits"]:
        raise UserError(
            f"{model.path} gives {', '.join(outputs)}, not logits: export it with its head, without"
            " --features_only"
        )
    if model.takes_pictures:
        raise UserError(
            f"{model.path} prepares pictures itself, and so do the scripts: export it without"
            " --preprocess"
        )
    check_usable(described)
    asked = task.config
    name = KINDS[asked.task].resolve(asked.model)
    expect_metadata(described, variant=name, num_classes=asked.num_classes)
    if asked_dialect(config) or config.amp_level != "O0":
        raise UserError(
            f"{model.path} computes as it was exported: leave window_padding, patch_rounding and"
            " amp_level out"
        )
    return task, model


def _task_of(config: Config, checkpoint: Checkpoint) -> Task:
    """The task of a recipe and of what a file says, which holds where the recipe leaves it open."""
    task = checkpoint.stated["task"]
    if states(config, "task") and config.task != task:
        raise UserError(
            f"{checkpoint.path} is a checkpoint of task {task} (asked for: {config.task})"
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


def load_onnx(path: str | os.PathLike) -> OnnxModel:
    """The model in a file that `export.py` wrote, from the file alone, run by onnxruntime.

    Returns:
        A function of images (N, C, H, W) float32, with the attributes that `load_model` gives.

    Raises:
        UserError: (a ValueError) onnxruntime is not installed, or the file is not such a one.
    """
    model = OnnxModel(path)
    described = Checkpoint({}, model.metadata, model.path)
    task = model.metadata["task"]
    config = InferConfig(task=task, onnx_path=os.fspath(path))
    model.preprocessing = TASKS[task](config, described).preprocessing()
    return model
