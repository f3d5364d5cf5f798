"""What both frameworks are given, made without either of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CLASSES = 1000
# The training step's learning rate, weight decay and largest norm of the gradient.
RATE, DECAY, CLIP = 1e-6, 0.05, 5.0
# What is multiplied with this to be "amplified", see `mindtwins.reference.weights.amplify`.
FACTOR = 3e-3
WEIGHTS = ("randomized", "amplified")


def images(batch: int, size: int) -> np.ndarray:
    """Normal noise, float32 (batch, 3, size, size)."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)


def targets(batch: int) -> np.ndarray:
    """A class per image, as soft targets: float32 (batch, CLASSES)."""
    return np.eye(CLASSES, dtype=np.float32)[np.arange(batch) % CLASSES]


def weights_file(folder: str, model: str) -> Path:
    """Where a model's random weights are, under PyTorch's names."""
    return Path(folder, f"{model}.weights.npz")


def expected_file(folder: str, model: str, weights: str) -> Path:
    """Where the outputs of the float64 reference are, in the order of `reference.stages`."""
    return Path(folder, f"{model}.{weights}.npz")


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a file that is there whole or not at all: another process waits for it."""
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, **arrays)
    unfinished.replace(path)


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in standard deviations of what is expected."""
    return float(np.abs(found.astype(np.float64) - expected).max() / expected.std())
