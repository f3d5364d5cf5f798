"""`benchmarks/gpu.py` without a GPU: its counts, its words, and what remains of failures."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu
from benchmarks.on_gpu import training_runs, workers
from benchmarks.on_gpu.inputs import deviation
from benchmarks.on_gpu.roofline import Operator, count_operators, find_peaks, floor_seconds
from benchmarks.on_gpu.timing import exclusive, median_seconds
from mindtwins.models.complexity import count

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["svt_small", "svt_large", "pcpvt_base"])
@pytest.mark.parametrize("size", [224, 512])
def test_roofline_counts_the_products_of_the_summary(name: str, size: int):
    """Two counts written independently: by operator here, by stage there."""
    products = sum(part.layer_products + part.attention_products for part in count(name, size))
    assert sum(operator.products for operator in count_operators(name, size, 3)) == 3 * products


def test_roofline_reads_every_weight_once():
    """What a batch of 2 moves more than a batch of 1 are activations alone."""
    one, two = (
        sum(operator.values for operator in count_operators("svt_small", 224, batch))
        for batch in (1, 2)
    )
    assert 2 * one - two == sum(part.parameters for part in count("svt_small", 224))


@pytest.mark.parametrize(
    ("card", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
    ],
)
def test_peaks_by_the_name_of_the_card(card: str, bandwidth: float):
    assert find_peaks(card).bandwidth == bandwidth
    assert find_peaks("NVIDIA GH200 480GB") is None


def test_the_slower_of_arithmetic_and_memory_is_the_floor():
    peaks = find_peaks("NVIDIA H200")
    arithmetic, memory = Operator("a", 67 * 10**12, 1), Operator("m", 1, 12 * 10**11)
    assert floor_seconds([arithmetic], peaks, "fp32") == pytest.approx(2.0)
    assert floor_seconds([memory], peaks, "fp32") == pytest.approx(1.0)
    assert floor_seconds([memory, arithmetic], peaks, "fp32") == pytest.approx(3.0)
    assert floor_seconds([memory], peaks, "fp16") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no tf32"):
        floor_seconds([arithmetic], find_peaks("Tesla V100-SXM2-16GB"), "tf32")


def interpreter(folder: Path, script: str) -> str:
    """A stand-in for a Python with a worker: it runs the script whatever it is asked."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "seconds", "problem"),
    [
        ("exit 0", 20, ""),
        (
            "echo 'RuntimeError: no kernel'; echo at line 3 >&2; exit 1",
            20,
            "RuntimeError: no kernel",
        ),
        ("kill -SEGV $$", 20, "killed by SIGSEGV"),
        ("sleep 60", 0.5, "no time left"),
    ],
)
def test_what_a_worker_found_before_it_ended_is_kept(tmp_path, script, seconds, problem):
    found = """echo '@result {"model": "svt_small", "seconds": 0.5}'"""
    python = interpreter(tmp_path, f"echo warning\n{found}\n{script}")
    worker = workers.Worker("torch_side", "speed", python, dict(os.environ), batch=2)
    report = worker.result(seconds)
    assert report.rows == [{"model": "svt_small", "seconds": 0.5}]
    assert report.problem == problem


def test_a_mistake_that_a_script_tells_is_its_reason():
    output = ["compiling", "error: cannot use device_target GPU: none", ""]
    assert workers.describe_failure(1, output) == "error: cannot use device_target GPU: none"
    assert workers.describe_failure(3, []) == "exit code 3"


def test_torch_is_kept_from_the_libraries_of_mindspore(monkeypatch):
    spec = workers.find_spec("mindspore")
    site = Path(spec.origin).parents[1]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{site}/mindspore/lib:{site}/nvidia/x/lib:/usr/local/x")
    monkeypatch.setenv("PYTHONPATH", f"{site}")
    same, other = (workers.torch_environment(p) for p in (sys.executable, "/usr/bin/other"))
    assert same["LD_LIBRARY_PATH"] == other["LD_LIBRARY_PATH"] == "/usr/local/x"
    assert same["PYTHONPATH"] == f"{ROOT}:{site}"
    assert other["PYTHONPATH"] == str(ROOT)


def bench(tmp_path: Path, **options: object) -> gpu.Bench:
    defaults = {"device_target": "CPU", "quick": True, "torch_python": "python", "minutes": 1.0}
    return gpu.Bench(Namespace(**(defaults | options)), tmp_path)


