"""What an export has to know of classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.classification.export_preprocessing import write_preprocessing
from mindtwins.classification.kind import ClassifierKind
from mindtwins.export.backbone import write_stages
from mindtwins.export.graph import Graph
from mindtwins.export.operations import Map, channels_first, layer_norm, linear
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import VARIANTS, create_model


class ClassifierExport:
    """See `mindtwins.export.kinds.ExportKind`."""

    tolerated = 1e-5

    def create(self, checkpoint: Checkpoint, features_only: bool) -> nn.Cell:
        if not features_only:
            return ClassifierKind().create(checkpoint)
        stated = checkpoint.stated
        return create_model(
            stated["variant"],
            in_channels=stated["in_channels"],
            ckpt_path=checkpoint,
            features_only=True,
        )

    def outputs(self, checkpoint: Checkpoint, features_only: bool) -> list[str]:
        if features_only:
            return [f"stage{number}" for number in (1, 2, 3, 4)]
        return ["logits" if checkpoint.stated["num_classes"] else "features"]

    def fixed_in_mindir(self, checkpoint: Checkpoint, dialect: Dialect) -> tuple[str, ...]:
        has_windows = VARIANTS[checkpoint.stated["variant"]].family == "svt"
        # The mask is a constant of the graph; and whether a size is refused is decided before it.
        return ("image_size",) if has_windows and dialect.window_padding != "zeros" else ()

    def prepare(self, graph: Graph, preprocessing: Mapping[str, Any]) -> Map:
        return write_preprocessing(graph, preprocessing)

    def write(
        self, graph: Graph, images: Map, checkpoint: Checkpoint, dialect: Dialect, features: bool
    ) -> None:
        names = self.outputs(checkpoint, features)
        variant = VARIANTS[checkpoint.stated["variant"]]
        stages = write_stages(graph, images, variant, dialect)
        if features:
            for name, stage, channels in zip(names, stages, variant.embed_dims, strict=True):
                x = channels_first(graph, stage)
                graph.output(x.value, name, channels, x.height, x.width)
            return
        with graph.scope("head"):
            found = _pool(graph, stages[-1], dialect.block_epsilon)
            classes = checkpoint.stated["num_classes"]
            if classes:
                found = linear(graph, found, "head")
            graph.output(found, names[0], classes or variant.embed_dims[-1])


def _pool(graph: Graph, x: Map, epsilon: float) -> str:
    """The norm and the mean over all tokens: (B, H, W, C) -> (B, C)."""
    normed = Map(layer_norm(graph, x.value, "norm", epsilon), x.height, x.width)
    mean = graph.add("GlobalAveragePool", channels_first(graph, normed).value)
    return graph.add("Flatten", mean, axis=1)
