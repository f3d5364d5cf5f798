"""What an export has to know of segmentors: read it beside `semantic_fpn.py` and `upernet.py`.

Maps are (B, C, H, W) behind the backbone, as ONNX has convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.errors import UserError
from mindtwins.export.backbone import write_stages
from mindtwins.export.graph import Graph
from mindtwins.export.operations import (
    Map,
    average_pool,
    batch_norm,
    channels_first,
    convolution,
    resize,
)
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import VARIANTS
from mindtwins.segmentation.kind import SegmentorKind
from mindtwins.segmentation.upernet import POOL_BINS
from mindtwins.segmentation.variants import split_name

_HEAD = "decode_head"


class SegmentorExport:
    """See `mindtwins.export.kinds.ExportKind`."""

    # PyTorch's own rounding in a UPerNet is 5e-6, and a conversion may be off by four times that.
    tolerated = 2e-5

    def create(self, checkpoint: Checkpoint, features_only: bool) -> nn.Cell:
        if features_only:
            raise UserError(
                f"{checkpoint.path} is a segmentor, and --features_only is for classifiers: leave"
                " it out"
            )
        return SegmentorKind().create(checkpoint)

    def outputs(self, checkpoint: Checkpoint, features_only: bool) -> list[str]:
        return ["logits"]

    def fixed_in_mindir(self, checkpoint: Checkpoint, dialect: Dialect) -> tuple[str, ...]:
        # What resizes maps are constants of the graph, and their shapes are lost for any batch.
        return ("image_size", "batch_size")

    def prepare(self, graph: Graph, preprocessing: Mapping[str, Any]) -> Map:
        raise UserError(
            "--preprocess is for classifiers: a segmentor's pictures keep their shape, and its"
            " logits are brought back to it"
        )

    def write(
        self, graph: Graph, images: Map, checkpoint: Checkpoint, dialect: Dialect, features: bool
    ) -> None:
        head, backbone = split_name(checkpoint.stated["variant"])
        variant = VARIANTS[backbone]
        stages = write_stages(
            graph, images, variant, dialect, "backbone.", normalizes_stages=variant.family == "svt"
        )
        maps = [channels_first(graph, stage) for stage in stages]
        with graph.scope(_HEAD):
            x = _WRITERS[head](graph, maps)
            logits = convolution(graph, x, f"{_HEAD}.conv_seg")
        classes = checkpoint.stated["num_classes"]
        graph.output(logits.value, "logits", classes, logits.height, logits.width)


def _unit(graph: Graph, x: Map, name: str) -> Map:
    """Convolution of kernel 1 or 3, batch norm and ReLU."""
    kernel = graph.tensors[f"{name}.conv.weight"].shape[2]
    x = convolution(graph, x, f"{name}.conv", padding=kernel // 2)
    x = batch_norm(graph, x, f"{name}.bn")
    return replace(x, value=graph.add("Relu", x.value))


def _add(graph: Graph, x: Map, y: Map) -> Map:
    return replace(x, value=graph.add("Add", x.value, y.value))


def _concat(graph: Graph, maps: Sequence[Map]) -> Map:
    return replace(maps[0], value=graph.add("Concat", *(x.value for x in maps), axis=1))


def _semantic_fpn(graph: Graph, maps: Sequence[Map]) -> Map:
    levels = _feature_pyramid(graph, maps)
    total = _unit(graph, levels[0], f"{_HEAD}.scale_heads.0.0")
    for level in (1, 2, 3):
        x = levels[level]
        for index in range(level):
            # Every second cell of the sequence is a doubling.
            x = _unit(graph, x, f"{_HEAD}.scale_heads.{level}.{2 * index}")
            x = resize(graph, x, replace(x, height=x.height * 2, width=x.width * 2))
        total = _add(graph, total, resize(graph, x, total))
    return total


def _feature_pyramid(graph: Graph, maps: Sequence[Map]) -> list[Map]:
    """See `mindtwins.models.feature_pyramid.FeaturePyramid`."""
    laterals = [
        convolution(graph, x, f"neck.lateral_convs.{level}.conv") for level, x in enumerate(maps)
    ]
    tops = [laterals[3]]
    for lateral in laterals[2::-1]:
        tops.insert(0, _add(graph, lateral, resize(graph, tops[0], lateral, "nearest")))
    return [
        convolution(graph, top, f"neck.fpn_convs.{level}.conv", padding=1)
        for level, top in enumerate(tops)
    ]


def _upernet(graph: Graph, maps: Sequence[Map]) -> Map:
    pooled = [
        _unit(graph, average_pool(graph, maps[3], bins), f"{_HEAD}.psp_modules.{number}.1")
        for number, bins in enumerate(POOL_BINS)
    ]
    parts = [maps[3], *(resize(graph, x, maps[3]) for x in pooled)]
    top = _unit(graph, _concat(graph, parts), f"{_HEAD}.bottleneck")
    levels = [resize(graph, top, maps[0])]
    for level in (2, 1, 0):
        lateral = _unit(graph, maps[level], f"{_HEAD}.lateral_convs.{level}")
        top = _add(graph, lateral, resize(graph, top, lateral))
        x = _unit(graph, top, f"{_HEAD}.fpn_convs.{level}")
        levels.insert(0, resize(graph, x, maps[0]))
    return _unit(graph, _concat(graph, levels), f"{_HEAD}.fpn_bottleneck")


_WRITERS = {"fpn": _semantic_fpn, "upernet": _upernet}
