"""Where and how precisely models compute: the device, graph mode, and fp16."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindtwins.errors import UserError
from mindtwins.layers import (
    BatchNorm,
    Conv1x1,
    Conv3x3,
    CrossAttention,
    Dense,
    DepthwiseConv3x3,
    Float32Cell,
    LayerNorm,
    PatchConv,
    TransposedConv2x2,
    WindowAttention,
)

# A model: a cell, or whatever else computes its outputs from images, as an exported file does.
Model: TypeAlias = nn.Cell | Callable[[np.ndarray], np.ndarray]

# What an fp16 level computes in float32, and what O1 computes in fp16. Statistics over a batch are
# always float32, and so is what says so by its class.
_SENSITIVE = {
    "O1": (LayerNorm, BatchNorm, WindowAttention, CrossAttention, Float32Cell),
    "O2": (LayerNorm, BatchNorm, Float32Cell),
    "O3": (BatchNorm, Float32Cell),
}
_PRODUCTS = (Dense, PatchConv, DepthwiseConv3x3, Conv1x1, Conv3x3, TransposedConv2x2)


def use_device(device_target: str, allow_tf32: bool = False) -> None:
    """Select the device, and graph mode, before any cell is built.

    Args:
        device_target: "CPU", "GPU" or "Ascend".
        allow_tf32: on GPU, let float32 products and convolutions round their inputs to 10 bits of
            mantissa (TF32) and run on the tensor cores. Elsewhere it means nothing.

    Raises:
        UserError: MindSpore cannot use the device.
    """
    try:
        # Setting it again fails once something has run.
        if ms.get_current_device().device_target != device_target:
            ms.set_device(device_target)
    except (RuntimeError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "unknown reason")
        raise UserError(
            f"cannot use device_target {device_target}: {reason.rstrip('.')}; "
            "--device_target CPU works everywhere"
        ) from error
    if device_target == "GPU":
        # Both are stated: MindSpore's own defaults are off for products and on for convolutions.
        precision = ms.device_context.gpu.op_precision
        precision.matmul_allow_tf32(allow_tf32)
        precision.conv_allow_tf32(allow_tf32)
    ms.set_context(mode=ms.GRAPH_MODE)


def set_precision(model: nn.Cell, level: str) -> nn.Cell:
    """Make a model compute in fp16 as far as its level says; its parameters stay float32.

    Each layer is told its type, rather than MindSpore's automatic mixed precision: that one puts
    its casts where a layer that asks for the type of its input does not see them.

    Args:
        level: "O0" all float32. "O1" linear layers and convolutions in fp16, norms and attention
            (its softmax) in float32. "O2" fp16 everywhere but in norms. "O3" fp16 everywhere but
            in batch norms.
    """
    if level == "O0":
        return model
    if level != "O1":
        model.to_float(ms.float16)
    for _, cell in model.cells_and_names():
        if level == "O1" and isinstance(cell, _PRODUCTS):
            cell.to_float(ms.float16)
        if isinstance(cell, _SENSITIVE[level]):
            cell.to_float(ms.float32)
    return model


class Forward(nn.Cell):
    """A graph of its own, so that compiling for evaluation never touches the training step's."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return self.model(images)


class Inference:
    """A model in evaluation as a function of arrays: images (N, C, H, W) to its output.

    Args:
        model: a cell, which is compiled in a graph of its own, or such a function.
    """

    def __init__(self, model: Model) -> None:
        self._cell = Forward(model) if isinstance(model, nn.Cell) else None
        self._function = model

    def start(self) -> None:
        """Put a cell into evaluation mode; it stays in it."""
        if self._cell is not None:
            self._cell.set_train(False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self._cell is None:
            return self._function(images)
        return self._cell(Tensor(images)).asnumpy()
