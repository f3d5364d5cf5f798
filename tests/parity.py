"""Comparison of a MindSpore model with the PyTorch reference, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

from mindtwins.conversion.verify import compare, format_table
from mindtwins.reference.weights import amplify, randomize

# Largest deviation in units of the reference's standard deviation. Between fp32 and fp64 of the
# reference itself there are up to 7e-6 in the stage maps and 3e-6 in the logits (all six models).
STAGE_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 5e-6

_NORM_WORDS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

WEIGHTS = {
    "default": lambda model: model,
    "randomized": randomize,
    "amplified": lambda model: amplify(randomize(model)),
}


def photographs(height: int, width: int, batch: int = 1) -> np.ndarray:
    """Normalized crops (batch, 3, height, width) of the photographs that scikit-learn ships.

    They are 427 x 640; what lies beyond is a mirror image.
    """
    from sklearn.datasets import load_sample_images

    margins = ((0, 8 * batch + max(0, height - 427)), (0, 8 * batch + max(0, width - 640)), (0, 0))
    images = [np.pad(image, margins, "symmetric") for image in load_sample_images().images]
    crops = [images[i % 2][8 * i : 8 * i + height, 8 * i : 8 * i + width] for i in range(batch)]
    pixels = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray((pixels - 0.45) / 0.225)


def on_or_off(reference: torch.nn.Module) -> torch.nn.Module:
    """Random weights, but those of batch norms open or shut each channel's ReLU for good.

    A value that rounding puts on the other side of zero changes gradients by 1e-3, in torch too.
    """
    randomize(reference)
    generator = torch.Generator().manual_seed(1)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            sign = torch.randint(0, 2, module.bias.shape, generator=generator) * 2 - 1
            module.bias.data = 10.0 * sign * module.weight.data.abs()
    return reference


def copy_weights(reference: torch.nn.Module, cell: nn.Cell) -> None:
    """Fill the cell from the reference by the naming rule alone, every tensor used once."""
    tensors = {
        name: tensor.numpy()
        for name, tensor in reference.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(tensors.pop(name_in_torch(parameter.name))))
    assert not tensors


def name_in_torch(name: str) -> str:
    """The reference's name of a parameter: norms are called otherwise, the rest is the same."""
    for ours, theirs in _NORM_WORDS.items():
        name = name.replace(f".{ours}", f".{theirs}")
    return name


@contextmanager
def same_names(cell: nn.Cell) -> Iterator[None]:
    """What is done gives no parameter another name, as building cells of cells would."""
    before = [parameter.name for parameter in cell.get_parameters()]
    yield
    assert [parameter.name for parameter in cell.get_parameters()] == before


def assert_stages_agree(cell: nn.Cell, reference: torch.nn.Module, images: np.ndarray) -> None:
    """`cell` gives the outputs of `reference.stages`, in order, within the tolerances above."""
    with same_names(cell):
        actual = [output.asnumpy() for output in cell(Tensor(images, ms.float32))]
        with torch.no_grad():
            stages = reference.stages(torch.from_numpy(images))
        expected = {name: t.numpy() for name, t in stages.items()}
        assert len(actual) == len(expected)
        for ours, (name, theirs) in zip(actual, expected.items(), strict=True):
            assert ours.shape == theirs.shape, name
            deviation = np.abs(ours - theirs).max() / theirs.std()
            tolerance = LOGITS_TOLERANCE if name == "logits" else STAGE_TOLERANCE
            assert deviation < tolerance, f"{name}: {deviation:.1e} of its std"


def assert_same_up_to_rounding(cell: nn.Cell, reference: torch.nn.Module, images: np.ndarray):
    """As above, with tolerances measured: a multiple of the reference's own rounding error.

    Returns the comparisons.
    """
    with same_names(cell):
        comparisons = compare(cell, reference, images, "as they are")
    assert all(row.passed for row in comparisons), "\n" + format_table(comparisons)
    return comparisons
