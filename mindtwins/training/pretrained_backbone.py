"""The backbone of a dense predictor from a checkpoint that holds one; most began as classifiers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mindspore import Parameter, nn

from mindtwins.checkpoint import TRAINING_STATE, Checkpoint, load_checkpoint, load_into
from mindtwins.errors import UserError

_BACKBONE = "backbone."  # before its names in a model that has more than a classifier
_LEFT_OUT = {
    "norm.": "the classifier's norm, which is not used here",
    "head.": "the classifier's head, which is not used here",
    **dict.fromkeys(TRAINING_STATE, "the state of a training, not weights"),
}
_NOT_BACKBONE = "not of the backbone"
_STAGE_NORMS = "backbone.norm_list."  # not in a classifier


class DensePredictor(Protocol):
    """A model with a backbone.

    Attributes:
        backbone: its parameters' names begin with "backbone.".
        backbone_variant: which one it is.
    """

    backbone: nn.Cell
    backbone_variant: str

    def get_parameters(self) -> Iterable[Parameter]: ...


@dataclass(frozen=True)
class BackboneReport:
    """Where every tensor of the checkpoint and every parameter of the model went.

    Attributes:
        path: the checkpoint.
        used: its tensors that the backbone holds now.
        left_out: its other tensors to the reason.
        fresh: parameters of the model that stayed as they were initialized.
    """

    path: Path
    used: tuple[str, ...]
    left_out: dict[str, str]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"backbone from {self.path}: {len(self.used)} tensors used"]
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            lines.append(f"left out: {', '.join(names)} ({reason})")
        modules = dict.fromkeys(_module(name) for name in self.fresh)
        lines.append(f"initialized anew: {', '.join(modules)} ({len(self.fresh)} tensors)")
        return "\n".join(lines)


def _module(name: str) -> str:
    return _STAGE_NORMS.removesuffix(".") if name.startswith(_STAGE_NORMS) else name.split(".")[0]


def load_backbone(model: DensePredictor, ckpt_path: str | os.PathLike) -> BackboneReport:
    """Fill the backbone from one of the same variant: a classifier's or another dense predictor's.

    The checkpoint may be of weights alone or of a step of a training; a classifier's may be without
    a head. The model keeps its own dialect: the weights may be made for classification, whose
    conventions differ, and are trained on.

    Args:
        model: as it was built.
        ckpt_path: a checkpoint of this project.

    Raises:
        UserError: the checkpoint is none, or not of this backbone.
    """
    checkpoint = load_checkpoint(ckpt_path)
    _expect_backbone(checkpoint, model.backbone_variant)
    left_out = {
        name: reason
        for name in checkpoint.tensors
        for prefix, reason in _LEFT_OUT.items()
        if name.startswith(prefix)
    }
    rest = [name for name in checkpoint.tensors if name not in left_out]
    renamed = {name: f"{_BACKBONE}{name}" for name in rest}
    if any(name.startswith(_BACKBONE) for name in rest):
        renamed = {name: name for name in rest if name.startswith(_BACKBONE)}
        left_out |= {name: _NOT_BACKBONE for name in rest if name not in renamed}
    tensors = {renamed[name]: checkpoint.tensors[name] for name in renamed}
    load_into(model.backbone, replace(checkpoint, tensors=tensors), allow_missing=(_STAGE_NORMS,))
    fresh = [parameter.name for parameter in model.get_parameters()]
    fresh = [name for name in fresh if name not in tensors]
    return BackboneReport(checkpoint.path, tuple(renamed), left_out, tuple(fresh))


def _expect_backbone(checkpoint: Checkpoint, variant: str) -> None:
    """Raise a UserError if a checkpoint states another; a model's name ends in its backbone's."""
    stated = checkpoint.stated.get("variant", variant)
    if stated != variant and not stated.endswith(f"_{variant}"):
        raise UserError(
            f"{checkpoint.path} is a checkpoint of {stated}, whose backbone is not {variant}"
        )
