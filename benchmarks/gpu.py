"""Everything that is worth knowing about a GPU, in one run of eight minutes.

    python -m benchmarks.gpu [--parts parity inference ...] [--minutes 8]
        [--torch_python /path/to/python] [--output_json gpu.json]
    python -m benchmarks.gpu --device_target CPU --quick   # the same code at tiny sizes

Parts run in the order of their value, those that time nothing beside each other; what fails, or
finds no time, says so in its table. The tables come last. MindTwins and PyTorch run in processes of
their own, so PyTorch may be another interpreter's (--torch_python): one with CUDA. Without, the
columns of PyTorch say so.
See docs/gpu.md for what the tables mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.on_gpu import training_runs
from benchmarks.on_gpu.training_runs import compare_losses
from benchmarks.on_gpu.workers import Report, Worker, mindspore_environment, torch_environment

MODELS = ("svt_small", "pcpvt_small", "svt_base", "pcpvt_base", "svt_large", "pcpvt_large")
PRECISIONS = ("fp16", "fp32", "tf32")
# The limits of the tests on CPU, in standard deviations of the output; there against float32.
STAGE_LIMIT, LOGITS_LIMIT = 1e-5, 5e-6
# How many times PyTorch's own rounding error a deviation may be where those are not reached.
TOLERATED = 4.0


@dataclass(frozen=True)
class Sizes:
    """What is measured: (model, image size, batch), and for how long.

    Attributes:
        models: for parity, with `images` of `pixels` x `pixels`.
        precisions: for speed.
        inference, steps, memory: the cases, in the order of their value: all of them for the first
            precision, and `few` for the others.
        compiled: the case for torch.compile, inference and training.
        operations: batch and image size for the formulations, and which of them: each so many.
        seconds: to measure one thing.
    """

    models: tuple[str, ...] = MODELS
    images: int = 16
    pixels: int = 224
    precisions: tuple[str, ...] = PRECISIONS
    inference: tuple[tuple[str, int, int], ...] = (
        ("svt_small", 224, 64),
        ("svt_small", 224, 1),
        ("svt_large", 224, 64),
        ("svt_small", 224, 256),
        ("svt_small", 512, 16),
        ("svt_small", 512, 1),
        ("svt_large", 512, 16),
        ("svt_small", 224, 16),
    )
    steps: tuple[tuple[str, int, int], ...] = (
        ("svt_small", 224, 64),
        ("svt_large", 224, 64),
        ("svt_small", 224, 256),
        ("svt_small", 512, 16),
        ("svt_small", 224, 1),
    )
    memory: tuple[tuple[str, int, int], ...] = (("svt_small", 224, 64), ("svt_large", 224, 64))
    few: int = 3
    compiled: tuple[str, int, int] = ("svt_small", 224, 64)
    operations: tuple[int, int, int] = (64, 224, 1)
    seconds: float = 0.5


TINY = ("svt_tiny", 32, 2)
QUICK = Sizes(
    models=("svt_tiny",),
    images=2,
    pixels=64,
    precisions=("fp32",),
    inference=(TINY,),
    steps=(TINY,),
    memory=(TINY,),
    compiled=TINY,
    operations=(1, 32, 9),
    seconds=0.02,
)


@dataclass
class Table:
    """A part's result.

    Attributes:
        title, head, rows: what is printed; the first column is text, and the second of two.
        notes: lines below.
        reports: all that the workers found, for --output_json.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports: dict[str, list[dict]] = field(default_factory=dict)

    def take(self, name: str, report: Report) -> list[dict]:
        """Keep a worker's report; its rows."""
        self.reports[name] = report.rows
        if report.problem:
            self.notes.append(f"{name}: {report.problem}")
        return report.rows

    def text(self) -> str:
        """The table, its columns aligned."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        body = [
            "  ".join(
                cell.ljust(width) if i == 0 or len(self.head) == 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([f"== {self.title}", *body, *(f"({note})" for note in self.notes)])


class Bench:
    """A run of the script: its options, its clock, and what several parts share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.device: str = options.device_target
        self.quick: bool = options.quick
        self.sizes = QUICK if options.quick else Sizes()
        self.folder = folder
        self.card = card_name() if self.device == "GPU" else ""
        self.lock = str(folder / "lock")
        self._torch_python: str = options.torch_python
        self._until = time.monotonic() + 60 * options.minutes
        self._reference: Worker | None = None
        self._floors: Report | None = None
        self._torch: dict | None = None

    def left(self, at_most: float) -> float:
        """Seconds that a part may take, `at_most` but not beyond the end of the run."""
        return max(0.0, min(at_most, self._until - time.monotonic()))

    def ours(self, task: str, **arguments: object) -> Worker:
        """Start a task of `mindspore_side` on the device."""
        environment = mindspore_environment()
        arguments["device"] = self.device
        return Worker("mindspore_side", task, sys.executable, environment, **arguments)

    def theirs(self, task: str, **arguments: object) -> Worker:
        """Start a task of `torch_side`."""
        python = self._torch_python
        return Worker("torch_side", task, python, torch_environment(python), **arguments)

    def together(
        self, table: Table, starts: dict[str, Callable[[], Worker]], at_most: float
    ) -> dict[str, list[dict]]:
        """The rows of several workers: beside each other on a GPU, in turn on a CPU."""
        if self.device == "CPU":
            return {
                name: table.take(name, start().result(self.left(at_most)))
                for name, start in starts.items()
            }
        until = time.monotonic() + self.left(at_most)
        workers = {name: start() for name, start in starts.items()}
        return {
            name: table.take(name, worker.result(until - time.monotonic()))
            for name, worker in workers.items()
        }

    def torch(self) -> dict:
        """What PyTorch there is: the row of `torch_side.environment`, {} for none."""
        if self._torch is None:
            rows = self.theirs("environment").result(self.left(60)).rows
            self._torch = rows[0] if rows else {}
        return self._torch

    def without_torch(self) -> str:
        """Why PyTorch cannot be measured on this device; "" if it can."""
        if not self.torch():
            return "no PyTorch here"
        if self.device == "GPU" and not self.torch()["card"]:
            return "this PyTorch has no CUDA"
        return ""

    def start_reference(self) -> None:
        """Have the expected outputs computed on the CPU, while something else is measured."""
        self._reference = self.theirs(
            "reference",
            models=self.sizes.models,
            folder=str(self.folder),
            batch=self.sizes.images,
            size=self.sizes.pixels,
        )

    def floors(self, seconds: float) -> Report:
        """What the reference reported, once it is done."""
        if self._floors is None and self._reference is not None:
            self._floors = self._reference.result(seconds)
        return self._floors or Report(problem="not started")

    def end(self) -> None:
        """Leave nothing running."""
        if self._reference is not None:
            self._reference.end()


