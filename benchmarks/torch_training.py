"""A training step in eager PyTorch: forward, backward, clip, AdamW. Needs no MindSpore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

RATE, DECAY, CLIP = 1e-6, 0.05, 5.0
AUXILIARY_WEIGHT = 0.4


def pixel_cross_entropy(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The loss of a segmentor, whose outputs are its logits and perhaps its auxiliary head's."""
    total = 0.0
    for logits, weight in zip(outputs, (1.0, AUXILIARY_WEIGHT), strict=False):
        resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
        total = total + weight * F.cross_entropy(resized, labels.long(), ignore_index=255)
    return total


def torch_training(
    model: torch.nn.Module,
    pixels: np.ndarray,
    targets: np.ndarray,
    loss_of: Callable[..., torch.Tensor] = F.cross_entropy,
) -> Callable[..., float]:
    """A call that makes one step on images (N, 3, H, W) and what they should give; the loss.

    It takes the learning rate, and computes in the type of the model. Targets of a classifier are
    probabilities (N, classes), those of a segmentor int32 (N, H, W).
    """
    parameters = list(model.train().parameters())
    exempt = [p for n, p in model.named_parameters() if p.ndim == 1 or n.startswith("pos_block.")]
    decayed = [p for p in parameters if all(p is not other for other in exempt)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": DECAY},
            {"params": exempt, "weight_decay": 0.0},
        ]
    )
    inputs = torch.from_numpy(pixels).to(parameters[0].dtype)
    labels = torch.from_numpy(targets)
    if labels.is_floating_point():
        labels = labels.to(parameters[0].dtype)

    def step(lr: float = RATE) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = loss_of(model(inputs), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item()

    return step
