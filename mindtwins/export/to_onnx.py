"""A checkpoint as an ONNX file, written from its tensors."""

from __future__ import annotations

from pathlib import Path

import onnx

from mindtwins.console import tell
from mindtwins.errors import UserError
from mindtwins.export.check import Comparison, compare, run_openvino
from mindtwins.export.description import describe
from mindtwins.export.graph import Graph
from mindtwins.export.onnx_file import ANTIALIASING_OPSET, OPSET, build_model, to_bytes
from mindtwins.export.onnx_model import OnnxModel
from mindtwins.export.operations import images
from mindtwins.export.order import Order
from mindtwins.export.pixels import compare_pictures
from mindtwins.export.precision import RECIPES
from mindtwins.models.twins import Dialect


def build_onnx(order: Order, dialect: Dialect) -> tuple[onnx.ModelProto, dict]:
    """The model in float32 and its metadata: what `to_bytes` makes a file of.

    Raises:
        UserError: its preprocessing cannot be in a file.
    """
    graph = Graph(order.checkpoint.tensors)
    if order.preprocess:
        if order.channels != 3:
            raise UserError(
                f"{order.checkpoint.path} is a model of {order.channels} input channels, and"
                " --preprocess is for RGB pictures: leave it out"
            )
        if order.use["preprocessing"].get("exif_orientation"):
            tell(
                f"{order.checkpoint.path} is for pictures that were turned upright by what EXIF"
                " says: turn them before the file gets them"
            )
        picture = order.kind.prepare(graph, order.use["preprocessing"])
    else:
        picture = images(graph, order.batch_size, order.channels, order.image_size)
    order.kind.write(graph, picture, order.checkpoint, dialect, order.features_only)
    names = [port.name for port in graph.outputs.values()]
    metadata = describe(
        order.checkpoint, order.architecture, dialect, order.use, graph.inputs, names
    )
    return build_model(graph, ANTIALIASING_OPSET if order.preprocess else OPSET), metadata


def export_onnx(order: Order, path: Path) -> list[Comparison]:
    """Write the file, load it again and compare it with the live model.

    Raises:
        UserError: there is no such model, it is too large for a file, or the recipe of its
            precision does not work here.
    """
    live = order.create()
    model, metadata = build_onnx(order, live.dialect)
    if order.precision != "float32":
        return RECIPES[order.precision](order, live, model, metadata, path)
    content = to_bytes(model, metadata)
    path.write_bytes(content)
    if order.preprocess:
        return compare_pictures(order, live, path, metadata["export"]["outputs"])
    names, cases = metadata["export"]["outputs"], order.cases(live)
    rows = compare("onnxruntime", OnnxModel(path).run, cases, names, order.kind.tolerated)
    if (run := run_openvino(content)) is not None:
        rows += compare("OpenVINO", run, cases, names, order.kind.tolerated)
    return rows