def environment(bench: Bench) -> Table:
    """The card, the driver, the libraries and the versions."""
    table = Table("environment", ("what", "found"))
    if bench.device == "GPU":
        fields = "name,driver_version,memory.total,compute_cap"
        table.rows.append(("card, driver, memory, compute capability", query_card(fields)))
    for row in table.take("MindSpore", bench.ours("environment").result(bench.left(120))):
        table.rows += [
            ("MindSpore", f"{row['mindspore']} on {row['device']}"),
            ("its Python, NumPy", f"{row['python']}, {row['numpy']}"),
            ("its libraries", ", ".join(row["libraries"]) or "none of CUDA"),
            ("first operation", f"{row['first_operation']:.1f} s"),
        ]
    torch = bench.torch()
    versions = "none"
    if torch:
        versions = f"{torch['torch']}, CUDA {torch['cuda']}, cuDNN {torch['cudnn']}"
    table.rows.append(("PyTorch", versions))
    return table


def run_check(bench: Bench) -> Table:
    """What MindSpore says of itself."""
    table = Table("mindspore.run_check", ("what", "found"))
    report = bench.ours("run_check").result(bench.left(120))
    table.rows.append(("result", report.problem or report.rows[0]["said"]))
    return table


def parity(bench: Bench) -> Table:
    """float32 against the reference in float64."""
    table = Table(
        "parity, float32 with TF32 off against float64 (standard deviations)",
        ("model, weights", "worst stage", "PyTorch", "logits", "PyTorch", "verdict"),
    )
    if not bench.torch():
        table.notes.append("no PyTorch here: nothing to compare with")
        return table
    found = _parity(bench, table, ["O0"], False, 150)
    floors = {}
    for row in table.take("reference", bench.floors(bench.left(5))):
        floors[row["model"], row["weights"]] = row["floors"]
        device = {"cuda": "the GPU", "cpu": "the CPU"}[row["device"]]
    for row in found:
        floor = floors.get((row["model"], row["weights"]))
        stage, logits = worst(row["deviations"])
        cells = ("?", "?") if floor is None else tuple(f"{x:.1e}" for x in worst(floor))
        table.rows.append(
            (
                f"{row['model']}, {row['weights']}",
                *(f"{stage:.1e}", cells[0], f"{logits:.1e}", cells[1]),
                verdict(row["deviations"], floor),
            )
        )
    if floors:
        table.notes.append(f"PyTorch: its own rounding in float32 on {device}")
    return table


