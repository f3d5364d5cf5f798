"""Datasets, transforms, mixing and loaders: from image files to NumPy batches."""

from mindtwins.data.digits import write_digits
from mindtwins.data.evaluation_transform import EvaluationTransform
from mindtwins.data.image_folder import ImageFolder, check_same_classes, find_split
from mindtwins.data.loader import (
    EvaluationBatch,
    EvaluationLoader,
    TrainingBatch,
    TrainingLoader,
    build_evaluation_loader,
    build_training_loader,
)
from mindtwins.data.mixing import Mixing
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.data.training_transform import TrainingTransform

__all__ = [
    "EvaluationBatch",
    "EvaluationLoader",
    "EvaluationTransform",
    "ImageFolder",
    "Mixing",
    "RandomErasing",
    "TrainingBatch",
    "TrainingLoader",
    "TrainingTransform",
    "build_evaluation_loader",
    "build_training_loader",
    "check_same_classes",
    "find_split",
    "write_digits",
]