def test_a_part_that_fails_has_a_table_that_says_so(tmp_path, monkeypatch):
    def fail(bench: gpu.Bench) -> gpu.Table:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.UNTIMED, "parity", fail)
    monkeypatch.setitem(gpu.PARTS, "parity", fail)
    table = gpu.Table("steps", ("what", "ratio"), [("svt_small", "1.2")])
    monkeypatch.setitem(gpu.PARTS, "steps", lambda bench: table)
    first, second = gpu.run_parts(bench(tmp_path), ["steps", "parity"])
    assert first.notes[0] == "failed: RuntimeError: out of memory"
    assert second.text() == "== steps\nwhat       ratio\nsvt_small  1.2\n(0 s)"
    (late,) = gpu.run_parts(bench(tmp_path, minutes=0), ["memory"])
    assert late.notes == ["no time left"]


@pytest.mark.parametrize(
    ("stage", "logits", "floor", "words"),
    [
        (9e-6, 4e-6, None, "as on CPU"),
        (3e-5, 4e-6, {"stage1": 1e-5, "logits": 1e-6}, "rounding"),
        (3e-5, 5e-6, {"stage1": 1e-5, "logits": 1e-6}, "more than rounding"),
        (3e-5, 4e-6, None, "above the CPU's limits"),
        (float("nan"), 4e-6, {"stage1": 1e-5, "logits": 1e-6}, "more than rounding"),
    ],
)
def test_verdict(stage, logits, floor, words):
    assert gpu.verdict({"stage1": stage, "logits": logits}, floor) == words


def test_cells_of_the_tables():
    row = {"model": "svt_small", "size": 224, "batch": 64, "seconds": 0.02, "first": 6.0}
    cells = gpu.speed_row(row | {"floor": 0.005}, "fp16", {"seconds": 0.03}, {"problem": "?"})
    assert cells == ("svt_small, 224, 64, fp16", "3200", "1.50", "failed", "25%", "6.0 s")
    assert gpu.speed_row(row, "fp16", {}, {})[2:5] == ("-", "-", "-")
    failed = gpu.speed_row(row | {"problem": "no memory"}, "fp32", {}, {})
    assert failed[1:3] == ("failed", "no memory")

    found = {
        "native": {"forward": 1e-3, "both": 4e-3},
        "matmul": {"forward": 2e-3, "both": 3e-3},
    }
    cells = gpu.formulation_cells(found)
    assert cells == ("1.000 / 4.000", "2.000 / 3.000", "matmul, 1.3 x")
    found["native"] = {"problem": "not supported"}
    assert gpu.formulation_cells(found) == ("failed", "2.000 / 3.000", "matmul")

    assert gpu.memory_cells([{"peak": 2e9}], [{"peak": 1e9}]) == ("2000", "1000", "2.00")
    assert gpu.memory_cells([{"peak": 2e9}], None) == ("2000", "-", "-")


def test_losses_of_two_runs():
    def records(*losses: float) -> list[dict]:
        return [{"step": step, "train_loss": loss} for step, loss in enumerate(losses)]

    run = records(7.0, 6.5)
    assert training_runs.compare_losses(run, run) == "2 steps, equal bit for bit"
    assert training_runs.compare_losses(run, records(7.0, 6.4)) == "2 steps, within 1.6e-02"
    assert training_runs.compare_losses(records(7.0), run) == "1 and 2 steps"
    assert training_runs.compare_losses([], []) == "0 and 0 steps"


def test_generated_images(tmp_path):
    training_runs.write_images(tmp_path, 3, 2)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert files == [
        *("train/class_0/0.jpg", "train/class_0/2.jpg", "train/class_1/1.jpg"),
        *("val/class_0/0.jpg", "val/class_1/1.jpg"),
    ]
    red, green, _ = np.asarray(Image.open(tmp_path / files[0])).mean((0, 1))
    assert red < 60 < green


def test_timing(tmp_path):
    calls: list[str] = []
    with exclusive(str(tmp_path / "lock")):
        taken = median_seconds(lambda: calls.append("work"), lambda: calls.append("wait"), 0.0)
    assert 0 < taken < 1e-3
    assert calls[:5] == ["work", "work", "wait", "work", "wait"]
    assert calls[-1] == "wait" and calls.count("wait") == 3


def test_deviation_is_in_standard_deviations():
    expected = np.array([1.0, 3.0])
    assert deviation(np.array([1.0, 3.5], np.float32), expected) == pytest.approx(0.5)


@pytest.mark.slow
def test_the_script_runs_on_cpu():
    parts = ["environment", "run_check", "parity", "formulations"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--device_target", "CPU", "--quick"]
    command += ["--minutes", "9", "--parts", *parts]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=570)
    assert result.returncode == 0, result.stderr
    tables = result.stdout.split("== ")[1:]
    assert len(tables) == len(parts)
    assert "2." in tables[0] and "on CPU" in tables[0]
    assert "successfully" in tables[1]
    assert tables[2].count("as on CPU") == 2
    assert "patches 4x4" in tables[3] and "failed" not in tables[3]