def half(bench: Bench) -> Table:
    """TF32 and the fp16 levels against the reference in float64."""
    table = Table(
        "TF32 and fp16 against float64 (standard deviations), randomized weights",
        ("model, level", "worst stage", "logits", "same class"),
    )
    if not bench.torch():
        table.notes.append("no PyTorch here: nothing to compare with")
        return table
    found = _parity(bench, table, ["O1", "O2", "O3"], False, 180)
    if bench.device == "GPU":
        found += _parity(bench, table, ["O0"], True, 60)
    for row in found:
        stage, logits = worst(row["deviations"])
        agree = f"{row['agree']} of {row['images']}"
        label = f"{row['model']}, {row['level']}"
        table.rows.append((label, f"{stage:.1e}", f"{logits:.1e}", agree))
    return table


def _parity(bench: Bench, table: Table, levels: list[str], tf32: bool, limit: float) -> list[dict]:
    sizes = bench.sizes
    worker = bench.ours(
        "parity",
        models=sizes.models,
        levels=levels,
        folder=str(bench.folder),
        batch=sizes.images,
        size=sizes.pixels,
        tf32=tf32,
    )
    name = "MindTwins, TF32" if tf32 else f"MindTwins, {' '.join(levels)}"
    return table.take(name, worker.result(bench.left(limit)))


def worst(deviations: dict[str, float]) -> tuple[float, float]:
    """The largest deviation of a stage, and that of the logits."""
    stages = [value for stage, value in deviations.items() if stage != "logits"]
    return max(stages), deviations["logits"]


def verdict(deviations: dict[str, float], floor: dict[str, float] | None) -> str:
    """Whether the deviations are within the limits of the CPU tests, or those of rounding."""
    stage, logits = worst(deviations)
    if stage < STAGE_LIMIT and logits < LOGITS_LIMIT:
        return "as on CPU"
    if floor and all(deviations[name] <= TOLERATED * floor[name] for name in floor):
        return "rounding"
    return "more than rounding" if floor else "above the CPU's limits"


def inference(bench: Bench) -> Table:
    """Images per second, beside PyTorch and the card's data sheet."""
    return _speed(bench, "inference", bench.sizes.inference)


def steps(bench: Bench) -> Table:
    """Images per second in training."""
    return _speed(bench, "training", bench.sizes.steps)


def _speed(bench: Bench, what: str, cases: tuple[tuple[str, int, int], ...]) -> Table:
    titles = {
        "inference": "inference (fp16: O3; PyTorch: half()), ratios above 1: MindTwins faster",
        "training": "training step (fp16: O2; PyTorch: autocast), ratios as for inference",
    }
    head = ("model, size, batch, precision", "images/s", "to eager", "to compile", "of roofline")
    table = Table(titles[what], (*head, "first call"))
    for precision in bench.sizes.precisions:
        asked = cases if precision == bench.sizes.precisions[0] else cases[: bench.sizes.few]
        names = [f"{side}, {precision}" for side in ("MindTwins", "eager", "compile")]
        common = {
            "precision": precision,
            "what": what,
            "seconds": bench.sizes.seconds,
            "lock": bench.lock,
        }
        starts = {names[0]: partial(bench.ours, "speed", cases=asked, card=bench.card, **common)}
        if not bench.without_torch():
            theirs = partial(bench.theirs, "speed", device=bench.device, **common)
            starts[names[1]] = partial(theirs, cases=asked, compiled=False)
            starts[names[2]] = partial(theirs, cases=[bench.sizes.compiled], compiled=True)
        found = bench.together(table, starts, 100)
        eager, compiled = ({case(row): row for row in found.get(name, [])} for name in names[1:])
        for row in found[names[0]]:
            key = case(row)
            table.rows.append(speed_row(row, precision, eager.get(key, {}), compiled.get(key, {})))
    if bench.without_torch():
        table.notes.append(bench.without_torch())
    return table


def case(row: dict) -> tuple[str, int, int]:
    """Which case a worker's row is about."""
    return row["model"], row["size"], row["batch"]


