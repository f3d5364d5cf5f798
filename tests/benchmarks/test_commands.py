"""Every command runs at its tiny sizes, and the one that runs them all within its time."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu
from benchmarks.inputs import write_images

ROOT = Path(__file__).parents[2]


def run(command: str) -> str:
    """What `python -m benchmarks.COMMAND --quick` prints."""
    words = [sys.executable, "-m", *f"benchmarks.{command} --quick".split()]
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_speed():
    check("speed --parts inference", ["svt_tiny, inference, 32, batch 2, fp32"])


@pytest.mark.endurance
@pytest.mark.parametrize(
    ("command", "rows"),
    [
        ("data_pipeline", ["evaluation, mindtwins, threads", "training, torch DataLoader"]),
        (
            "operations",
            ["cross attention 2 of (1, 56, 56, 64), fp32", "suppression of 1250 boxes, fp32"],
        ),
        ("parity --levels TF32 O2", ["svt_tiny, TF32", "svt_tiny, O2"]),
        ("step_parity", ["svt_tiny", "retinanet_svt_tiny", "maskrcnn_svt_tiny"]),
        ("region_choice", ["maskrcnn_svt_tiny, 1 x 64 x 64, 32 regions"]),
        ("recipes", ["svt_s_gpu.yaml, O2, alone", "digits"]),
        ("speed --parts training --precisions fp16", ["svt_tiny, training, 32, batch 2, fp16"]),
        ("speed --parts features conversion", ["svt_tiny, features, 73, batch 1, fp32"]),
        ("speed --parts other_pytorch", ["svt_small, inference, 32, batch 2, fp32"]),
        ("speed --parts other_runtimes", ["svt_tiny, inference, 32, batch 1, fp32"]),
        ("speed --parts larger_models", ["svt_tiny, inference, 32, batch 2, fp32"]),
        ("speed --parts segmentation", ["upernet_svt_tiny, training, 73, batch 2, fp32"]),
        (
            "speed --parts detection detection_training",
            [
                "maskrcnn_svt_tiny, inference, 73, batch 1, fp32",
                "maskrcnn_svt_tiny, training, 73, batch 2, fp32",
            ],
        ),
        ("speed --parts first_calls memory", ["svt_tiny, training, 32, batch 1, fp32"]),
        ("speed --parts scaling", ["svt_tiny, pixels, cpu, fp32", "svt_tiny, batch, cpu, fp32"]),
    ],
)
def test_long_command(command: str, rows: list[str]):
    check(command, rows)


def check(command: str, rows: list[str]) -> str:
    printed = run(command)
    found = [line.split("|")[1].strip() for line in printed.split("\n") if line.startswith("|")]
    assert set(rows) <= set(found), printed
    assert "failed" not in printed and "error" not in printed
    return printed


@pytest.mark.slow
def test_all_of_it_on_a_cpu():
    """With the tables of `benchmarks.machine` and `benchmarks.parity`."""
    printed = check(
        "gpu --device_target CPU --parts environment parity --minutes 9",
        ["its first operation", "svt_tiny", "fpn_svt_tiny"],
    )
    environment, parity = printed.split("\n## ")[1:]
    assert "2." in environment and "on CPU" in environment and "successfully" in environment
    assert len(re.findall(r"\| +(as tested|rounding) +\|", parity)) == 4


@pytest.mark.parametrize(
    ("script", "seconds", "said"),
    [
        ("echo table", 20, "table"),
        ("echo table; echo 'RuntimeError: no kernel' >&2; exit 1", 20, "(RuntimeError: no kernel)"),
        ("echo table; exec sleep 60", 1.5, "(no time left)"),
        (
            "trap 'echo ended; kill $!; exit' INT; echo table; sleep 60 & wait",
            1.5,
            "ended\n(no time left)",
        ),
    ],
)
def test_what_a_part_printed_before_it_ended_is_kept(script: str, seconds: float, said: str):
    started = time.monotonic()
    printed = gpu.run(["sh", "-c", script], seconds)
    assert printed.startswith("table") and printed.endswith(said)
    assert time.monotonic() - started < 9


def test_parts_that_time_run_alone():
    parts = ["environment", "parity", "half", "inference", "memory"]
    assert gpu.groups(parts, "GPU") == [
        *(["environment"], ["parity", "half"], ["inference"], ["memory"])
    ]
    assert gpu.groups(parts, "CPU") == [[name] for name in parts]


def test_generated_images(tmp_path):
    write_images(tmp_path, 3, classes=2)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert files == ["class0/0.jpg", "class0/2.jpg", "class1/1.jpg"]
    with Image.open(tmp_path / files[0]) as picture:
        assert 400 <= picture.width <= 600 and 300 <= picture.height <= 413
        assert np.asarray(picture).std() > 30
