"""An exported MindIR as a function of arrays, by MindSpore."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto

from mindtwins.errors import UserError
from mindtwins.export.seal import check_seal
from mindtwins.files import read_file

# Of the metadata among what MindIR calls user info.
METADATA_KEY = "mindtwins"


class MindirModel:
    """An exported model: images (N, C, H, W) float32 -> what the checkpoint's gives.

    Args:
        path: of the file.

    Attributes:
        path: the same.
        metadata: all that the file says, as a checkpoint does; of the export itself under "export".

    Raises:
        UserError: the file cannot be read, was not written by this project or is not as it was
            written, names libraries to be run, or is not for this version of MindSpore.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        content = read_file(path)
        check_seal(self.path, content)
        graph = ModelProto()
        graph.ParseFromString(content)
        self.metadata: dict[str, Any] = json.loads(graph.user_info[METADATA_KEY])
        for operator in _custom_operators(graph):
            raise UserError(
                f"{path} holds an operator ({operator}) that runs a library which it names: it is"
                " not as mindtwins export writes it, and is not loaded"
            )
        export = self.metadata["export"]
        try:
            cell = nn.GraphCell(ms.load(str(path)))
            shape = [side if isinstance(side, int) else None for side in export["input"]["shape"]]
            if None in shape:
                # One graph for every shape: a graph for each fails at the second size.
                cell.set_inputs(Tensor(shape=shape, dtype=ms.float32))
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} was exported by MindSpore {export['mindspore']}, and MindSpore"
                f" {ms.__version__} cannot load it: export it again with the version that is to"
                " run it"
            ) from error
        self._cell = cell

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """All outputs for images."""
        found = self._cell(Tensor(images))
        return [tensor.asnumpy() for tensor in (found if isinstance(found, tuple) else (found,))]


def _custom_operators(model: ModelProto) -> Iterator[str]:
    """The operators that run code which is not MindSpore's."""
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            if node.op_type.split("::")[-1].startswith("Custom"):
                yield node.name or node.op_type