def speed_row(row: dict, precision: str, eager: dict, compiled: dict) -> tuple[str, ...]:
    """A line of the speed tables from the rows of the three; "-" for what was not measured."""
    label = f"{row['model']}, {row['size']}, {row['batch']}, {precision}"
    if "problem" in row:
        return label, "failed", row["problem"][:60], "-", "-", "-"
    ratios = []
    for theirs in (eager, compiled):
        if "seconds" in theirs:
            ratios.append(f"{theirs['seconds'] / row['seconds']:.2f}")
        else:
            ratios.append("failed" if "problem" in theirs else "-")
    share = f"{row['floor'] / row['seconds']:.0%}" if "floor" in row else "-"
    rate = f"{row['batch'] / row['seconds']:.0f}"
    return label, rate, *ratios, share, f"{row['first']:.1f} s"


def formulations(bench: Bench) -> Table:
    """Which way to compute an operation is the fastest here."""
    table = Table(
        "formulations, ms forward / forward and backward",
        ("operation, precision", "native", "matmul", "best in training"),
    )
    batch, size, every = bench.sizes.operations
    measured = partial(
        bench.ours,
        "formulations",
        batch=batch,
        size=size,
        every=every,
        seconds=bench.sizes.seconds / 5,
        lock=bench.lock,
    )
    starts = {"fp32": partial(measured, half=False)}
    if bench.device == "GPU":
        starts["fp16"] = partial(measured, half=True)
    for name, rows in bench.together(table, starts, 150).items():
        for label in dict.fromkeys(row["label"] for row in rows):
            found = {row["formulation"]: row for row in rows if row["label"] == label}
            table.rows.append((f"{label}, {name}", *formulation_cells(found)))
    table.notes.append(f"batch {batch} where none is stated; operations with one number have one")
    return table


def formulation_cells(found: dict[str, dict]) -> tuple[str, str, str]:
    """Native, matmul and which is better with its backward, by how much."""

    def cell(name: str) -> str:
        row = found.get(name)
        if row is None:
            return "-"
        if "problem" in row:
            return "failed"
        return f"{row['forward'] * 1e3:.3f} / {row['both'] * 1e3:.3f}"

    if "only one" in found:
        return cell("only one"), "", ""
    times = {name: row["both"] for name, row in found.items() if "both" in row}
    best = min(times, key=times.__getitem__, default="-")
    factor = f", {max(times.values()) / times[best]:.1f} x" if len(times) > 1 else ""
    return cell("native"), cell("matmul"), best + factor


def memory(bench: Bench) -> Table:
    """Peak memory of the device, each in a process of its own."""
    table = Table("peak memory, MB", ("what", "MindTwins", "PyTorch eager", "ratio"))
    torch_is_missing = bench.without_torch()
    for asked in bench.sizes.memory:
        for precision in [p for p in bench.sizes.precisions if p != "tf32"]:
            common = {"precision": precision, "cases": [asked], "seconds": 0.01, "lock": bench.lock}
            ours = partial(bench.ours, "speed", card=bench.card, **common)
            theirs = partial(bench.theirs, "speed", device=bench.device, compiled=False, **common)
            starts = {}
            for what in ("inference", "training"):
                label = f"{what}, {', '.join(map(str, asked))}, {precision}"
                starts[f"MindTwins, {label}"] = partial(ours, what=what)
                if not torch_is_missing:
                    starts[f"PyTorch, {label}"] = partial(theirs, what=what)
            found = bench.together(table, starts, 90)
            for name, rows in found.items():
                side, _, label = name.partition(", ")
                if side == "MindTwins":
                    table.rows.append((label, *memory_cells(rows, found.get(f"PyTorch, {label}"))))
    if torch_is_missing:
        table.notes.append(torch_is_missing)
    return table


def memory_cells(ours: list[dict], theirs: list[dict] | None) -> tuple[str, str, str]:
    """Megabytes of both sides and their ratio, from the rows of their workers, if any."""
    peaks = [rows[0].get("peak") if rows else None for rows in (ours, theirs)]
    cells = ["-" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks]
    return cells[0], cells[1], f"{peaks[0] / peaks[1]:.2f}" if all(peaks) else "-"


