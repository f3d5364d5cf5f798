"""What an export asks of a kind of model; each task's folder has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.export.graph import Graph
from mindtwins.export.operations import Map
from mindtwins.models.twins import Dialect


class ExportKind(Protocol):
    """One kind of model, whose checkpoints state variant and architecture.

    Attributes:
        tolerated: the largest difference between an exact export and the live model, in standard
            deviations of the output: a few times the rounding of float32.
    """

    @property
    def tolerated(self) -> float: ...

    def create(self, checkpoint: Checkpoint, features_only: bool) -> nn.Cell:
        """The live model, with its weights: all of it, or the maps of its backbone alone.

        Raises:
            UserError: there is no such model in the checkpoint.
        """

    def outputs(self, checkpoint: Checkpoint, features_only: bool) -> list[str]:
        """What its outputs are called."""

    def fixed_in_mindir(self, checkpoint: Checkpoint, dialect: Dialect) -> tuple[str, ...]:
        """Which of "image_size" and "batch_size" MindSpore has to know to export the model."""

    def prepare(self, graph: Graph, preprocessing: Mapping[str, Any]) -> Map:
        """The preprocessing as nodes, input included: one picture uint8 (1, H, W, 3) -> images.

        Raises:
            UserError: it cannot be in a file.
        """

    def write(
        self, graph: Graph, images: Map, checkpoint: Checkpoint, dialect: Dialect, features: bool
    ) -> None:
        """The same as nodes of a graph, outputs included; images are (B, C, H, W)."""


ExportKinds = Mapping[str, ExportKind]
