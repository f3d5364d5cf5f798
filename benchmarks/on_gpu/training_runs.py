"""`train.py` on a device: digits to their accuracy, ImageNet's recipe started in three ways."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.on_gpu.workers import ROOT, describe_failure

CLASSES = 2


def write_images(folder: Path, train: int, val: int) -> None:
    """JPEGs of about 500 x 375 pixels: smooth noise, of another color in each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % CLASSES
            target = folder / split / f"class_{label}"
            target.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            small[..., label] //= 4
            size = (500 + int(rng.integers(-60, 60)), 375 + int(rng.integers(-40, 40)))
            picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
            picture.save(target / f"{number}.jpg", quality=90)


class Run:
    """A `train.py` that writes to a folder of its own.

    Args:
        folder: for its output and its log.
        arguments: options of train.py.
        environment: of the process.
        launcher: what stands before the interpreter, such as `mpirun -n 1`.
    """

    def __init__(
        self,
        folder: Path,
        arguments: dict[str, object],
        environment: dict[str, str],
        launcher: tuple[str, ...] = (),
    ) -> None:
        self.output = folder / "out"
        self.log = folder / "log.txt"
        self._command = [*launcher, sys.executable, str(ROOT / "train.py")]
        for key, value in (arguments | {"output_dir": self.output}).items():
            self._command += [f"--{key}", str(value)]
        self._environment = environment
        folder.mkdir(parents=True)
        self._start()

    def _start(self, *more: str) -> None:
        with open(self.log, "a") as log:
            self._process = subprocess.Popen(
                [*self._command, *more],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def resume(self) -> None:
        """Start it again where it was."""
        self._start("--resume")

    def kill_after_a_checkpoint(self, until: float) -> None:
        """Wait for the first checkpoint, then end the run as a power cut would."""
        while not list(self.output.glob("step_*.ckpt")):
            if self._process.poll() is not None or time.monotonic() > until:
                break
            time.sleep(0.05)
        self.kill()

    def wait(self, until: float) -> str:
        """Why the run did not come to its end by then; "" if it did."""
        try:
            code = self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return "no time left"
        return (
            describe_failure(code, self.log.read_text(errors="replace").split("\n")) if code else ""
        )

    def kill(self) -> None:
        """End it, if it still runs, and everything that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def records(self, name: str) -> list[dict]:
        """The lines of one of its logs, "steps.jsonl" or "log.jsonl"."""
        path = self.output / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def digits(folder: Path, device: str, environment: dict[str, str], quick: bool) -> Run:
    """The handwritten digits of the demo."""
    arguments: dict[str, object] = {
        "config": ROOT / "configs/svt_tiny_digits.yaml",
        "device_target": device,
        "data_dir": folder / "digits_data",
    }
    if quick:
        arguments |= {"epoch_size": 1, "warmup_epochs": 0}
    return Run(folder / "digits", arguments, environment)


def imagenet(
    folder: Path,
    name: str,
    device: str,
    environment: dict[str, str],
    quick: bool,
    launcher: tuple[str, ...] = (),
) -> Run:
    """`configs/svt_s_gpu.yaml` at amp_level O2 for 200 steps on `folder`/images."""
    steps = 4 if quick else 200
    arguments: dict[str, object] = {
        "config": ROOT / "configs/svt_s_gpu.yaml",
        "device_target": device,
        "data_dir": folder / "images",
        "amp_level": "O2",
        "batch_size": 32,
        "epoch_steps": steps // 2,
        "epoch_size": 2,
        "warmup_epochs": 1,
        "val_interval": 2,
        "log_interval": 1,
        "save_every_steps": steps // 4,
    }
    if quick:
        arguments |= {"model": "svt_tiny", "image_size": 32, "batch_size": 4}
    return Run(folder / name, arguments, environment, launcher)


def mpirun() -> tuple[str, ...] | None:
    """The command for one rank; None where Open MPI is not installed."""
    if shutil.which("mpirun") is None:
        return None
    return ("mpirun", "--allow-run-as-root", "-n", "1")


def compare_losses(run: list[dict], other: list[dict]) -> str:
    """In words: over how many steps the losses of two runs agree, and how far they are apart."""
    ours = {record["step"]: record["train_loss"] for record in run}
    theirs = {record["step"]: record["train_loss"] for record in other}
    if not ours or ours.keys() != theirs.keys():
        return f"{len(ours)} and {len(theirs)} steps"
    apart = max(abs(ours[step] / theirs[step] - 1) for step in ours)
    return f"{len(ours)} steps, " + ("equal bit for bit" if apart == 0 else f"within {apart:.1e}")
