"""What an export has to know of classifiers."""

from __future__ import annotations

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.classification.kind import ClassifierKind
from mindtwins.export.backbone import write_stages
from mindtwins.export.graph import Graph
from mindtwins.export.operations import Map, channels_first, layer_norm, linear
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import VARIANTS, create_model


class ClassifierExport:
    """See `mindtwins.export.kinds.ExportKind`."""

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

    def write(
        self, graph: Graph, images: Map, checkpoint: Checkpoint, dialect: Dialect, features: bool
    ) -> None:
        variant = VARIANTS[checkpoint.stated["variant"]]
        stages = write_stages(graph, images, variant, dialect)
        if features:
            for number, stage in enumerate(stages, 1):
                x = channels_first(graph, stage)
                channels = variant.embed_dims[number - 1]
                graph.output(x.value, f"stage{number}", channels, x.height, x.width)
            return
        with graph.scope("head"):
            pooled = _pool(graph, stages[-1], dialect.block_epsilon)
            classes = checkpoint.stated["num_classes"]
            if not classes:
                graph.output(pooled, "features", variant.embed_dims[-1])
                return
            graph.output(linear(graph, pooled, "head"), "logits", classes)


def _pool(graph: Graph, x: Map, epsilon: float) -> str:
    """The norm and the mean over all tokens: (B, H, W, C) -> (B, C)."""
    normed = Map(layer_norm(graph, x.value, "norm", epsilon), x.height, x.width)
    mean = graph.add("GlobalAveragePool", channels_first(graph, normed).value)
    return graph.add("Flatten", mean, axis=1)
