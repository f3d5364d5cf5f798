"""A training step in eager PyTorch: forward, backward, clip, AdamW. Needs no MindSpore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

RATE, DECAY, CLIP = 1e-6, 0.05, 5.0


def torch_training(
    model: torch.nn.Module, pixels: np.ndarray, targets: np.ndarray
) -> Callable[[], float]:
    """A call that makes one step on images (N, 3, H, W) and targets (N, classes); the loss."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    inputs, labels = torch.from_numpy(pixels), torch.from_numpy(targets)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item()

    return step
