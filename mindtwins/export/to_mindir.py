"""A checkpoint as a MindIR, by MindSpore's own exporter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor
from mindspore.train.mind_ir_pb2 import ModelProto

from mindtwins.errors import UserError
from mindtwins.export.check import Comparison, compare
from mindtwins.export.description import describe
from mindtwins.export.graph import Port
from mindtwins.export.mindir_model import METADATA_KEY, MindirModel
from mindtwins.export.order import Order
from mindtwins.export.seal import PLACE, SEAL_KEY, seal
from mindtwins.layers import use_formulation


def export_mindir(order: Order, path: Path) -> list[Comparison]:
    """Write the file, load it again and compare it with the live model.

    Never with this project's kernels: such a file would name their library on this disk.

    Raises:
        UserError: there is no such model, or MindSpore cannot export it for any shape.
    """
    live = order.create()
    fixed = order.kind.fixed_in_mindir(order.checkpoint, live.dialect)
    missing = [f"--{name}" for name in fixed if getattr(order, name) is None]
    if missing:
        raise UserError(
            f"MindSpore cannot export {order.checkpoint.stated['variant']} as it computes for any"
            f" shape: give {' and '.join(missing)}"
        )
    side = order.image_size
    port = Port(
        "images",
        (order.batch_size or "batch", order.channels, side or "height", side or "width"),
    )
    cases = order.cases(live)
    names = order.kind.outputs(order.checkpoint, order.features_only)
    metadata = describe(
        order.checkpoint, order.architecture, live.dialect, order.use, [port], names
    )
    metadata["export"]["mindspore"] = ms.__version__
    metadata["export"]["device_target"] = order.device_target

    shape = [axis if isinstance(axis, int) else None for axis in port.shape]
    try:
        # Transposes and resizes ask for the formulation when the graph is compiled.
        with use_formulation("matmul" if order.device_target == "CPU" else "native"):
            ms.export(
                order.create(),
                Tensor(shape=shape, dtype=ms.float32),
                file_name=str(path),
                file_format="MINDIR",
            )
        _add_metadata(path, metadata)
        return compare("MindSpore", MindirModel(path).run, cases, names, order.kind.tolerated)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, UserError) or None not in shape:
            raise
        raise UserError(
            f"MindSpore {ms.__version__} cannot export {order.checkpoint.stated['variant']} for"
            " any shape: give --image_size and --batch_size"
        ) from error


def _add_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Append what is said of a model to its file, and the seal."""
    texts = {METADATA_KEY: json.dumps(metadata, sort_keys=True), SEAL_KEY: PLACE}
    content = path.read_bytes()
    # A message goes on with what is appended to it.
    for key, text in texts.items():
        content += ModelProto(user_info={key: text}).SerializeToString()
    path.unlink()  # MindSpore leaves it without the permission to write
    path.write_bytes(seal(content))
