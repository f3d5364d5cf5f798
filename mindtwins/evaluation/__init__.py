"""Evaluation of classifiers: metrics, the loop, and what a recipe needs built for it."""

from mindtwins.evaluation.build import build_model, evaluation_loader, find_images, use_device
from mindtwins.evaluation.evaluator import Evaluator
from mindtwins.evaluation.metrics import ImageScores, Metrics

__all__ = [
    "Evaluator",
    "ImageScores",
    "Metrics",
    "build_model",
    "evaluation_loader",
    "find_images",
    "use_device",
]
