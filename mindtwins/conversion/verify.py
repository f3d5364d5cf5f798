"""Proof of a conversion: the written file in MindSpore against its source in PyTorch.

Both models see the two photographs that scikit-learn ships, with the weights as they are and with
amplified ones: trained and freshly initialized weights alike keep some mistakes (the epsilon of a
norm, for one) below the rounding noise, and scaling the convolutions in front of the norms brings
them out. The noise floor is measured, not assumed: it is how far the reference in float32 is from
itself in float64 on the same pictures and weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins.checkpoint import load_checkpoint
from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.conversion.accounting import widen
from mindtwins.conversion.readers import Source
from mindtwins.models import create_model
from mindtwins.models.twins import ClassifierOutputs
from mindtwins.reference import create_reference
from mindtwins.reference.segmentors import (
    create_backbone_reference,
    create_segmentation_reference,
    rename_sssegmentation,
)
from mindtwins.reference.weights import amplify
from mindtwins.segmentation.segmentor import SegmentorOutputs
from mindtwins.segmentation.variants import create_segmentor

# Height and width of the photographs. A segmentor's fill no whole patches and windows: on both axes
# in three stages, on one in the last.
SIZES = {"classification": (224, 224), "segmentation": (200, 260)}

# How many times the reference's own rounding error a difference may be. Two independent float32
# computations are about sqrt(2) apart, 1.7 at most in all six models; the smallest of the mistakes
# that the tests try (the epsilon of the blocks' norms) is 10 times the floor and more.
TOLERATED = 4.0

_AMPLIFIED = re.compile(r"(backbone\.)?patch_embeds\.\d\.proj\..*|.*\.sr\..*")
_FACTOR = 3e-3

# How the official segmentation code computes, for its reference.
_OFFICIAL_SEGMENTATION = {"patch_rounding": "floor", "block_epsilon": 1e-6, "embed_epsilon": 1e-5}


@dataclass(frozen=True)
class Comparison:
    """One output of the two models on both photographs.

    Attributes:
        weights: "as converted" or "amplified".
        stage: "stage1" to "stage4" or "logits" (without a head, the pooled features); of a
            segmentor also "neck1" to "neck4" or "auxiliary".
        max_abs: largest difference, in standard deviations of the reference.
        relative_l2: L2 norm of the difference over that of the reference.
        max_abs_floor, relative_l2_floor: the same of the reference's own rounding.
    """

    weights: str
    stage: str
    max_abs: float
    relative_l2: float
    max_abs_floor: float
    relative_l2_floor: float

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding; not so for NaN."""
        return (
            self.max_abs <= TOLERATED * self.max_abs_floor
            and self.relative_l2 <= TOLERATED * self.relative_l2_floor
        )


def verify(
    ckpt_path: Path,
    source: Source,
    names: Iterable[str],
    progress: Callable[[str], None] = lambda message: None,
) -> list[Comparison]:
    """Compare the model in a converted checkpoint with the reference that holds its source.

    Args:
        ckpt_path: what the conversion wrote.
        source: what it read.
        names: the tensors of the source that it used.
        progress: is told what is being done.

    Returns:
        One comparison per stage and kind of weights.

    Raises:
        UserError: the checkpoint does not load.
    """
    metadata = load_checkpoint(ckpt_path).metadata
    state = {name: torch.tensor(widen(source.tensors[name])) for name in names}
    pair = _segmentors if metadata.get("task") == "segmentation" else _classifiers
    images = photographs(metadata["in_channels"], *SIZES[metadata.get("task", "classification")])
    comparisons = []
    with _graph_mode():
        model, reference = pair(ckpt_path, metadata, state)
        progress("compiling the MindSpore model and running both on two photographs")
        for weights in ("as converted", "amplified"):
            if weights == "amplified":
                amplify(reference, _FACTOR)
                _amplify(model)
            comparisons += compare(model, reference, images, weights)
    return comparisons


# The references have their own idea of the epsilons and of the padding, not the file's: these are
# part of what is verified.
def _classifiers(
    ckpt_path: Path, metadata: dict, state: dict[str, torch.Tensor]
) -> tuple[nn.Cell, torch.nn.Module]:
    """The converted classifier and the reference with its source's state."""
    name, channels = metadata["variant"], metadata["in_channels"]
    # A head that is not the source's has nothing to be compared with.
    classes = 0 if metadata["filled"] else metadata["num_classes"]
    if metadata["source"]["layout"] == "mmsegmentation":
        reference = create_backbone_reference(name, channels)
    else:
        reference = create_reference(name, classes, channels)
    reference.load_state_dict(state)
    return ClassifierOutputs(create_model(name, classes, channels, ckpt_path)), reference


