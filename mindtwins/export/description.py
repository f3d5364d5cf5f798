"""What an exported file says of itself: all that a checkpoint does, and how it came to be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mindtwins import __version__
from mindtwins.checkpoint import Checkpoint
from mindtwins.export.graph import Port
from mindtwins.export.onnx_model import EXPORT_VERSION
from mindtwins.files import read_file
from mindtwins.models.twins import MINIMUM_SIZE, Dialect

_PICTURES = "0 to 255; resized, cropped and normalized in the file, as under preprocessing"
_NORMALIZED = "(x / 255 - mean) / std, as under preprocessing"


def describe(
    checkpoint: Checkpoint,
    architecture: Mapping[str, Any],
    dialect: Dialect,
    use: Mapping[str, Any],
    inputs: Sequence[Port],
    outputs: Sequence[str],
) -> dict[str, Any]:
    """The metadata of an export.

    Args:
        checkpoint: where it came from, with its task and variant.
        architecture: the arguments that build the model.
        dialect: how it computes.
        use: classes, preprocessing and data, see `mindtwins.training.recorded.describe_use`.
        inputs: one, the images.
        outputs: their names.
    """
    stated = checkpoint.stated
    (images,) = inputs
    takes_pictures = images.dtype == "uint8"
    return {
        "task": stated["task"],
        "variant": stated["variant"],
        **architecture,
        "dialect": {key: value for key, value in asdict(dialect).items() if value is not None},
        **use,
        "export": {
            "export_version": EXPORT_VERSION,
            "mindtwins": __version__,
            "checkpoint": _origin(checkpoint),
            "input": {
                "name": images.name,
                "shape": list(images.shape),
                "dtype": images.dtype,
                "layout": "NHWC" if takes_pictures else "NCHW",
                "color": "RGB",
                "values": _PICTURES if takes_pictures else _NORMALIZED,
                "minimum_size": 1 if takes_pictures else MINIMUM_SIZE,
            },
            "outputs": list(outputs),
            "precision": {"name": "float32"},
        },
    }


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """The file of a checkpoint, or what one was converted from that is only in memory."""
    if not checkpoint.path.is_file():
        return {"name": str(checkpoint.path), **checkpoint.stated.get("source", {})}
    digest = hashlib.sha256(read_file(checkpoint.path)).hexdigest()
    return {"file": checkpoint.path.name, "sha256": digest}
