"""Proof of a conversion: the written file in MindSpore against its source in PyTorch.

Both models see crops of the two photographs that scikit-learn ships, with the weights as they are
and with amplified ones: trained and freshly initialized weights alike keep some mistakes (the
epsilon of a norm, for one) below the rounding noise, and scaling the convolutions in front of the
norms brings them out. The noise floor is measured, not assumed: it is how far the reference in
float32 is from itself in float64 on the same pictures and weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

from mindtwins.checkpoint import load_checkpoint
from mindtwins.conversion.accounting import widen
from mindtwins.conversion.converter import Conversion
from mindtwins.conversion.kinds import Kinds, find_layout
from mindtwins.conversion.readers import Source
from mindtwins.data.photographs import normalized_crops
from mindtwins.reference.weights import amplify

# How many times the reference's own rounding error a difference may be. Two independent float32
# computations are about sqrt(2) apart, 1.7 at most in all six models; the smallest of the mistakes
# that the tests try (the epsilon of the blocks' norms) is 10 times the floor and more.
TOLERATED = 4.0
# The floor is not taken for less than two roundings of a number: of a few logits, the largest
# rounding of either model is luck.
LEAST_FLOOR = 2 * float(np.finfo(np.float32).eps)

_AMPLIFIED = re.compile(r"(backbone\.)?patch_embeds\.\d\.proj\..*|.*\.sr\..*")
_FACTOR = 3e-3


@dataclass(frozen=True)
class Comparison:
    """One output of the two models on both photographs.

    Attributes:
        weights: "as converted" or "amplified".
        stage: "stage1" to "stage4" or "logits" (without a head, the features before it); of a
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
    kinds: Kinds,
    conversion: Conversion,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Comparison]:
    """Compare the model in a converted checkpoint with the reference that holds its source.

    Args:
        ckpt_path: what was written.
        source: what was read.
        kinds: the kinds of models that it may be, by task.
        conversion: which of the source's tensors the model is.
        progress: is told what is being done.

    Returns:
        One comparison per stage and kind of weights.

    Raises:
        UserError: the checkpoint does not load.
    """
    checkpoint = load_checkpoint(ckpt_path)
    metadata = checkpoint.stated
    kind = kinds[metadata["task"]]
    architecture = {key: metadata[key] for key in kind.architecture_keys}
    layout = find_layout(kinds, metadata["source"]["layout"], metadata["task"])
    reference = layout.reference.build(metadata["variant"], architecture)
    selection = conversion.selection
    state = {
        name: torch.tensor(widen(source.array(selection.places[full])))
        for name, full in selection.names.items()
        if full in conversion.account.used
    }
    # What the source lacks is all zeros in the file: both get what the reference starts with.
    theirs = {}
    for name in metadata["filled"]:
        spelled = layout.to_theirs(name, ())
        assert spelled is not None  # of the head, which every layout has
        theirs[name] = next(iter(layout.reference.renamed({spelled: None})))
    new = {name: reference.state_dict()[theirs[name]].clone() for name in theirs}
    renamed = layout.reference.renamed(state)
    reference.load_state_dict(renamed | {theirs[name]: new[name] for name in new})
    images = normalized_crops(2, metadata["in_channels"], *kind.verified_size)
    comparisons = []
    with _graph_mode():
        model = kind.outputs(checkpoint)
        for parameter in model.get_parameters():
            if parameter.name in new:
                parameter.set_data(Tensor(new[parameter.name].numpy()))
        progress("compiling the MindSpore model and running both on two photographs")
        for weights in ("as converted", "amplified"):
            if weights == "amplified":
                amplify(reference, _FACTOR)
                _amplify(model)
            comparisons += compare(model, reference, images, weights)
    return comparisons


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


@torch.no_grad()
def _run_reference(
    reference: torch.nn.Module, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All outputs of the reference in float32, and the same computed in float64."""
    twin: Any = reference  # torch takes a module's `stages` for a tensor
    single = twin.stages(torch.from_numpy(images))
    double = twin.double().stages(torch.from_numpy(images).double())
    reference.float()
    return (
        {stage: x.numpy() for stage, x in single.items()},
        {stage: x.numpy() for stage, x in double.items()},
    )


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
        "max_abs_floor": max(LEAST_FLOOR, float(abs(rounding).max() / spread)),
        "relative_l2_floor": max(LEAST_FLOOR, float(np.linalg.norm(rounding) / length)),
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
