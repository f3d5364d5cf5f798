"""What the tables say: alignment, ratios, verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import operations, parity, speed
from benchmarks.command import Table
from benchmarks.inputs import MINDTWINS, Work
from benchmarks.recipes import compare_losses, describe_losses
from benchmarks.timing import Cost


def test_rows_are_aligned_as_they_come(capsys):
    table = Table("steps", "what", "ratio", "and more of it")
    table.row("svt_small", "1.2", "3")
    title, head, line, row = filter(None, capsys.readouterr().out.split("\n"))
    assert title == "steps"
    assert [cell.strip() for cell in row.split("|")] == ["", "svt_small", "1.2", "3", ""]
    assert [cell.strip() for cell in line.split("|")] == ["", "---", "--:", "--:", ""]
    assert len(head) == len(line) == len(row)


def test_cells_of_a_speed_table():
    work = Work("CPU", "fp32", "svt_small", "inference", 224, 64)
    costs = {MINDTWINS: Cost(0.02, 0.04), "eager": Cost(0.03, 0.05)}
    assert speed.row_cells(work, costs, "eager", 0.005) == ("20.0", "30.0", "1.50", "1.25", "25%")
    assert speed.row_cells(work, costs, "timm", None) == ("20.0", "-", "-", "-", "-")
    on_gpu = work._replace(device="GPU")
    assert speed.row_cells(on_gpu, costs, "eager", 0.005) == ("20.0", "30.0", "1.50", "-", "25%")
    assert speed.row_cells(on_gpu, costs, "eager", None)[4] == "-"
    assert speed.row_cells(on_gpu, {"eager": costs["eager"]}, "eager", 0.005)[0] == "-"


def test_cells_of_the_memory_table():
    assert speed.memory_cells(2e9, 1e9) == ("2000", "1000", "2.00")
    assert speed.memory_cells(2e9, None) == ("2000", "-", "-")


def test_best_formulation():
    found = {"native": [1.0, 4.0], "matmul": [2.0, 3.0], "torch": [0.1, 0.1]}
    assert operations.best(found) == "matmul, 1.3 x"
    assert operations.best({"matmul": [2.0, 3.0]}) == "matmul"
    assert operations.cell([1.0, 4.0]) == "1.000 / 4.000"
    assert operations.cell(None) == "failed"


@pytest.mark.parametrize(
    ("stage", "logits", "words"),
    [
        (9e-6, 4e-6, "as tested"),
        (3e-5, 4e-6, "rounding"),
        (3e-5, 5e-6, "more than rounding"),
        (float("nan"), 4e-6, "more than rounding"),
    ],
)
def test_verdict(stage, logits, words):
    floors = {"stage1": 1e-5, "logits": 1e-6}
    assert parity.verdict({"stage1": stage, "logits": logits}, floors) == words


def test_deviations_are_in_standard_deviations():
    expected = {"logits": np.array([1.0, 3.0])}
    found = {"logits": np.array([1.0, 3.5], np.float32)}
    assert parity.deviations(found, expected, expected) == {"logits": pytest.approx(0.5)}


def test_losses_of_two_runs():
    def records(*losses: float) -> list[dict]:
        return [{"step": step, "train_loss": loss} for step, loss in enumerate(losses)]

    run = records(7.0, 6.5)
    assert compare_losses(run, run) == "2 steps, equal bit for bit"
    assert compare_losses(run, records(7.0, 6.4)) == "2 steps, within 1.6e-02"
    assert compare_losses(records(7.0), run) == "1 and 2 steps"
    assert compare_losses([], []) == "0 and 0 steps"
    for record, norm in zip(run, (None, 1.0), strict=True):
        record |= {"grad_norm": norm, "loss_scale": 32768.0}
    assert describe_losses(run) == "2 steps, loss 7.000 to 6.500, 1 skipped, loss scale 32768"
