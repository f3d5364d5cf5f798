"""What is to be exported, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.export.check import Case, choose_shapes, run_live
from mindtwins.export.kinds import ExportKind


@dataclass(frozen=True)
class Order:
    """An export.

    Attributes:
        checkpoint: of known metadata.
        kind: of its model.
        architecture: the arguments that build that.
        use: what is said of its use, see `mindtwins.training.recorded.describe_use`.
        transform: from an RGB picture to its input, in Python.
        features_only: the maps of the backbone alone.
        image_size: side of the only images to take; None for any.
        batch_size: of the only batches to take; None for any.
        preprocess: take whole pictures, one at a time, and prepare them in the file.
        precision: "float32", or the name of a recipe.
        device_target: for which device, where that makes a difference.
    """

    checkpoint: Checkpoint
    kind: ExportKind
    architecture: Mapping[str, Any]
    use: Mapping[str, Any]
    transform: Callable
    features_only: bool = False
    image_size: int | None = None
    batch_size: int | None = None
    preprocess: bool = False
    precision: str = "float32"
    device_target: str = "CPU"

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.architecture["in_channels"]

    def create(self) -> nn.Cell:
        """The live model."""
        return self.kind.create(self.checkpoint, self.features_only)

    def cases(self, model: nn.Cell) -> list[Case]:
        """What the live model gives for the images that the file will be compared on."""
        side = self.image_size or self.use["preprocessing"]["image_size"]
        shapes = choose_shapes(side, self.batch_size, self.image_size is None, model.check_size)
        return run_live(model, shapes, self.channels)
