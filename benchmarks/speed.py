"""MindTwins beside PyTorch on this machine: the table of the README.

    python -m benchmarks.speed [--parts inference training ...] [--models svt_small ...]
                              [--rounds 3] [--threads 2]

Contestants take turns within one process, with the same inputs, weights and threads; a row shows
medians and how many times faster MindTwins is (above 1) by the clock and by processor time. First
calls and memory are measured in processes of their own.

Where other programs run, several threads compare badly: those of torch's OpenMP spin while they
wait for one that has no core, which made torch up to eight times slower than it is. Processor time
with `--threads 1` is reliable then.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.alone import measure
from benchmarks.contestants import (
    MINDTWINS,
    TORCH,
    Models,
    Work,
    images,
    prepare,
    segmentation,
    training,
)
from benchmarks.conversion import CONVERT, COPY, conversion
from benchmarks.machine import describe
from benchmarks.side_by_side import take_turns
from mindtwins import list_models

SIDES = ("mindtwins", "torch")
SMALL = ("svt_small", "pcpvt_small")
BATCHES = (1, 4, 16)
SIZES_OF_SCALING = (224, 448, 672, 896)
BATCHES_OF_SCALING = (1, 2, 4, 8, 16, 32)


def show(
    what: str,
    contestants: Mapping[str, Work],
    rounds: int,
    ours: str = MINDTWINS,
    others: tuple[str, ...] | None = None,
) -> None:
    """Measure and print one line for each opponent of `ours`."""
    costs = take_turns(contestants, rounds)
    for other in others or [name for name in contestants if name != ours]:
        wall, cpu = (b / a for a, b in zip(costs[ours], costs[other], strict=True))
        print(
            f"{what:<44}{other:<32}{costs[ours].wall * 1e3:>9.0f}{costs[other].wall * 1e3:>9.0f}"
            f"{wall:>8.2f}{cpu:>8.2f}",
            flush=True,
        )
    gc.collect()


def heading(title: str) -> None:
    print(f"\n{title:<76}{'ours/ms':>9}{'other/ms':>9}{'wall x':>8}{'cpu x':>8}", flush=True)


def inference(models: list[str], rounds: int) -> None:
    """Each model at batch 1, 4 and 16."""
    heading("inference, 224 x 224")
    for name in models:
        pair = Models(name)
        for batch in BATCHES:
            show(f"{name}, batch {batch}", pair.work(batch), rounds)


def other_pytorch(models: list[str], rounds: int) -> None:
    """The small ones at batch 4, beside timm's model and torch.compile where they work."""
    heading("inference, 224 x 224")
    for name in small(models):
        pair = Models(name)
        try:
            pair.add_timm()
        except ImportError as error:
            print(f"(without timm: {error})")
        try:
            pair.add_compiled(images(4, 224))
        except Exception as error:  # the compiler behind it fails in many ways
            print(f"(without torch.compile: {str(error).splitlines()[0]})")
        contestants = pair.work(4)
        others = tuple(other for other in contestants if other not in (MINDTWINS, TORCH))
        if others:
            show(f"{name}, batch 4", contestants, rounds, others=others)


def training_steps(models: list[str], rounds: int) -> None:
    """A whole training step at batch 8."""
    heading("training step, 224 x 224, batch 8")
    for name in small(models):
        show(name, training(name, 8), rounds)


def features(models: list[str], rounds: int) -> None:
    """Four feature maps of one large image."""
    heading("features, 512 x 512, batch 1")
    for name in small(models):
        show(name, Models(name, features_only=True).work(1, 512), rounds)


def segmentors(models: list[str], rounds: int) -> None:
    """Both heads; a batch norm needs two images to train. Calls take seconds: fewer rounds."""
    heading("segmentation, 512 x 512")
    if "svt_small" in models:
        for name in ("fpn_svt_small", "upernet_svt_small"):
            for what, batch, train in (("inference", 1, False), ("training step", 2, True)):
                contestants = segmentation(name, batch, train)
                show(f"{name}, {what}, batch {batch}", contestants, 1 if train else min(rounds, 2))


def converting(models: list[str], rounds: int) -> None:
    """A 400 MB checkpoint."""
    heading("conversion of SVT-L")
    show("read, convert, write", conversion(), rounds, CONVERT, (COPY,))


def first_calls(models: list[str], rounds: int) -> None:
    """Seconds of the first call, which builds the graph."""
    print(f"\n{'first call, batch 1':<50}{'wall/s':>10}{'cpu/s':>10}")
    for name, what in (
        ("svt_small", "inference"),
        ("pcpvt_large", "inference"),
        ("svt_small", "training"),
    ):
        seconds = measure("mindtwins", what, name, 1)
        print(
            f"{f'{name}, {what}':<50}{seconds['first']:>10.1f}{seconds['cpu']:>10.1f}", flush=True
        )


def memory(models: list[str], rounds: int) -> None:
    """Peak memory beyond that of the imported frameworks."""
    print(f"\n{'peak memory':<50}{'ours/MB':>10}{'torch/MB':>10}{'ratio':>8}")
    for name in small(models):
        for what, batch in (("inference", 16), ("training", 8)):
            ours, theirs = (measure(side, what, name, batch)["peak"] for side in SIDES)
            label = f"{name}, {what}, batch {batch}"
            print(f"{label:<50}{ours:>10.0f}{theirs:>10.0f}{ours / theirs:>8.2f}", flush=True)


def scaling(models: list[str], rounds: int) -> None:
    """How time grows: the exponent of time over the number of pixels and over the batch."""
    print(f"\n{'growth of time (1 = linear)':<50}{'ours':>10}{'torch':>10}")
    for name in small(models):
        pair = Models(name)
        for axis, cases in (
            ("pixels", [(1, size, size * size) for size in SIZES_OF_SCALING]),
            ("batch", [(batch, 224, batch) for batch in BATCHES_OF_SCALING]),
        ):
            costs = [take_turns(pair.work(batch, size), 1) for batch, size, _ in cases]
            amounts = [amount for _, _, amount in cases]
            ours, theirs = (
                exponent(amounts, [cost[side].cpu for cost in costs]) for side in (MINDTWINS, TORCH)
            )
            label = f"{name}, {axis} {cases[0][2]} to {cases[-1][2]}, cpu"
            print(f"{label:<50}{ours:>10.2f}{theirs:>10.2f}", flush=True)


def exponent(amounts: list[int], seconds: list[float]) -> float:
    """Slope of log(seconds) over log(amounts): least squares."""
    return float(np.polyfit([math.log(a) for a in amounts], [math.log(s) for s in seconds], 1)[0])


def small(models: list[str]) -> list[str]:
    """Those that the dearer parts are limited to."""
    return [name for name in SMALL if name in models]


PARTS: dict[str, Callable[[list[str], int], None]] = {
    "inference": inference,
    "other_pytorch": other_pytorch,
    "training": training_steps,
    "features": features,
    "segmentation": segmentors,
    "conversion": converting,
    "first_calls": first_calls,
    "memory": memory,
    "scaling": scaling,
}


def main(argv: list[str]) -> None:
    """Measure and print the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list_models(), default=list_models())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    if options.threads < len(cores):
        # Both frameworks size their thread pools when they are imported: begin again with fewer.
        os.sched_setaffinity(0, cores[: options.threads])
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.speed", *argv])
    if os.getloadavg()[0] > 0.5:
        print("other programs are running: prefer the processor time of --threads 1")
    prepare(options.threads)
    print(describe(options.threads))
    for part in options.parts:
        PARTS[part](options.models, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
