"""MindTwins beside PyTorch, onnxruntime and OpenVINO on this machine: the tables of the README.

    python -m benchmarks.speed [--models svt_small ...] [--rounds 3] [--threads 2]
    python -m benchmarks.speed --parts segmentation detection ...
    python -m benchmarks.speed --parts memory --models svt_base --cases training,224,1

Contestants take turns, each in a process of its own, with the same inputs, kind of weights and
threads; a row shows medians, how many times faster MindTwins is (above 1) by the clock and, on a
CPU, by processor time, and how much of its time the roofline takes: on a CPU the products at the
rate that its cores have in registers. First calls and memory are measured with nothing beside them.

Where other programs run, several threads compare badly: those of torch's OpenMP spin while they
wait for one that has no core, which made torch up to eight times slower than it is. Processor time
with `--threads 1` is reliable then.

A row whose rounds have taken half a minute is done: what takes long has fewer of them.
"""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby, product
from typing import NamedTuple

import numpy as np

from benchmarks.command import Table, parser
from benchmarks.inputs import (
    COMPILED,
    EAGER,
    MINDTWINS,
    ONNXRUNTIME,
    OPENVINO,
    PRECISIONS,
    TIMM,
    Work,
)
from benchmarks.machine import describe
from benchmarks.timing import Cost, take_turns
from benchmarks.workers import Failed, Worker, start
from mindtwins import list_detectors, list_models, list_segmentors
from mindtwins.errors import run_cli

SMALL = ["svt_small", "pcpvt_small"]
COPY = "torch.load, write, fsync"  # what no conversion can avoid
SECONDS, LIMIT = 0.5, 30.0  # of a turn; after which a row has no other round


def ratios(title: str, works: list[Work], others: tuple[str, ...], options: Namespace) -> None:
    """How many times faster MindTwins is than each of the others."""
    table = Table(title, "what", "beside", "ours/ms", "other/ms", "wall x", "cpu x", "roofline")
    for work, costs, floor in compare(works, others, options):
        for other in others:
            table.row(label(work), other, *row_cells(work, costs, other, floor))


def compare(
    works: list[Work], others: tuple[str, ...], options: Namespace
) -> Iterator[tuple[Work, dict[str, Cost], float | None]]:
    """Each work with the costs of those that can do it, and the roofline's floor.

    A precision has processes of its own, since MindSpore is told it once.
    """
    seconds, told = 0 if options.quick else SECONDS, set[str]()
    for _, same in groupby(works, key=lambda work: work.precision):
        with ExitStack() as stack:
            names = (MINDTWINS, *others)
            workers = {n: stack.enter_context(start(n, options.torch_python)) for n in names}
            for work in same:
                turns, costs, floor = {}, {}, None
                for name, worker in workers.items():
                    worker.send("build", contestant=name, fields=work)
                for name, worker in workers.items():
                    try:
                        answer = worker.receive()
                        floor = answer.get("floor") or floor
                        if (note := answer.get("note")) and note not in told:
                            told.add(note)
                            print(f"({name}: {note})")
                        turns[name] = partial(one_turn, worker, seconds)
                    except Failed as problem:
                        print(f"({name}: {problem})")
                try:
                    costs = take_turns(turns, options.rounds, LIMIT)
                except Failed as problem:
                    print(f"({problem})")
                yield work, costs, floor


def one_turn(worker: Worker, seconds: float) -> list[Cost]:
    """A worker's costs."""
    return [Cost(*cost) for cost in worker.ask("turn", seconds=seconds)["costs"]]


def row_cells(
    work: Work, costs: Mapping[str, Cost], other: str, floor: float | None
) -> tuple[str, ...]:
    """Milliseconds of both, how many times faster, and the floor's share; "-" for none."""
    pair = [costs.get(name) for name in (MINDTWINS, other)]
    times = ["-" if cost is None else f"{cost.wall * 1e3:.1f}" for cost in pair]
    wall = cpu = share = "-"
    if all(pair):
        wall, cpu = (f"{b / a:.2f}" for a, b in zip(*pair, strict=True))
    if work.device != "CPU":
        cpu = "-"
    if floor and pair[0]:
        share = f"{floor / pair[0].wall:.0%}"
    return *times, wall, cpu, share


