"""Graphs as ONNX files, checked, described and sealed.

A file states in its metadata all that using it takes, as a checkpoint does, and ends with the
SHA-256 of what stands before: a changed bit is found on loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from mindtwins import __version__
from mindtwins.errors import UserError
from mindtwins.export.graph import Graph, Port
from mindtwins.export.seal import PLACE, SEAL_KEY, seal

# The first with LayerNormalization, and the last that Ascend's converter is documented to read
# (ONNX 1.12). Resampling as Pillow does it came one later.
OPSET = 17
ANTIALIASING_OPSET = 18
IR_VERSION = 8  # of ONNX 1.12

_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


def build_model(graph: Graph, opset: int = OPSET) -> onnx.ModelProto:
    """An ONNX model of a graph, which passes ONNX's checker and its strict shape inference."""
    nodes = [
        helper.make_node(
            node.operator,
            node.inputs,
            node.outputs,
            name=node.outputs[0],
            **{key: _attribute(value) for key, value in node.attributes.items()},
        )
        for node in graph.nodes
    ]
    nodes += [
        helper.make_node("Identity", [value], [port.name], name=port.name)
        for value, port in graph.outputs.items()
    ]
    arrays = [numpy_helper.from_array(array, name) for name, array in graph.arrays.items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "mindtwins",
            [_value(port) for port in graph.inputs],
            [_value(port) for port in graph.outputs.values()],
            arrays,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="mindtwins",
        producer_version=__version__,
    )
    check(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Hold a model to ONNX's own rules; an exception is a mistake of ours."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def to_bytes(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> bytes:
    """The content of a file: the model, what is said of it, and the seal.

    Raises:
        UserError: it is larger than ONNX can hold in one file.
    """
    texts = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    helper.set_model_props(model, {**texts, SEAL_KEY: PLACE})
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise UserError("the model is larger than the 2 GB that one ONNX file can hold")
    return seal(model.SerializeToString(deterministic=True))


def _value(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, _TYPES[port.dtype], list(port.shape))


def _attribute(value: Any) -> Any:
    """What `Cast` calls a type is a number in ONNX."""
    return _TYPES.get(value, value) if isinstance(value, str) else value
