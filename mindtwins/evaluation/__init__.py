"""Evaluation of classifiers: metrics and the loop."""

from mindtwins.evaluation.evaluator import Evaluator
from mindtwins.evaluation.metrics import ImageScores, Metrics

__all__ = ["Evaluator", "ImageScores", "Metrics"]