def label(work: Work) -> str:
    """The first column."""
    images = f", {work.size}, batch {work.batch}" if work.size else ""
    return f"{work.model}, {work.what}{images}, {work.precision}"


def alone(name: str, work: Work, torch_python: str) -> dict[str, float]:
    """Seconds of the first of three calls, and the peak of memory in bytes; {} if it fails."""
    with start(name, torch_python) as worker:
        try:
            first = worker.ask("build", contestant=name, fields=work)
            for _ in range(2):
                worker.ask("turn", seconds=0)
            return first | worker.ask("peak")
        except Failed as problem:
            print(f"({name}: {problem})")
            return {}


def first_calls(title: str, works: list[Work], others: tuple[str, ...], options: Namespace) -> None:
    """Seconds of the first call, which builds the graph."""
    table = Table(title, "what", "wall/s", "cpu/s")
    for work in works:
        if found := alone(MINDTWINS, work, options.torch_python):
            table.row(label(work), f"{found['wall']:.1f}", f"{found['cpu']:.1f}")


def memory(title: str, works: list[Work], others: tuple[str, ...], options: Namespace) -> None:
    """Peak memory: of the device, or beyond that of the imported frameworks."""
    table = Table(title, "what", "ours/MB", "torch/MB", "ratio")
    for work in works:
        peaks = [
            alone(name, work, options.torch_python).get("peak") for name in (MINDTWINS, *others)
        ]
        table.row(label(work), *memory_cells(*peaks))


def memory_cells(ours: float | None, theirs: float | None) -> tuple[str, ...]:
    """Megabytes of both and their ratio, from bytes; "-" for none."""
    cells = ["-" if peak is None else f"{peak / 1e6:.0f}" for peak in (ours, theirs)]
    return *cells, f"{ours / theirs:.2f}" if ours and theirs else "-"


def scaling(title: str, works: list[Work], others: tuple[str, ...], options: Namespace) -> None:
    """How time grows (1: linearly): its exponent over the number of pixels and over the batch."""
    table = Table(title, "exponent of time", "ours", "torch")
    clock = "cpu" if options.device_target == "CPU" else "wall"
    measured = [(work, costs) for work, costs, _ in compare(works, others, options)]
    for _, group in groupby(measured, key=lambda pair: (pair[0].precision, pair[0].model)):
        found = [(work, costs) for work, costs in group if len(costs) == 2]
        if not found:
            continue
        least = found[0][0]
        for axis, constant in (("pixels", "batch"), ("batch", "size")):
            line = [f for f in found if getattr(f[0], constant) == getattr(least, constant)]
            pixels = [work.batch * work.size**2 for work, _ in line]
            exponents = [
                exponent(pixels, [getattr(costs[name], clock) for _, costs in line])
                for name in (MINDTWINS, *others)
            ]
            title = f"{least.model}, {axis}, {clock}, {least.precision}"
            table.row(title, *(f"{found:.2f}" for found in exponents))


