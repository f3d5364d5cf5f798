"""A checkpoint as an ONNX file, written from its tensors."""

from __future__ import annotations

from pathlib import Path

from mindtwins.export.check import Comparison, compare, run_openvino
from mindtwins.export.description import describe
from mindtwins.export.graph import Graph
from mindtwins.export.onnx_file import build_model, to_bytes
from mindtwins.export.onnx_model import OnnxModel
from mindtwins.export.operations import images
from mindtwins.export.order import Order
from mindtwins.models.twins import Dialect


def write_onnx(order: Order, dialect: Dialect) -> tuple[bytes, list[str]]:
    """The content of the file, and what its outputs are called.

    Raises:
        UserError: the model is too large for a file.
    """
    graph = Graph(order.checkpoint.tensors)
    picture = images(graph, order.batch_size, order.channels, order.image_size)
    order.kind.write(graph, picture, order.checkpoint, dialect, order.features_only)
    names = [port.name for port in graph.outputs.values()]
    metadata = describe(
        order.checkpoint, order.architecture, dialect, order.use, graph.inputs, names
    )
    return to_bytes(build_model(graph), metadata), names


def export_onnx(order: Order, path: Path) -> list[Comparison]:
    """Write the file, load it again and compare it with the live model.

    Raises:
        UserError: there is no such model, or it is too large for a file.
    """
    model = order.create()
    content, names = write_onnx(order, model.dialect)
    path.write_bytes(content)
    cases = order.cases(model)
    rows = compare("onnxruntime", OnnxModel(path).run, cases, names, order.kind.tolerated)
    if (run := run_openvino(content)) is not None:
        rows += compare("OpenVINO", run, cases, names, order.kind.tolerated)
    return rows
