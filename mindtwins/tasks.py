"""The one list of tasks: what models are trained for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mindspore import nn

from mindtwins.checkpoint import Checkpoint, expect_metadata, load_checkpoint
from mindtwins.classification.export import ClassifierExport
from mindtwins.classification.kind import ClassifierKind
from mindtwins.classification.service import ClassificationService
from mindtwins.classification.task import Classification
from mindtwins.config import (
    PUBLISHED_WEIGHTS,
    Config,
    InferConfig,
    PredictConfig,
    ValidateConfig,
)
from mindtwins.console import tell
from mindtwins.conversion.kinds import Kinds, identified
from mindtwins.detection.kind import DetectorKind
from mindtwins.detection.task import DetectionTask
from mindtwins.detection.variants import create_detector, list_detectors
from mindtwins.distribution.launch import rank_0_first
from mindtwins.errors import UserError
from mindtwins.export.kinds import ExportKinds
from mindtwins.export.onnx_model import OnnxModel
from mindtwins.hub import sharing
from mindtwins.hub.pretrained import load_pretrained, published_repository
from mindtwins.models import variants
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
    "create_detector",
    "create_model",
    "create_segmentor",
    "create_task",
    "find_checkpoint",
    "list_detectors",
    "list_segmentors",
    "load_model",
    "load_onnx",
    "push_to_hub",
    "save_pretrained",
]

Of = TypeVar("Of")

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": DetectionTask,
}
# What a conversion knows of each task's models.
KINDS: Kinds = {
    "classification": ClassifierKind(),
    "segmentation": SegmentorKind(),
    "detection": DetectorKind(),
}
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
    if not config.weights:
        return TASKS[config.task](config)
    return _task_of(config, find_checkpoint(config))


def exported_task(config: ValidateConfig | PredictConfig) -> tuple[Task, OnnxModel]:
    """The task of a recipe and of the exported file that it names, and that file's model.

    Raises:
        UserError: the file cannot be read, is not for the images of the scripts, or is for another
            task than the recipe.
    """
    if config.weights:
        raise UserError(
            f"{config.weights} and onnx_path ({config.onnx_path}) contradict each other:"
            " name the one file whose model is to run"
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


def of_task(table: Mapping[str, Of], task: str, done: str) -> Of:
    """What a table has for a task.

    Args:
        done: what it is for, such as "exported".

    Raises:
        UserError: it has nothing for that task yet.
    """
    if task not in table:
        raise UserError(
            f"models for {task} cannot be {done} yet, only those for {' and '.join(table)}"
        )
    return table[task]


def find_checkpoint(config: Config) -> Checkpoint:
    """The checkpoint that a recipe names, by path or by what it was published as.

    Raises:
        UserError: it cannot be had, or holds no model that is known here.
    """
    if not config.pretrained:
        return identified(KINDS, load_checkpoint(config.ckpt_path))
    source = config.pretrained
    if source == PUBLISHED_WEIGHTS:
        if config.task != "classification":
            raise UserError(
                f"the published weights are classifiers, which are no {config.model}: convert one"
                " with mindtwins convert and name it with --pretrained_backbone, or name what"
                " --pretrained is to fetch"
            )
        source = published_repository(config.model)
    return rank_0_first(lambda: load_pretrained(KINDS, source))


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    ckpt_path: str | Path | Checkpoint | None = None,
    *,
    pretrained: bool | str | os.PathLike = False,
    **options: Any,
) -> nn.Cell:
    """Build a Twins classifier or backbone: see `mindtwins.models.variants.create_model`.

    Args:
        num_classes: width of the head; left out, 1000 or what `pretrained` has. Weights of another
            number of classes get a new head of this one.
        pretrained: True for the weights that the authors published, from the hub; else the file,
            folder or repository of others, see `mindtwins.hub.pretrained.load_pretrained`.
        options: as there.

    Returns:
        The model, in evaluation mode. With `pretrained`, it has the attributes that `load_model`
        gives.

    Raises:
        UserError: (a ValueError) as there, or the weights cannot be had or are not this model's.
    """
    if pretrained is False or pretrained is None:
        classes = 1000 if num_classes is None else num_classes
        return variants.create_model(name, classes, in_channels, ckpt_path, **options)
    if ckpt_path is not None:
        raise UserError("pretrained and ckpt_path both say which weights to take: give one of them")
    if pretrained == "":
        raise UserError("pretrained is an empty text: name the weights, or leave it out")
    source = published_repository(name) if pretrained is True else pretrained
    checkpoint = load_pretrained(KINDS, source)
    found = checkpoint.stated["num_classes"]
    classes = found if num_classes is None else num_classes
    if classes not in (0, found) and not options.get("features_only"):
        if not options.setdefault("new_head", True):
            raise UserError(
                f"{checkpoint.path} has {found} classes, not {classes}: new_head=True starts a"
                " head for these"
            )
        tell(f"the head of {checkpoint.path} has {found} classes: a new one of {classes} starts")
    model = variants.create_model(name, classes, in_channels, checkpoint, **options)
    stated = checkpoint.stated | {"num_classes": classes, "dialect": asdict(model.dialect)}
    if classes != found or options.get("new_head"):
        stated["classes"] = None  # a new head knows none
    return _describe(model, replace(checkpoint, metadata=stated))


def load_model(source: str | os.PathLike) -> nn.Cell:
    """Build the model that a checkpoint of this project holds, from the file alone.

    Args:
        source: `.ckpt` or `.safetensors`; or a folder that `save_pretrained` wrote, or a repository
            "owner/name" on the hub, see `mindtwins.hub.pretrained.load_pretrained`.

    Returns:
        The classifier, segmentor or detector with its weights, in evaluation mode, and with three
        attributes: `preprocessing`, from an RGB picture to what the model takes; `classes`, their
        names by number (None where the file has none); `metadata`, all that the file says.

    Raises:
        UserError: (a ValueError) the file cannot be read, or holds no such model.
    """
    checkpoint = load_pretrained(KINDS, source)
    return _describe(KINDS[checkpoint.stated["task"]].create(checkpoint), checkpoint)


def save_pretrained(
    source: nn.Cell | Checkpoint | str | os.PathLike,
    folder: str | os.PathLike,
    report: str | os.PathLike | None = None,
    license: str | None = None,
) -> None:
    """Write a model's folder, which `load_model` reads: see `mindtwins.hub.sharing.save_folder`."""
    sharing.save_folder(KINDS, source, folder, report, license)