def exponent(amounts: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log(seconds) over log(amounts): least squares."""
    return float(np.polyfit([math.log(a) for a in amounts], [math.log(s) for s in seconds], 1)[0])


class Part(NamedTuple):
    """A table.

    Attributes:
        measure: prints it.
        models: what is measured unless --models says otherwise.
        cases: (what, size, batch), unless --cases says otherwise.
        others: whom MindTwins is compared with.
        quick: the model for --quick.
    """

    measure: Callable[[str, list[Work], tuple[str, ...], Namespace], None]
    models: Sequence[str]
    cases: Sequence[tuple[str, int, int]]
    others: tuple[str, ...] = (EAGER,)
    quick: str = "svt_tiny"

    def works(self, options: Namespace) -> list[Work]:
        """What the options ask for."""
        device, cases = options.device_target, options.cases or self.cases
        models = options.models or self.models
        if options.quick:
            models = [self.quick]
            cases = {(what, size // 7, min(batch, 2)): None for what, size, batch in cases}
        everything = product(options.precisions, models, cases)
        return [Work(device, precision, model, *case) for precision, model, case in everything]


PARTS = {
    "inference": Part(ratios, SMALL, [("inference", 224, batch) for batch in (1, 4, 16)]),
    "larger_models": Part(
        ratios,
        [name for name in list_models() if name not in SMALL],
        [("inference", 224, batch) for batch in (1, 4)],
        others=(EAGER, OPENVINO),
    ),
    "other_pytorch": Part(
        ratios, SMALL, [("inference", 224, 4)], others=(TIMM, COMPILED), quick="svt_small"
    ),
    "other_runtimes": Part(
        ratios,
        SMALL,
        [("inference", 224, batch) for batch in (1, 4, 16)],
        others=(ONNXRUNTIME, OPENVINO),
    ),
    "training": Part(ratios, SMALL, [("training", 224, 8)]),
    "features": Part(ratios, SMALL, [("features", 512, 1)]),
    "segmentation": Part(
        ratios,
        ["fpn_svt_small", "upernet_svt_small"],
        # A batch norm needs two images to train.
        [("inference", 512, 1), ("training", 512, 2)],
        quick="upernet_svt_tiny",
    ),
    "detection": Part(
        ratios,
        ["retinanet_svt_small", "maskrcnn_svt_small"],
        [("inference", 512, 1)],
        quick="maskrcnn_svt_tiny",
    ),
    "detection_training": Part(
        ratios,
        ["retinanet_svt_small", "maskrcnn_svt_small"],
        [("training", 512, 2)],
        quick="maskrcnn_svt_tiny",
    ),
    "conversion": Part(ratios, ["svt_large"], [("conversion", 0, 0)], others=(COPY,)),
    "first_calls": Part(
        first_calls, ["svt_small", "pcpvt_large"], [("inference", 224, 1), ("training", 224, 1)]
    ),
    "memory": Part(memory, SMALL, [("inference", 224, 16), ("training", 224, 8)]),
    "scaling": Part(
        scaling,
        SMALL,
        [("inference", size, 1) for size in (224, 448, 672, 896)]
        + [("inference", 224, batch) for batch in (2, 4, 8, 16, 32)],
    ),
}

# What `make bench` measures in a quarter of an hour on two cores, with the loaders.
USUAL = (
    "inference",
    "larger_models",
    "other_runtimes",
    "training",
    "features",
    "first_calls",
    "memory",
)


def case(text: str) -> tuple[str, int, int]:
    """`training,224,8` as what, size and batch."""
    what, size, batch = text.split(",")
    return what, int(size), int(batch)


def main(argv: list[str]) -> None:
    """Measure and print the parts asked for."""
    command, models = parser(__doc__), [*list_models(), *list_segmentors(), *list_detectors()]
    cores = sorted(os.sched_getaffinity(0))
    command.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL)
    command.add_argument("--models", nargs="+", choices=models, metavar="MODEL")
    command.add_argument("--cases", nargs="+", type=case, metavar="WHAT,SIZE,BATCH")
    command.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--threads", type=int, default=len(cores))
    options = command.parse_args(argv)
    # Both frameworks take as many threads as they find cores when they start.
    os.sched_setaffinity(0, cores[: options.threads])
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.device_target == "CPU" and os.getloadavg()[0] > 0.5:
        print("other programs are running: prefer the processor time of --threads 1")
    print(describe())
    for name in options.parts:
        part = PARTS[name]
        part.measure(name, part.works(options), part.others, options)


if __name__ == "__main__":
    run_cli(main)
