"""Comparison of a MindSpore model with the PyTorch reference, stage by stage."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

from mindtwins.reference.weights import amplify, randomise

# Largest deviation in units of the reference's standard deviation. Between fp32 and fp64 of the
# reference itself there are up to 7e-6 in the stage maps and 3e-6 in the logits (all six models).
STAGE_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 5e-6

WEIGHTS = {
    "default": lambda model: model,
    "randomised": randomise,
    "amplified": lambda model: amplify(randomise(model)),
}


def photographs(height: int, width: int, batch: int = 1) -> np.ndarray:
    """Normalised crops (batch, 3, height, width) of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    crops = [images[i % 2][8 * i : 8 * i + height, 8 * i : 8 * i + width] for i in range(batch)]
    pixels = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray((pixels - 0.45) / 0.225)


def copy_weights(reference: torch.nn.Module, cell: nn.Cell) -> None:
    """Fill the cell from the reference by the naming rule alone, every tensor used once."""
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    for parameter in cell.get_parameters():
        name = parameter.name.replace(".gamma", ".weight").replace(".beta", ".bias")
        parameter.set_data(Tensor(tensors.pop(name)))
    assert not tensors


def assert_stages_agree(cell: nn.Cell, reference: torch.nn.Module, images: np.ndarray) -> None:
    """`cell` gives the outputs of `reference.stages`, in order, within the tolerances above."""
    actual = [output.asnumpy() for output in cell(Tensor(images, ms.float32))]
    with torch.no_grad():
        expected = {
            name: t.numpy() for name, t in reference.stages(torch.from_numpy(images)).items()
        }
    assert len(actual) == len(expected)
    for ours, (name, theirs) in zip(actual, expected.items(), strict=True):
        assert ours.shape == theirs.shape, name
        deviation = np.abs(ours - theirs).max() / theirs.std()
        tolerance = LOGITS_TOLERANCE if name == "logits" else STAGE_TOLERANCE
        assert deviation < tolerance, f"{name}: {deviation:.1e} of its std"
