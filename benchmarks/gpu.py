"""Everything that is worth knowing about a GPU, in one run of eight minutes.

    python -m benchmarks.gpu [--parts parity inference ...] [--minutes 7.5]
        [--torch_python /path/to/python] | tee gpu.txt
    python -m benchmarks.gpu --device_target CPU --quick   # the same code at tiny sizes

Runs the other commands in the order of their value, those that time nothing beside each other. One
that fails, or finds no time, says so, and what it had printed until then is kept.
See docs/gpu.md for what the tables mean.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.command import parser
from benchmarks.workers import ROOT, describe_failure, mindspore_environment
from mindtwins import list_models
from mindtwins.errors import run_cli

LATE = (124, 137)  # how `timeout` says that it ended a command


class Part(NamedTuple):
    """A command of this folder and its options, the seconds it may take, whether it times."""

    command: str
    seconds: float
    timed: bool = True


_PARITY = f"parity --models {' '.join(list_models())}"
_SPEED = "speed --models svt_small svt_large --precisions fp16 fp32"
# In the order of their value.
PARTS = {
    "environment": Part("machine", 240, timed=False),
    "parity": Part(_PARITY, 240, timed=False),
    "training": Part("recipes", 240, timed=False),
    "half": Part(f"{_PARITY} --levels TF32 O1 O2 O3", 240, timed=False),
    "inference": Part(
        f"{_SPEED} tf32 --parts inference --cases inference,224,64 inference,224,1"
        " inference,224,256 inference,512,16 inference,512,1",
        120,
    ),
    "steps": Part(
        f"{_SPEED} tf32 --parts training --cases training,224,64 training,512,16 training,224,256",
        120,
    ),
    "compiled": Part(
        "speed --parts other_pytorch --models svt_small --precisions fp16 fp32 tf32"
        " --cases inference,224,64 training,224,64",
        120,
    ),
    "formulations": Part("operations --batch 64 --precisions fp32 fp16", 120),
    "memory": Part(f"{_SPEED} --parts memory --cases inference,224,64 training,224,64", 120),
    "first_calls": Part("speed --parts first_calls", 60),
}


def run(command: list[str], seconds: float) -> str:
    """What a command prints within some seconds, and why it did not come to its end."""
    if seconds < 1:
        return "(no time left)"
    # Interrupted, a command ends what it has started.
    limit = ["timeout", "--foreground", "--signal=INT", "--kill-after=10", str(seconds)]
    done = subprocess.run(
        [*limit, *command],
        cwd=ROOT,
        # Threads that spin while they wait starve whatever else this run has going on.
        env={"OMP_WAIT_POLICY": "passive"} | mindspore_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    printed = done.stdout.strip()
    if done.returncode == 0:
        return printed
    problem = "no time left"
    if done.returncode not in LATE:
        problem = describe_failure(done.returncode, printed.splitlines())
    return f"{printed}\n({problem})"


def main(argv: list[str]) -> None:
    """Run the parts, and print what they print."""
    command = parser(__doc__)
    command.set_defaults(device_target="GPU")
    command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    command.add_argument("--minutes", type=float, default=7.5, help="end by then")
    options = command.parse_args(argv)
    shared = ["--device_target", options.device_target, "--torch_python", options.torch_python]
    shared += ["--quick"] if options.quick else []
    until = time.monotonic() + 60 * options.minutes

    def print_of(name: str) -> str:
        module, *arguments = PARTS[name].command.split()
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, *shared]
        return run(command, min(PARTS[name].seconds, until - time.monotonic()))

    for group in groups([name for name in PARTS if name in options.parts], options.device_target):
        with ThreadPoolExecutor(len(group)) as pool:
            for name, printed in zip(group, pool.map(print_of, group), strict=True):
                print(f"\n## {name}\n\n{printed}", flush=True)


def groups(names: list[str], device: str) -> list[list[str]]:
    """Which parts run beside each other: on a CPU none.

    The first is alone: on a card newer than MindSpore it compiles code that the others then find
    compiled.
    """
    beside = [name for name in names[1:] if not PARTS[name].timed and device != "CPU"]
    return [names[:1], *filter(None, [beside]), *([n] for n in names[1:] if n not in beside)]


if __name__ == "__main__":
    run_cli(main)