def training(bench: Bench) -> Table:
    """The recipes through train.py: alone, under mpirun, killed and resumed, all at once."""
    table = Table("training", ("what", "found"))
    folder, until = bench.folder / "training", time.monotonic() + bench.left(240)
    count = 16 if bench.quick else 512
    training_runs.write_images(folder / "images", count, max(4, count // 16))
    place = (bench.device, mindspore_environment(), bench.quick)
    started: list[training_runs.Run] = []

    def start(make: Callable[..., training_runs.Run], *arguments: object) -> training_runs.Run:
        started.append(make(*arguments))
        return started[-1]

    try:
        digits = start(training_runs.digits, folder, *place)
        alone = start(training_runs.imagenet, folder, "alone", *place)
        killed = start(training_runs.imagenet, folder, "killed", *place)
        launcher = training_runs.mpirun()
        ranked = None
        if launcher is not None:
            ranked = start(training_runs.imagenet, folder, "mpirun", *place, launcher)
        killed.kill_after_a_checkpoint(until)
        before = len(killed.records("steps.jsonl"))
        killed.resume()

        problem = alone.wait(until)
        losses = alone.records("steps.jsonl")
        found = problem or f"{len(losses)} steps"
        if losses:
            skipped = sum(record["grad_norm"] is None for record in losses)
            found += (
                f", loss {losses[0]['train_loss']:.3f} to {losses[-1]['train_loss']:.3f}, "
                f"{skipped} skipped, loss scale {losses[-1]['loss_scale']:g}"
            )
        table.rows.append(("svt_s_gpu.yaml, O2, alone", found))
        for what, run in (
            ("the same under mpirun -n 1", ranked),
            (f"the same killed after step {before} and resumed", killed),
        ):
            if run is None:
                table.rows.append((what, "no mpirun here"))
                continue
            problem = run.wait(until)
            table.rows.append((what, problem or compare_losses(run.records("steps.jsonl"), losses)))
        problem = digits.wait(until)
        accuracies = [r["test_acc1"] for r in digits.records("log.jsonl") if "test_acc1" in r]
        found = f"top-1 {max(accuracies):.2f} %" if accuracies else ""
        table.rows.append(("digits", ", ".join(filter(None, [problem, found]))))
        table.reports = {"alone": losses, "digits": digits.records("log.jsonl")}
    finally:
        for run in started:
            run.kill()
    return table


# In the order of their value. The untimed ones run beside each other, before the timed ones.
UNTIMED: dict[str, Callable[[Bench], Table]] = {
    "environment": environment,
    "run_check": run_check,
    "parity": parity,
    "training": training,
    "half": half,
}
TIMED: dict[str, Callable[[Bench], Table]] = {
    "inference": inference,
    "steps": steps,
    "formulations": formulations,
    "memory": memory,
}
PARTS = UNTIMED | TIMED


def card_name() -> str:
    """What the driver calls the first card; "" without a driver."""
    return query_card("name")


def query_card(fields: str) -> str:
    """The driver's answer for the first card; "" without a driver."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return output.stdout.partition("\n")[0]


def run_parts(bench: Bench, parts: list[str]) -> list[Table]:
    """The tables of the parts, in the order of `PARTS`."""
    first, *rest = [name for name in PARTS if name in parts]
    # Alone: on a card newer than MindSpore it compiles code that the others then find compiled.
    tables = [run_part(bench, first)]
    threads = 1 if bench.device == "CPU" else len(UNTIMED)
    with ThreadPoolExecutor(threads) as pool:
        tables += pool.map(partial(run_part, bench), [name for name in rest if name in UNTIMED])
    return tables + [run_part(bench, name) for name in rest if name in TIMED]


def run_part(bench: Bench, name: str) -> Table:
    """The table of a part; of one that fails, a table that says why."""
    if bench.left(60) < 2:
        return Table(name, ("", ""), notes=["no time left"])
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    try:
        table = PARTS[name](bench)
    except Exception as error:
        table = Table(name, ("", ""), notes=[f"failed: {type(error).__name__}: {error}"])
    table.notes.append(f"{time.monotonic() - started:.0f} s")
    return table


def main(argv: list[str]) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=7.5, help="end by then")
    parser.add_argument("--device_target", choices=("GPU", "CPU"), default="GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script work?")
    parser.add_argument(
        "--torch_python", default=sys.executable, help="interpreter whose PyTorch has CUDA"
    )
    parser.add_argument("--output_json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        try:
            if {"parity", "half"} & set(options.parts):
                bench.start_reference()
            bench.torch()
            tables = run_parts(bench, options.parts)
        finally:
            bench.end()
    if options.output_json:
        options.output_json.write_text(json.dumps([asdict(table) for table in tables], indent=1))
    print("\n" + "\n\n".join(table.text() for table in tables), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
