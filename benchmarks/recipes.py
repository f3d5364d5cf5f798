"""The recipes through train.py: alone, under mpirun, killed and resumed, all at once.

    python -m benchmarks.recipes --device_target GPU

Do the digits reach their accuracy? Are the losses of `svt_s_gpu.yaml` in fp16 (O2), 200 steps on
generated JPEGs, the same alone, under `mpirun -n 1`, and killed as by a power cut and resumed?
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.command import Table, parser
from benchmarks.inputs import write_images
from benchmarks.workers import ROOT, describe_failure, mindspore_environment
from mindtwins.errors import run_cli

DIGITS = "--config configs/svt_tiny_digits.yaml --data_dir {folder}/digits_data"
IMAGENET = (
    "--config configs/svt_s_gpu.yaml --data_dir {folder}/images --amp_level O2 --batch_size 32"
    " --epoch_steps 100 --epoch_size 2 --warmup_epochs 1 --val_interval 2 --log_interval 1"
    " --save_every_steps 50"
)
# What --quick adds.
QUICK = {
    DIGITS: "--epoch_size 1 --warmup_epochs 0",
    IMAGENET: "--model svt_tiny --image_size 32 --batch_size 4 --epoch_steps 2"
    " --save_every_steps 1",
}
MPIRUN = ("mpirun", "--allow-run-as-root", "-n", "1")


class Run:
    """A `train.py` that writes to a folder of its own.

    Args:
        folder: for its output and its log.
        arguments: of train.py.
        launcher: what stands before the interpreter.
    """

    def __init__(self, folder: Path, arguments: list[str], launcher: tuple[str, ...] = ()) -> None:
        self.output, self._log = folder / "out", folder / "log.txt"
        script = [sys.executable, "train.py", *arguments, "--output_dir", str(self.output)]
        self._command = [*launcher, *script]
        folder.mkdir(parents=True)
        self.start()

    def start(self, *more: str) -> None:
        """Start it, for instance with "--resume"."""
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [*self._command, *more],
                cwd=ROOT,
                env=mindspore_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_after_a_checkpoint(self) -> None:
        """Wait for the first checkpoint, then end the run as a power cut would."""
        while not list(self.output.glob("step_*.ckpt")) and self._process.poll() is None:
            time.sleep(0.05)
        self.kill()

    def problem(self) -> str:
        """Wait for the run, and say why it did not come to its end; "" if it did."""
        code = self._process.wait()
        log = self._log.read_text(errors="replace").split("\n")
        return describe_failure(code, log) if code else ""

    def kill(self) -> None:
        """End it, if it still runs, and everything that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def records(self, name: str = "steps.jsonl") -> list[dict]:
        """The lines of one of its logs."""
        path = self.output / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def describe_losses(losses: list[dict]) -> str:
    """In words: how many, from where to where, and what the loss scale did."""
    skipped = sum(record["grad_norm"] is None for record in losses)
    first, last = losses[0], losses[-1]
    return (
        f"{len(losses)} steps, loss {first['train_loss']:.3f} to {last['train_loss']:.3f}, "
        f"{skipped} skipped, loss scale {last['loss_scale']:g}"
    )


def compare_losses(run: list[dict], other: list[dict]) -> str:
    """In words: over how many steps the losses of two runs agree, and how far they are apart."""
    ours = {record["step"]: record["train_loss"] for record in run}
    theirs = {record["step"]: record["train_loss"] for record in other}
    if not ours or ours.keys() != theirs.keys():
        return f"{len(ours)} and {len(theirs)} steps"
    apart = max(abs(ours[step] / theirs[step] - 1) for step in ours)
    return f"{len(ours)} steps, " + ("equal bit for bit" if apart == 0 else f"within {apart:.1e}")


def main(argv: list[str]) -> None:
    """Train and print."""
    options = parser(__doc__).parse_args(argv)
    table = Table("recipes", "what", "found")
    count = 16 if options.quick else 512
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_images(folder / "images" / "train", count, classes=2)
        write_images(folder / "images" / "val", max(4, count // 16), classes=2)

        def begin(name: str, recipe: str, launcher: tuple[str, ...] = ()) -> Run:
            words = f"{recipe} {QUICK[recipe] if options.quick else ''}".format(folder=folder)
            arguments = [*words.split(), "--device_target", options.device_target]
            run = Run(folder / name, arguments, launcher)
            stack.callback(run.kill)
            return run

        digits = begin("digits", DIGITS)
        alone, killed = begin("alone", IMAGENET), begin("killed", IMAGENET)
        ranked = begin("mpirun", IMAGENET, MPIRUN) if shutil.which(MPIRUN[0]) else None
        killed.kill_after_a_checkpoint()
        step = len(killed.records())
        killed.start("--resume")

        problem, losses = alone.problem(), alone.records()
        table.row("svt_s_gpu.yaml, O2, alone", problem or describe_losses(losses))
        for what, run in (("under mpirun -n 1", ranked), (f"killed after step {step}", killed)):
            found = "no mpirun here"
            if run is not None:
                found = run.problem() or compare_losses(run.records(), losses)
            table.row(f"the same {what}", found)
        problem, epochs = digits.problem(), digits.records("log.jsonl")
        best = max((record.get("test_acc1", 0.0) for record in epochs), default=0.0)
        table.row("digits", problem or f"top-1 {best:.2f} %")


if __name__ == "__main__":
    run_cli(main)
