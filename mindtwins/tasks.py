"""The one list of tasks: what models are trained for."""

from __future__ import annotations

from mindtwins.classification.task import Classification
from mindtwins.config import Config
from mindtwins.segmentation.task import Segmentation
from mindtwins.training.task import Task

TASKS = {"classification": Classification, "segmentation": Segmentation}


def create_task(config: Config) -> Task:
    """The task that a recipe states."""
    return TASKS[config.task](config)
