"""The one list of tasks: what models are trained for."""

from __future__ import annotations

from mindtwins.classification.kind import ClassifierKind
from mindtwins.classification.task import Classification
from mindtwins.config import Config
from mindtwins.conversion.kinds import Kinds
from mindtwins.segmentation.kind import SegmentorKind
from mindtwins.segmentation.task import Segmentation
from mindtwins.segmentation.variants import create_segmentor, list_segmentors
from mindtwins.training.task import Task

__all__ = ["KINDS", "TASKS", "create_segmentor", "create_task", "list_segmentors"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}
# What a conversion knows of each task's models.
KINDS: Kinds = {"classification": ClassifierKind(), "segmentation": SegmentorKind()}


def create_task(config: Config) -> Task:
    """The task that a recipe states."""
    return TASKS[config.task](config)
