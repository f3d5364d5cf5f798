"""Recipes of less precision than float32: faster, and not exact.

How far each is from the live model is measured on crops of two photographs, told, and stored in the
file. What that does to an accuracy, only the data can say: `mindtwins validate --onnx_path`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from mindspore import nn

from mindtwins.errors import UserError
from mindtwins.export.check import (
    Comparison,
    compare,
    compile_openvino,
    import_openvino,
    run_live,
)
from mindtwins.export.onnx_file import to_bytes
from mindtwins.export.onnx_model import OnnxModel
from mindtwins.export.order import Order

CROPS = 16

Recipe = Callable[[Order, nn.Cell, onnx.ModelProto, dict, Path], list[Comparison]]


def _int8(
    order: Order, live: nn.Cell, model: onnx.ModelProto, metadata: dict, path: Path
) -> list[Comparison]:
    """onnxruntime's dynamic quantization of the linear layers' weights, a scale per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    quantized = onnx.load(path)
    path.write_bytes(to_bytes(quantized, metadata))
    rows = _compare(order, live, "onnxruntime", OnnxModel(path).run, metadata)
    how = "linear layers with 8-bit integers, by onnxruntime's dynamic quantization"
    _store(path, quantized, metadata, "int8", how, rows)
    return rows


@contextmanager
def _without_advice() -> Iterator[None]:
    """Not to print that graphs want preparing, which this one does not."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _bf16(
    order: Order, live: nn.Cell, model: onnx.ModelProto, metadata: dict, path: Path
) -> list[Comparison]:
    """The float32 file, for OpenVINO to compute in bfloat16."""
    core = import_openvino()
    if core is None:
        raise UserError(
            "--precision bf16 is for OpenVINO, which is not installed: pip install openvino"
        )
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(
            "this processor does not compute in bfloat16, so that it cannot be said how far that"
            " is off: export on one that does, or leave --precision out"
        )
    run = compile_openvino(core, to_bytes(model, metadata), "bf16")
    rows = _compare(order, live, "OpenVINO", run, metadata)
    how = "a float32 file, for OpenVINO with INFERENCE_PRECISION_HINT bf16"
    _store(path, model, metadata, "bf16", how, rows)
    exact = OnnxModel(path).run
    names, cases = metadata["export"]["outputs"], order.cases(live)
    return rows + compare("onnxruntime", exact, cases, names, order.kind.tolerated)


RECIPES: Mapping[str, Recipe] = {"int8": _int8, "bf16": _bf16}


def _compare(
    order: Order, live: nn.Cell, runtime: str, run: Callable, metadata: dict
) -> list[Comparison]:
    side = order.image_size or order.use["preprocessing"]["image_size"]
    cases = run_live(live, [(order.batch_size or CROPS, side, side)], order.channels)
    rows = compare(runtime, run, cases, metadata["export"]["outputs"], tolerated=None)
    if not all(math.isfinite(row.deviation) for row in rows):
        raise UserError(f"in {order.precision} the model gives values that are not finite")
    return rows


def _store(
    path: Path,
    model: onnx.ModelProto,
    metadata: dict[str, Any],
    name: str,
    how: str,
    rows: list[Comparison],
) -> None:
    """Write the file with what has been measured of it."""
    metadata["export"]["precision"] = {
        "name": name,
        "how": how,
        "compared_on": f"{rows[0].shape[0]} crops of two photographs, {rows[0].shape[2]} pixels",
        "outputs": {
            row.output: {
                "max_abs_over_std": row.deviation,
                "rms_over_std": row.root_mean_square,
                "same_class": row.same_class,
            }
            for row in rows
        },
    }
    path.write_bytes(to_bytes(model, metadata))
