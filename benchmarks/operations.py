"""Time of single operations in each formulation, on a CPU beside torch's.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.operations
    python -m benchmarks.operations --device_target GPU --batch 64 --precisions fp32 fp16

Shapes are those of SVT-S at 224, of segmentation heads at an eighth to a half of the sizes that
they see at 512, and of Mask R-CNN's regions of a picture of 512 x 512. Milliseconds per call,
forward / forward and backward: on a CPU the least processor time of several calls, since other
programs can only add; elsewhere the median time. RoIAlign and suppression are measured in one
formulation, and suppression, which runs on arrays, has no backward.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from benchmarks.command import Table, parser
from benchmarks.inputs import OVERLAP, boxes_of, labels_of, normal
from benchmarks.mindspore_side import on_device, wait
from benchmarks.timing import Cost, turn
from benchmarks.workers import Worker, reason, torch_environment
from mindtwins import layers
from mindtwins.detection.mask_rcnn import BOX_BINS, RegionPooling
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
        make, arguments: what builds the cell; None for suppression, which is no graph.
        inputs: their shapes.
        boxes: how many it is about.
    """

    name: str
    make: Callable[..., nn.Cell] | None
    arguments: tuple
    inputs: tuple[tuple[int, ...], ...]
    boxes: int = 0


class Function(nn.Cell):
    """A function of the first argument as a cell."""

    def __init__(self, function: Callable[..., Tensor], *arguments: object) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments

    def construct(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments)


class MLP(nn.Cell):
    """The MLP of a block with its norm and residual, in training one kernel where there is one."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.norm = layers.LayerNorm(channels, 1e-6)
        self.fc1 = layers.DenseGELU(channels, ratio * channels)
        self.fc2 = layers.Dense(ratio * channels, channels)
        self.joins = layers.can_join(
            self, {self.norm: layers.LayerNorm, self.fc1: layers.DenseGELU, self.fc2: layers.Dense}
        )

    def construct(self, x: Tensor) -> Tensor:
        if self.joins:
            return layers.add_mlp_to_learn(x, self.norm, self.fc1, self.fc2, None)
        return x + self.fc2(self.fc1(self.norm(x)))


class RoIAlign(nn.Cell):
    """Boxes from the levels of a pyramid."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.pooling = RegionPooling(BOX_BINS)
        boxes, _ = boxes_of(count)
        self.rois = Tensor(np.pad(boxes, ((0, 0), (1, 0))))  # of image 0

    def construct(self, *levels: Tensor) -> Tensor:
        return self.pooling(self.rois, *levels)


def label(operation: Operation) -> str:
    """Its name, its sizes and the shape of its first input."""
    sizes = [str(size) for size in operation.arguments if type(size) is int]
    first = operation.inputs[0] if operation.inputs else f"{operation.boxes} boxes"
    return " ".join([operation.name, *sizes, "of", str(first)])


def operations(batch: int) -> list[Operation]:
    """Of SVT-S, and of dense heads on one image in eight."""
    stages = [(width, (batch, side, side, width)) for width, side in STAGES]
    c, tokens = stages[0]
    few = max(1, batch // 8)
    maps, logits = (few, 64, 64, 128), (few, 64, 64, 150)
    labels = Tensor(labels_of(few, 256))
    levels = tuple((1, side, side, 256) for side in (128, 64, 32, 16))
    return [
        Operation("Dense and GELU", layers.DenseGELU, (c, 4 * c), (tokens,)),
        Operation("MLP", MLP, (c, 4), (tokens,)),
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
        Operation("RoIAlign", RoIAlign, (250 * batch,), levels, 250 * batch),
        Operation("suppression", None, (), (), 1250 * batch),
    ]


def ours(operation: Operation, dtype: ms.Type, formulation: str) -> list[Call]:
    """Calls of it and of its gradients, compiled in a formulation."""
    if operation.make is None:
        boxes, scores = boxes_of(operation.boxes)
        return [lambda: layers.suppress(boxes, scores, OVERLAP)]
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
        cell(*inputs)  # compiled anew after a gradient
    return [lambda: cell(*inputs), lambda: both(*inputs, result)]


def theirs(operation: Operation, worker: Worker, seconds: float) -> list[float]:
    """Milliseconds of the same in PyTorch."""
    shapes = [*operation.inputs]
    if operation.make is not None:
        parameters = operation.make(*operation.arguments).trainable_params()
        shapes += [parameter.shape for parameter in parameters]
    what = {"name": operation.name, "shapes": shapes, "boxes": operation.boxes}
    found = []
    for backward in (False, True) if shapes else (False,):
        worker.ask("build", **what, backward=backward)
        found.append(milliseconds(worker.ask("turn", seconds=seconds)["costs"], "CPU"))
    return found


def milliseconds(costs: list[Cost], device: str) -> float:
    """Of a call: the least of processor on a CPU, else the median by the clock."""
    walls, cpus = zip(*costs, strict=True)
    return 1e3 * (min(cpus) if device == "CPU" else statistics.median(walls))


def cell(times: list[float] | None) -> str:
    """Forward / with backward, if it has one."""
    return "failed" if times is None else " / ".join(f"{time:.3f}" for time in times)


def best(found: dict[str, list[float]]) -> str:
    """The formulation with the fastest forward and backward, and its factor to the slowest."""
    both = {name: times[-1] for name, times in found.items() if name in FORMULATIONS}
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
    seconds = 0 if options.quick else SECONDS
    python = options.torch_python
    with Worker("torch_operations", torch_environment(python), python) as torch:
        for precision, dtype in ((name, TYPES[name]) for name in options.precisions):
            for operation in operations(1 if options.quick else options.batch):
                # As products, the regions of a picture and their gradients take gigabytes.
                found, tried = {}, columns[len(names) - 1 :] if operation.boxes else columns
                for name in tried:
                    try:
                        if name == "torch":
                            found[name] = theirs(operation, torch, seconds)
                            continue
                        calls = ours(operation, dtype, name)
                        costs = [turn(call, wait, seconds) for call in calls]
                        found[name] = [milliseconds(measured, device) for measured in costs]
                    except Exception as error:  # whatever a device makes of an operator
                        print(f"({name}: {reason(error)})")
                cells = [cell(found.get(name)) if name in tried else "-" for name in columns]
                table.row(f"{label(operation)}, {precision}", *cells, best(found))


if __name__ == "__main__":
    run_cli(main)
