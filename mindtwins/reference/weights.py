"""Weights that make mistakes visible.

With the default initialization (biases 0, norms 1, matrices small) a wrong epsilon or a swapped
pair of heads stays below the rounding noise; these weights bring them out.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with random values, none trivially 0 or 1; returns `model`.

    Matrices and convolutions get std 1 / sqrt(fan_in), biases std 0.1, norm weights 1 +- 0.1, the
    statistics of batch norms means 0 +- 0.3 and variances between 0.5 and 1.5.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values = 0.1 * values
            elif parameter.ndim == 1:
                values = 1 + 0.1 * values
            else:
                values = values / parameter[0].numel() ** 0.5
            parameter.copy_(values)
        for name, statistic in module.named_buffers(recurse=False):
            if name == "running_mean":
                statistic.copy_(0.3 * torch.randn(statistic.shape, generator=generator))
            elif name == "running_var":
                statistic.copy_(0.5 + torch.rand(statistic.shape, generator=generator))
    return model


# As it was called before names became American: scripts outside of this project use it.
randomise = randomize


@torch.no_grad()
def amplify(model: nn.Module, factor: float = 3e-3) -> nn.Module:
    """Scale the convolutions before the 1e-5 norms, patch embedding and sub-sampling.

    That brings the variance that those norms see down to their epsilon, so that a wrong epsilon
    changes the logits by their own size. Returns `model`.
    """
    for name, parameter in model.named_parameters():
        if ".sr." in name or ("patch_embeds." in name and ".proj" in name):
            parameter.mul_(factor)
    return model
