"""MindTwins and plain PyTorch doing the same work with the same weights and inputs.

Weights are randomized: with default-initialized ones activations are so small that some
operations (MindSpore's erf) are faster than they would be in use.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

import mindtwins
from benchmarks.torch_training import (
    AUXILIARY_WEIGHT,
    CLIP,
    DECAY,
    RATE,
    pixel_cross_entropy,
    torch_training,
)
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import randomize
from mindtwins.segmentation.loss import PixelCrossEntropy
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW
from mindtwins.training.step import MicroBatch, TrainStep

MINDTWINS, TORCH, TIMM, COMPILED = "MindTwins", "torch eager", "timm", "torch.compile"
Work = Callable[[], object]

CLASSES = 1000


def images(batch: int, size: int) -> np.ndarray:
    """Normal noise (batch, 3, size, size)."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def copy_weights(reference: torch.nn.Module, cell: nn.Cell) -> None:
    """Give a MindTwins model the weights of the reference."""
    tensors = reference.state_dict()
    for parameter in cell.get_parameters():
        name = parameter.name.replace(".gamma", ".weight").replace(".beta", ".bias")
        parameter.set_data(Tensor(tensors[name].numpy()))


class Models:
    """One architecture in both frameworks; `work` gives a call per contestant."""

    def __init__(self, name: str, features_only: bool = False) -> None:
        self.name = name
        self.reference = randomize(create_reference(name, features_only=features_only))
        self.cell = mindtwins.create_model(name, features_only=features_only)
        copy_weights(self.reference, self.cell)
        self._others: dict[str, torch.nn.Module] = {}

    def add_timm(self) -> None:
        """Let timm's model compete too; it has its own weights of the same size.

        Raises:
            ImportError: timm is not installed, or does not work here.
        """
        import timm

        self._others[TIMM] = randomize(timm.create_model(f"twins_{self.name}")).eval()

    def add_compiled(self, pixels: np.ndarray) -> None:
        """Let the reference, compiled by torch.compile for such images, compete too."""
        compiled = torch.compile(self.reference)
        with torch.inference_mode():
            compiled(torch.from_numpy(pixels))
        self._others[COMPILED] = compiled

    def work(self, batch: int, size: int = 224) -> dict[str, Work]:
        """Inference on images (batch, 3, size, size), with the outputs brought to the host."""
        pixels = images(batch, size)
        ours, theirs = Tensor(pixels), torch.from_numpy(pixels)

        def run_ours() -> list[np.ndarray]:
            outputs = self.cell(ours)
            return [t.asnumpy() for t in (outputs if isinstance(outputs, tuple) else (outputs,))]

        def runner(model: torch.nn.Module) -> Work:
            def run() -> object:
                with torch.inference_mode():
                    return model(theirs)

            return run

        contestants = {MINDTWINS: run_ours, TORCH: runner(self.reference)}
        return contestants | {name: runner(model) for name, model in self._others.items()}


def training(name: str, batch: int) -> dict[str, Work]:
    """A training step at 224: forward, backward, clip to a norm of 5, AdamW."""
    models = Models(name)
    pixels, targets = images(batch, 224), np.eye(CLASSES, dtype=np.float32)[:batch]
    return {
        MINDTWINS: our_training(models.cell, pixels, targets, SoftTargetCrossEntropy()),
        TORCH: torch_training(models.reference, pixels, targets),
    }


def segmentation(name: str, batch: int, train: bool) -> dict[str, Work]:
    """Inference or a training step of a segmentor at 512; each has random weights of its own."""
    cell, reference = mindtwins.create_segmentor(name), create_segmentation_reference(name)
    pixels = images(batch, 512)
    if not train:
        ours, theirs = Tensor(pixels), torch.from_numpy(pixels)
        return {
            MINDTWINS: lambda: cell(ours).asnumpy(),
            TORCH: torch.inference_mode()(lambda: reference(theirs)),
        }
    labels = np.random.default_rng(1).integers(0, 150, (batch, 512, 512), np.int32)
    loss = PixelCrossEntropy((1.0,) if cell.auxiliary_head is None else (1.0, AUXILIARY_WEIGHT))
    return {
        MINDTWINS: our_training(cell, pixels, labels, loss),
        TORCH: torch_training(reference, pixels, labels, pixel_cross_entropy),
    }


def our_training(cell: nn.Cell, pixels: np.ndarray, targets: np.ndarray, loss: nn.Cell) -> Work:
    """A call that makes one step with MindTwins' own training step."""
    optimizer = AdamW(parameter_groups(cell.set_train(), DECAY))
    step = TrainStep(cell, loss, optimizer, LossScale(1.0, 1, dynamic=False), CLIP)
    return lambda: step([MicroBatch(pixels, targets)], RATE)


def prepare(threads: int) -> None:
    """Graph mode, and as many threads for torch as MindSpore uses."""
    ms.set_context(mode=ms.GRAPH_MODE)
    torch.set_num_threads(threads)