def _segmentors(
    ckpt_path: Path, metadata: dict, state: dict[str, torch.Tensor]
) -> tuple[nn.Cell, torch.nn.Module]:
    """The converted segmentor and the reference with its source's state."""
    shape = {key: metadata[key] for key in ("num_classes", "in_channels")}
    official = metadata["source"]["layout"] == "official"
    reference = create_segmentation_reference(
        metadata["variant"],
        **shape,
        channels=metadata["channels"],
        auxiliary_channels=metadata["auxiliary_channels"],
        official_names=official,
        **(_OFFICIAL_SEGMENTATION if official else {}),
    )
    if metadata["source"]["layout"] == "sssegmentation":
        state = rename_sssegmentation(state)
    segmentor = create_segmentor(metadata["variant"], ckpt_path=ckpt_path, **shape)
    # A new classifier is all zeros: both get the one that the reference was initialized with.
    new = {name: reference.state_dict()[name].clone() for name in metadata["filled"]}
    for parameter in segmentor.get_parameters():
        if parameter.name in new:
            parameter.set_data(Tensor(new[parameter.name].numpy()))
    reference.load_state_dict(state | new)
    return SegmentorOutputs(segmentor), reference


def compare(
    model: nn.Cell, reference: torch.nn.Module, images: np.ndarray, weights: str
) -> list[Comparison]:
    """Compare each output of a model with the one of `reference.stages` in the same place."""
    outputs = [output.asnumpy() for output in model(Tensor(images))]
    expected, exact = _run_reference(reference, images)
    comparisons = []
    for stage, found in zip(expected, outputs, strict=True):
        measures = _measure(found, expected[stage], exact[stage])
        comparisons.append(Comparison(weights, stage, **measures))
    return comparisons


def format_table(comparisons: list[Comparison]) -> str:
    """The comparisons as a text table, with the limits beside the values."""
    lines = [
        f"{'weights':<14}{'output':<10}{'max abs / std':>14}{'limit':>10}"
        f"{'relative L2':>14}{'limit':>10}"
    ]
    for row in comparisons:
        lines.append(
            f"{row.weights:<14}{row.stage:<10}"
            f"{row.max_abs:>14.1e}{TOLERATED * row.max_abs_floor:>10.1e}"
            f"{row.relative_l2:>14.1e}{TOLERATED * row.relative_l2_floor:>10.1e}"
            f"{'  ok' if row.passed else '  FAILED'}"
        )
    return "\n".join(lines)


def photographs(channels: int = 3, height: int = 224, width: int = 224) -> np.ndarray:
    """The two photographs as the ImageNet evaluation sees them: float32 (2, channels, H, W).

    For a model of another number of channels than three, red, green and blue repeat.
    """
    transform = EvaluationTransform(
        max(height, width), crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    images = np.stack([transform(picture)[np.arange(channels) % 3] for picture in pictures])
    return np.ascontiguousarray(images[:, :, :height, :width])


@torch.no_grad()
def _run_reference(
    reference: torch.nn.Module, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All outputs of the reference in float32, and the same computed in float64."""
    single = reference.stages(torch.from_numpy(images))
    double = reference.double().stages(torch.from_numpy(images).double())
    reference.float()
    return ({stage: x.numpy() for stage, x in outputs.items()} for outputs in (single, double))


def _amplify(model: nn.Cell) -> None:
    """What `mindtwins.reference.weights.amplify` does, for the MindSpore model."""
    for parameter in model.get_parameters():
        if _AMPLIFIED.fullmatch(parameter.name):
            parameter.set_data(Tensor(parameter.asnumpy() * np.float32(_FACTOR)))


def _measure(found: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The four numbers of a Comparison."""
    if found.shape != exact.shape:
        found = np.full_like(exact, np.nan)
    spread, length = exact.std(), np.linalg.norm(exact)
    difference, rounding = found - expected, expected - exact
    return {
        "max_abs": float(abs(difference).max() / spread),
        "relative_l2": float(np.linalg.norm(difference) / length),
        "max_abs_floor": float(abs(rounding).max() / spread),
        "relative_l2_floor": float(np.linalg.norm(rounding) / length),
    }


@contextmanager
def _graph_mode() -> Iterator[None]:
    """Compile models instead of interpreting them, which takes minutes; then as before."""
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=before)
