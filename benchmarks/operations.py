"""Time of single operations in each formulation, on a CPU beside torch's.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.operations
    python -m benchmarks.operations --device_target GPU --batch 64 --precisions fp32 fp16

Shapes are those of SVT-S at 224, and of segmentation heads at an eighth to a half of the sizes that
they see at 512. Milliseconds per call, forward / forward and backward: on a CPU the least processor
time of several calls, since other programs can only add; elsewhere the median time.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from benchmarks.command import Table, parser
from benchmarks.inputs import labels_of, normal
from benchmarks.mindspore_side import on_device, wait
from benchmarks.timing import turn
from benchmarks.workers import reason
from mindtwins import layers
from mindtwins.errors import run_cli
from mindtwins.execution import use_device
from mindtwins.layers import kernels
from mindtwins.layers.device import FORMULATIONS

SECONDS = 0.3
STAGES, RATIOS = ((64, 56), (128, 28), (256, 14), (512, 7)), (8, 4, 2)
Call = Callable[[], object]
TYPES = {"fp32": ms.float32, "fp16": ms.float16}


class Operation(NamedTuple):
    """An operation at a size.

    Attributes:
        name: a key of `torch_operations.FUNCTIONS`.
        make, arguments: what builds the cell.
        inputs: their shapes.
    """

    name: str
    make: Callable[..., nn.Cell]
    arguments: tuple
    inputs: tuple[tuple[int, ...], ...]


class Function(nn.Cell):
    """A function of the first argument as a cell."""

    def __init__(self, function: Callable[..., Tensor], *arguments: object) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments

    def construct(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments)


def label(operation: Operation) -> str:
    """Its name, its sizes and the shape of its first input."""
    sizes = [str(size) for size in operation.arguments if type(size) is int]
    return f"{operation.name} {' '.join(sizes)} of {operation.inputs[0]}"


def operations(batch: int) -> list[Operation]:
    """Of SVT-S, and of dense heads on one image in eight."""
    stages = [(width, (batch, side, side, width)) for width, side in STAGES]
    c, tokens = stages[0]
    few = max(1, batch // 8)
    maps, logits = (few, 64, 64, 128), (few, 64, 64, 150)
    labels = Tensor(labels_of(few, 256))
    return [
        Operation("Dense and GELU", layers.DenseGELU, (c, 4 * c), (tokens,)),
        Operation("LayerNorm", layers.LayerNorm, (c, 1e-6), (tokens,)),
        Operation("Dense", layers.Dense, (c, 4 * c), (tokens,)),
        Operation("Dense", layers.Dense, (512, 2048), ((few, 7, 7, 512),)),
        Operation("window attention", layers.WindowAttention, (2, 7), ((*tokens[:3], 3 * c),)),
        Operation("cross attention", layers.CrossAttention, (2,), (tokens, (batch, 7, 7, 2 * c))),
        *(
            Operation("depthwise 3x3", layers.DepthwiseConv3x3, (width,), (shape,))
            for width, shape in stages
        ),
        Operation("patches", layers.PatchConv, (3, c, 4), ((batch, 224, 224, 3),)),
        *(
            Operation("patches", layers.PatchConv, (width, 2 * width, 2), (shape,))
            for width, shape in stages[:3]
        ),
        *(
            Operation("patches", layers.PatchConv, (width, width, ratio), (shape,))
            for (width, shape), ratio in zip(stages, RATIOS, strict=False)
        ),
        Operation("3x3 convolution", layers.Conv3x3, (256, 128, False), ((few, 32, 32, 256),)),
        Operation("batch norm", layers.BatchNorm, (128,), ((few, 128, 128, 128),)),
        Operation("bilinear", Function, (layers.resize_bilinear, 128, 128), (maps,)),
        Operation("nearest", Function, (layers.resize_nearest, 128, 128), (maps,)),
        Operation("pool", Function, (layers.adaptive_average_pool, 6), (maps,)),
        Operation("cross entropy", Function, (layers.resized_cross_entropy, labels), (logits,)),
    ]


def ours(operation: Operation, dtype: ms.Type, formulation: str) -> list[Call]:
    """Calls of it and of its gradients, compiled in a formulation."""
    inputs = [on_device(normal(*shape), dtype) for shape in operation.inputs]
    with layers.use_formulation(formulation):
        cell = operation.make(*operation.arguments).set_train()
        if dtype == ms.float16:
            cell.to_float(dtype)
        parameters = ParameterTuple(cell.trainable_params())
        gradient = ops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)
        both = gradient(cell, *[parameters] if parameters else [])
        result = cell(*inputs)
        both(*inputs, result)
    return [lambda: cell(*inputs), lambda: both(*inputs, result)]


def theirs(operation: Operation) -> list[Call]:
    """The same in PyTorch."""
    import torch

    from benchmarks.torch_operations import FUNCTIONS

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    function = FUNCTIONS[operation.name]
    parameters = operation.make(*operation.arguments).trainable_params()
    arrays = [normal(*shape) for shape in (*operation.inputs, *(p.shape for p in parameters))]
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    result = function(*tensors).detach()
    return [
        torch.inference_mode()(lambda: function(*tensors)),
        lambda: torch.autograd.grad(function(*tensors), tensors, result),
    ]


def milliseconds(calls: list[Call], device: str, seconds: float) -> list[float]:
    """Of each call."""
    costs = [turn(call, wait, seconds) for call in calls]
    if device == "CPU":
        return [1e3 * min(cost.cpu for cost in found) for found in costs]
    return [1e3 * statistics.median(cost.wall for cost in found) for found in costs]


def cell(times: list[float] | None) -> str:
    """Forward / with backward."""
    return "failed" if times is None else " / ".join(f"{time:.3f}" for time in times)


def best(found: dict[str, list[float]]) -> str:
    """The formulation with the fastest forward and backward, and its factor to the slowest."""
    both = {name: times[1] for name, times in found.items() if name in FORMULATIONS}
    fastest = min(both, key=both.__getitem__, default="-")
    return f"{fastest}, {max(both.values()) / both[fastest]:.1f} x" if len(both) > 1 else fastest


def main(argv: list[str]) -> None:
    """Measure and print: a row per operation, formulations and torch side by side."""
    command = parser(__doc__)
    command.add_argument("--batch", type=int, default=4)
    command.add_argument("--precisions", nargs="+", choices=TYPES, default=["fp32"])
    options = command.parse_args(argv)
    device, on_cpu = options.device_target, options.device_target == "CPU"
    use_device(device)
    names = [name for name in FORMULATIONS if name != "kernel" or (on_cpu and kernels.available())]
    columns = [*names, "torch"] if on_cpu else names
    table = Table("forward / with backward, ms", "operation of", *columns, "best", width=17)
    for precision, dtype in ((name, TYPES[name]) for name in options.precisions):
        for operation in operations(1 if options.quick else options.batch):
            found = {}
            for name in columns:
                try:
                    calls = theirs(operation) if name == "torch" else ours(operation, dtype, name)
                    found[name] = milliseconds(calls, device, 0 if options.quick else SECONDS)
                except Exception as error:  # whatever a device makes of an operator
                    print(f"({name}: {reason(error)})")
            cells = [cell(found.get(name)) for name in columns]
            table.row(f"{label(operation)}, {precision}", *cells, best(found))


if __name__ == "__main__":
    run_cli(main)
