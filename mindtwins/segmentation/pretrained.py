"""A segmentor's backbone from a classifier's checkpoint, as every published segmentor started."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from mindtwins.checkpoint import expect_metadata, load_checkpoint, load_into
from mindtwins.segmentation.segmentor import Segmentor

_LEFT_OUT = {
    "norm.": "the classifier's norm, which segmentation does not use",
    "head.": "the classifier's head, which segmentation does not use",
}
_STAGE_NORMS = "backbone.norm_list."  # segmentation's own


@dataclass(frozen=True)
class BackboneReport:
    """Where every tensor of the checkpoint and every parameter of the segmentor went.

    Attributes:
        path: the checkpoint.
        used: its tensors that the backbone holds now.
        left_out: its other tensors to the reason.
        fresh: parameters of the segmentor that stayed as they were initialized.
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


def load_backbone(segmentor: Segmentor, ckpt_path: str | os.PathLike) -> BackboneReport:
    """Fill the backbone from a classifier of the same variant, with or without a head.

    The segmentor keeps its own dialect: the weights were made for classification, whose
    conventions differ, and are trained on.

    Args:
        segmentor: as `create_segmentor` built it.
        ckpt_path: a checkpoint of this project.

    Raises:
        UserError: the checkpoint is none, or not of this backbone.
    """
    checkpoint = load_checkpoint(ckpt_path)
    expect_metadata(checkpoint, task="classification", variant=segmentor.backbone_variant)
    left_out = {
        name: reason
        for name in checkpoint.tensors
        for prefix, reason in _LEFT_OUT.items()
        if name.startswith(prefix)
    }
    used = {name: array for name, array in checkpoint.tensors.items() if name not in left_out}
    renamed = replace(checkpoint, tensors={f"backbone.{name}": used[name] for name in used})
    load_into(segmentor.backbone, renamed, allow_missing=(_STAGE_NORMS,))
    fresh = [parameter.name for parameter in segmentor.get_parameters()]
    fresh = [name for name in fresh if name not in renamed.tensors]
    return BackboneReport(checkpoint.path, tuple(used), left_out, tuple(fresh))