def push_to_hub(
    source: nn.Cell | Checkpoint | str | os.PathLike,
    repository: str,
    report: str | os.PathLike | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a model on the hub, where `load_model` finds it: see `mindtwins.hub.sharing.upload`."""
    return sharing.upload(KINDS, source, repository, report, license, private, token)


def _describe(model: nn.Cell, checkpoint: Checkpoint) -> nn.Cell:
    """The model with what its checkpoint says of its use, as attributes."""
    task = checkpoint.stated["task"]
    model.metadata = checkpoint.metadata
    described = TASKS[task](InferConfig(task=task, ckpt_path=str(checkpoint.path)), checkpoint)
    model.preprocessing = described.preprocessing()
    model.classes = described.classes and tuple(described.class_names())
    return model


def load_onnx(path: str | os.PathLike) -> OnnxModel:
    """The model in a file that `mindtwins export` wrote, from the file alone, run by onnxruntime.

    Returns:
        A function of images (N, C, H, W) float32, with the attributes that `load_model` gives.

    Raises:
        UserError: (a ValueError) onnxruntime is not installed, or the file is not such a one.
    """
    model = OnnxModel(path)
    described = Checkpoint({}, model.metadata, model.path)
    task = model.metadata["task"]
    config = InferConfig(task=task, onnx_path=os.fspath(path))
    exported = TASKS[task](config, described)
    # A file that prepares pictures itself takes their pixels.
    model.preprocessing = np.asarray if model.takes_pictures else exported.preprocessing()
    model.classes = exported.classes and tuple(exported.class_names())
    return model
