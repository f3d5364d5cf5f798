"""Twenty training steps beside PyTorch's: the table of losses and weights.

    python benchmarks/step_parity.py [--models svt_small pcpvt_small]

The same random weights and batch, AdamW with clipping, decay groups, warmup and cosine. Largest
relative deviation of the 20 losses, and the relative L2 distance of all weights after them; beside
them PyTorch's own rounding, the same run in float32 against float64.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch

import mindtwins
from benchmarks.contestants import copy_weights, prepare
from benchmarks.torch_training import CLIP, DECAY, torch_training
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.conversion.layouts import LAYOUTS
from mindtwins.errors import UserError, run_cli
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW
from mindtwins.training.schedule import CosineSchedule
from mindtwins.training.step import MicroBatch, TrainStep

STEPS, BATCH, SIZE, CLASSES = 20, 8, 64, 1000
TOLERATED = 1e-4
SCHEDULE = CosineSchedule(1e-3, 1e-5, 1e-6, 1, 10, steps_per_epoch=2)
HEAD = "| model | losses | PyTorch alone | weights | PyTorch alone |"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = mindtwins.list_models()
    parser.add_argument("--models", nargs="+", default=["svt_small", "pcpvt_small"], choices=models)
    names = parser.parse_args(argv).models
    prepare(os.cpu_count() or 1)
    print(f"{HEAD}\n|{'---|' * 5}", flush=True)
    for name in names:
        rng = np.random.default_rng(0)
        images = rng.normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
        targets = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
        single = run_torch(name, images, targets, torch.float32)
        double = run_torch(name, images, targets, torch.float64)
        ours = run_mindtwins(name, images, targets)
        found, floor = deviations(ours, single), deviations(single, double)
        cells = (found[0], floor[0], found[1], floor[1])
        print(f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |", flush=True)
        if max(found) > TOLERATED:
            raise UserError(f"{name} is more than {TOLERATED:g} from PyTorch")


Run = tuple[np.ndarray, dict[str, np.ndarray]]


def run_torch(name: str, images: np.ndarray, targets: np.ndarray, dtype: torch.dtype) -> Run:
    """Losses and final weights of the reference."""
    model = randomize(create_reference(name)).to(dtype)
    step = torch_training(model, images, targets)
    losses = [step(SCHEDULE(number)) for number in range(STEPS)]
    return np.array(losses), {n: p.detach().numpy() for n, p in model.named_parameters()}


def run_mindtwins(name: str, images: np.ndarray, targets: np.ndarray) -> Run:
    """Losses and final weights of the MindSpore model, from the same weights."""
    model = mindtwins.create_model(name)
    copy_weights(randomize(create_reference(name)), model)
    optimizer = AdamW(parameter_groups(model, DECAY))
    scale = LossScale(1.0, 1, dynamic=False)
    step = TrainStep(model, SoftTargetCrossEntropy(), optimizer, scale, CLIP)
    batch = [MicroBatch(images, targets)]
    losses = [step(batch, SCHEDULE(number)).loss for number in range(STEPS)]
    names = LAYOUTS["official"]
    return np.array(losses), {names.to_theirs(p.name): p.asnumpy() for p in model.get_parameters()}


def deviations(found: Run, expected: Run) -> tuple[float, float]:
    """Largest relative deviation of the losses, relative L2 distance of the weights."""
    losses = np.abs(found[0] / expected[0] - 1).max()
    ours, theirs = (
        np.concatenate([weights[name].ravel().astype(np.float64) for name in expected[1]])
        for weights in (found[1], expected[1])
    )
    return losses, np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


if __name__ == "__main__":
    run_cli(main)
