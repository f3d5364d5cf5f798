"""Processor time of single operations in each formulation, beside torch's.

    taskset -c 0 env OMP_NUM_THREADS=1 python -m benchmarks.operations

Shapes are those of the first stage of SVT-S at batch 4, then of segmentation heads. Milliseconds
per call, forward alone and forward with backward; the least of several calls, since other programs
can only add. MindTwins' figures contain copying the first output to the host, without which a call
does not wait.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mindspore import ParameterTuple, Tensor, nn, ops

from benchmarks.contestants import prepare
from benchmarks.side_by_side import cost_of
from mindtwins import layers
from mindtwins.layers import kernels
from mindtwins.layers.device import FORMULATIONS

CALLS = 9
HEADS, DEPTH = 2, 32
C = HEADS * DEPTH


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def torch_depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=C)


def torch_windows(qkv: torch.Tensor) -> torch.Tensor:
    x = qkv.reshape(4, 8, 7, 8, 7, 3, HEADS, DEPTH).permute(5, 0, 1, 3, 6, 2, 4, 7)
    query, key, value = x.reshape(3, 4, 64, HEADS, 49, DEPTH).unbind(0)
    weights = (query @ key.transpose(-2, -1) * DEPTH**-0.5).softmax(-1)
    out = (weights @ value).reshape(4, 8, 8, HEADS, 7, 7, DEPTH)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(4, 56, 56, C)


def torch_cross(query: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    query = query.reshape(4, -1, HEADS, DEPTH).transpose(1, 2)
    key, value = pair.reshape(4, -1, 2, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query @ key.transpose(-2, -1) * DEPTH**-0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(4, 56, 56, C)


F = torch.nn.functional
# Name -> our cell, its inputs, the same in torch, and what further arguments torch needs.
CASES: dict[str, tuple[Callable[[], nn.Cell], tuple, Callable, tuple]] = {
    "Dense 64 -> 256 and GELU, 12544 rows": (
        lambda: layers.DenseGELU(C, 4 * C),
        (random(4, 56, 56, C),),
        lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)),
        (random(4 * C, C), random(4 * C)),
    ),
    "LayerNorm (4, 56, 56, 64)": (
        lambda: layers.LayerNorm(C, 1e-6),
        (random(4, 56, 56, C),),
        lambda x, g, b: F.layer_norm(x, (C,), g, b, 1e-6),
        (random(C), random(C)),
    ),
    "Dense 64 -> 256, 12544 rows": (
        lambda: layers.Dense(C, 4 * C),
        (random(4, 56, 56, C),),
        F.linear,
        (random(4 * C, C), random(4 * C)),
    ),
    "Dense 512 -> 2048, 49 rows": (
        lambda: layers.Dense(8 * C, 32 * C),
        (random(1, 7, 7, 8 * C),),
        F.linear,
        (random(32 * C, 8 * C), random(32 * C)),
    ),
    "depthwise 3x3 (4, 56, 56, 64)": (
        lambda: layers.DepthwiseConv3x3(C),
        (random(4, 56, 56, C),),
        torch_depthwise,
        (random(C, 1, 3, 3), random(C)),
    ),
    "window attention, 2 heads": (
        lambda: layers.WindowAttention(HEADS, 7),
        (random(4, 56, 56, 3 * C),),
        torch_windows,
        (),
    ),
    "cross attention to 7 x 7, 2 heads": (
        lambda: layers.CrossAttention(HEADS),
        (random(4, 56, 56, C), random(4, 7, 7, 2 * C)),
        torch_cross,
        (),
    ),
    "patch convolution 8x8 (4, 56, 56, 64)": (
        lambda: layers.PatchConv(C, C, 8),
        (random(4, 56, 56, C),),
        lambda x, w, b: F.conv2d(x.permute(0, 3, 1, 2), w, b, stride=8),
        (random(C, C, 8, 8), random(C)),
    ),
}

LABELS = np.random.default_rng(1).integers(0, 150, (1, 256, 256), np.int32)


class Resize(nn.Cell):
    """Twice the size, bilinear."""

    def construct(self, x: Tensor) -> Tensor:
        return layers.resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2])


class CrossEntropy(nn.Cell):
    """Cross entropy of logits resized to the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = Tensor(LABELS)

    def construct(self, logits: Tensor) -> Tensor:
        return layers.resized_cross_entropy(logits, self.labels)


def torch_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    resized = F.interpolate(logits.permute(0, 3, 1, 2), (256, 256), mode="bilinear")
    return F.cross_entropy(resized, torch.from_numpy(LABELS).long(), reduction="sum")


# Of dense prediction, at an eighth to a half of the sizes that heads see at 512.
CASES |= {
    "3x3 convolution (1, 32, 32, 256 -> 128)": (
        lambda: layers.Conv3x3(256, 128, has_bias=False),
        (random(1, 32, 32, 256),),
        lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w, padding=1),
        (random(128, 256, 3, 3),),
    ),
    "batch norm, training (1, 128, 128, 128)": (
        lambda: layers.BatchNorm(128).set_train(),
        (random(1, 128, 128, 128),),
        lambda x, g, b: F.batch_norm(x.permute(0, 3, 1, 2), None, None, g, b, training=True),
        (random(128), random(128)),
    ),
    "bilinear (1, 64, 64, 128) -> 128": (
        Resize,
        (random(1, 64, 64, 128),),
        lambda x: F.interpolate(x.permute(0, 3, 1, 2), (128, 128), mode="bilinear"),
        (),
    ),
    "cross entropy (1, 64, 64, 150) at 256": (
        CrossEntropy,
        (random(1, 64, 64, 150),),
        torch_cross_entropy,
        (),
    ),
}


def least(work: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    work()
    return min(cost_of(work).cpu for _ in range(CALLS)) * 1e3


def first(nested: object) -> Tensor:
    """The first tensor of nested tuples."""
    return first(nested[0]) if isinstance(nested, tuple | list) else nested


def ours(make: Callable[[], nn.Cell], arrays: tuple) -> tuple[float, float]:
    """Forward, and forward with backward of the inputs and parameters."""
    cell, inputs = make(), [Tensor(array) for array in arrays]
    parameters = ParameterTuple(cell.trainable_params())
    sensitivity = cell(*inputs)
    gradient = ops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)
    gradient = gradient(cell, parameters) if parameters else gradient(cell)
    return (
        least(lambda: cell(*inputs).asnumpy()),
        least(lambda: first(gradient(*inputs, sensitivity)).asnumpy()),
    )


def theirs(function: Callable, arrays: tuple) -> tuple[float, float]:
    """The same in torch."""
    inputs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    sensitivity = function(*inputs).detach()

    def forward() -> None:
        with torch.inference_mode():
            function(*inputs)

    return least(forward), least(
        lambda: torch.autograd.grad(function(*inputs), inputs, sensitivity)
    )


def main() -> None:
    """Measure and print: a row per operation, formulations and torch side by side."""
    prepare(threads=1)
    formulations = [f for f in FORMULATIONS if f != "kernel" or kernels.available()]
    columns = [*formulations, "torch"]
    print(f"{'forward / with backward, ms':<42}" + "".join(f"{name:>18}" for name in columns))
    for label, (make, arrays, function, further) in CASES.items():
        row = []
        for formulation in formulations:
            with layers.use_formulation(formulation):
                row.append(ours(make, arrays))
        row.append(theirs(function, (*arrays, *further)))
        print(f"{label:<42}" + "".join(f"{f'{a:.2f} / {b:.2f}':>18}" for a, b in row), flush=True)


if __name__ == "__main__":
    main()
