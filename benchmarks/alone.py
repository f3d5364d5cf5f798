"""First-call time and peak memory of one piece of work, in a process of its own.

    python -m benchmarks.alone {mindtwins,torch} {inference,training} MODEL BATCH [SIZE]

prints one line of JSON: `first` and `cpu`, seconds of the first call (which compiles), and `peak`,
the most memory that the process had beyond what it had before the model was created, in MB. MODEL
is a classifier, at 224 x 224 pixels unless SIZE says otherwise, or (MindTwins alone) a segmentor,
at 512.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import cost_of

CALLS = 3


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def most_resident() -> float:
    """The most memory this process ever had, in MB. (getrusage would count its parent's too.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def measure_here(
    side: str, what: str, model: str, batch: int, size: int | None = None
) -> dict[str, float]:
    """Do the work of one side in this process. Each side imports its own framework only."""
    segments = model.startswith(("fpn_", "upernet_"))
    side_length = size or (512 if segments else 224)
    random = np.random.default_rng(0)
    pixels = random.standard_normal((batch, 3, side_length, side_length), np.float32)
    if segments:
        targets = random.integers(0, 150, (batch, side_length, side_length), np.int32)
    else:
        targets = np.eye(1000, dtype=np.float32)[:batch]
    work = _ours if side == "mindtwins" else _torch
    baseline, call = work(what, model, pixels, targets)
    first = cost_of(call)
    for _ in range(CALLS - 1):
        call()
    return {"first": first.wall, "cpu": first.cpu, "peak": most_resident() - baseline}


def _ours(
    what: str, model: str, pixels: np.ndarray, targets: np.ndarray
) -> tuple[float, Callable[[], object]]:
    import mindspore as ms

    import mindtwins

    ms.set_context(mode=ms.GRAPH_MODE)
    baseline = resident()
    segments = targets.dtype == np.int32
    cell = (mindtwins.create_segmentor if segments else mindtwins.create_model)(model)
    if what == "training":
        from mindtwins.classification.loss import SoftTargetCrossEntropy
        from mindtwins.segmentation.loss import PixelCrossEntropy
        from mindtwins.training.groups import parameter_groups
        from mindtwins.training.loss_scale import LossScale
        from mindtwins.training.optimizer import AdamW
        from mindtwins.training.step import MicroBatch, TrainStep

        loss = SoftTargetCrossEntropy()
        if segments:
            loss = PixelCrossEntropy((1.0,) if cell.auxiliary_head is None else (1.0, 0.4))
        optimizer = AdamW(parameter_groups(cell.set_train(), 0.05))
        step = TrainStep(cell, loss, optimizer, LossScale(1.0, 1, dynamic=False), 5.0)
        return baseline, lambda: step([MicroBatch(pixels, targets)], 1e-6)
    return baseline, lambda: cell(ms.Tensor(pixels)).asnumpy()


def _torch(
    what: str, model: str, pixels: np.ndarray, targets: np.ndarray
) -> tuple[float, Callable[[], object]]:
    import torch

    from mindtwins.reference import create_reference

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    baseline = resident()
    reference = create_reference(model)
    if what == "training":
        from benchmarks.torch_training import torch_training

        return baseline, torch_training(reference, pixels, targets)

    def call() -> object:
        with torch.inference_mode():
            return reference(torch.from_numpy(pixels))

    return baseline, call


def measure(side: str, what: str, model: str, batch: int) -> dict[str, float]:
    """Run this module in a new process and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.alone", side, what, model, str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    side, what, model, *numbers = sys.argv[1:]
    print(json.dumps(measure_here(side, what, model, *map(int, numbers))))
