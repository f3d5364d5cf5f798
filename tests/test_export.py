"""export.py: mistakes, what is left behind, and the exported file in validate.py and infer.py."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import export, infer, validate
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.export import backbone
from mindtwins.export.graph import Graph
from mindtwins.export.onnx_file import to_bytes
from mindtwins.export.to_onnx import build_onnx
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.tasks import KINDS

ROOT = Path(__file__).parents[1]
NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ten named classes, its export, and a data set of two of them."""
    folder = tmp_path_factory.mktemp("export")
    reference = randomize(create_reference("svt_tiny", num_classes=10))
    torch.save(reference.state_dict(), folder / "tiny.pth")
    conversion = from_torch(read_source(folder / "tiny.pth"), KINDS)
    conversion.metadata["classes"] = NAMES
    save_checkpoint(folder / "tiny.ckpt", conversion.tensors, conversion.metadata)
    run(export, "--ckpt_path", folder / "tiny.ckpt", "--file_name", folder / "tiny.onnx")
    rng = np.random.default_rng(0)
    for number in range(10):
        place = folder / "data" / "val" / NAMES[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90, 70 + number, 3), np.uint8)).save(place)
    return folder


def run(command, *words: object) -> None:
    command.main([str(word) for word in words])


@pytest.mark.slow
def test_the_exported_file_has_the_checkpoint_s_accuracy(folder, tmp_path, capsys):
    results = []
    for flag, file in (("--ckpt_path", "tiny.ckpt"), ("--onnx_path", "tiny.onnx")):
        out = tmp_path / f"{file}.json"
        run(validate, flag, folder / file, "--data_dir", folder / "data", "--output_json", out)
        results.append(json.loads(out.read_text()))
    ours, exported = results
    assert ours["top1"] == exported["top1"] and ours["top5"] == exported["top5"]
    assert ours["loss"] == pytest.approx(exported["loss"], abs=1e-5)
    assert exported["images"] == 10 and exported["onnx_path"] == str(folder / "tiny.onnx")


@pytest.mark.slow
def test_the_exported_file_predicts_what_the_checkpoint_does(folder, tmp_path):
    results = []
    for flag, file in (("--ckpt_path", "tiny.ckpt"), ("--onnx_path", "tiny.onnx")):
        out = tmp_path / f"{file}.json"
        run(infer, flag, folder / file, "--images", folder / "data", "--output_json", out)
        results.append(json.loads(out.read_text()))
    for ours, exported in zip(*results, strict=True):
        assert ours["names"] == exported["names"] and ours["file"] == exported["file"]
        np.testing.assert_allclose(ours["probabilities"], exported["probabilities"], atol=1e-6)


@pytest.mark.parametrize("command", [validate, infer])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--onnx_path", "none.onnx"], "none.onnx does not exist"),
        (
            ["--onnx_path", "{}/tiny.ckpt"],
            "tiny.ckpt was not exported .*it is a MindSpore checkpoint.*: such",
        ),
        (["--onnx_path", "{}/tiny.onnx", "--ckpt_path", "x.ckpt"], "contradict each other"),
        (["--onnx_path", "{}/tiny.onnx", "--window_padding", "mask"], "computes as it was"),
        (["--onnx_path", "{}/tiny.onnx", "--task", "segmentation"], "is a .* of task class"),
        (["--onnx_path", "{}/tiny.onnx", "--num_classes", "7"], "num_classes 10 .asked for: 7"),
        (["--onnx_path", "{}/tiny.onnx", "--model", "svt_small"], "svt_tiny .asked for: svt_small"),
    ],
)
def test_exported_files_that_do_not_fit(command, words, message, folder):
    more = ("--data_dir", folder / "data") if command is validate else ("--images", folder / "data")
    with pytest.raises(UserError, match=message):
        run(command, *(word.format(folder) for word in words), *more)


@pytest.mark.slow
def test_files_of_another_use(folder, tmp_path):
    for how, message in (
        ({"features_only": True}, "gives stage1, stage2, stage3, stage4, not logits"),
        ({"preprocess": True}, "prepares pictures itself, and so do the scripts"),
    ):
        order = export.create_order(folder / "tiny.ckpt", **how)
        content = to_bytes(*build_onnx(order, order.create().dialect))
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run(validate, "--onnx_path", tmp_path / "x.onnx", "--data_dir", folder / "data")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "none.ckpt", "--file_name", "x.onnx"], "none.ckpt does not exist"),
        (["--ckpt_path", "{}/tiny.ckpt", "--file_name", "x.pb"], "x.pb: the name of an export has"),
        (["--ckpt_path", "{}/tiny.ckpt", "--file_name", "no/x.onnx"], "the folder no does not"),
        (["--ckpt_path", "{}/tiny.ckpt", "--file_name", "{}/tiny.ckpt"], "is read or written by"),
        (["--ckpt_path", "{}/tiny.onnx", "--file_name", "x.onnx"], "cannot load .*tiny.onnx"),
        (
            ["--ckpt_path", "{}/tiny.ckpt", "--file_name", "x.onnx", "--image_size", "8"],
            "must be at least 32, not 8",
        ),
        (
            ["--ckpt_path", "{}/tiny.ckpt", "--file_name", "x.onnx", "--image_sise", "64"],
            "did you mean '--image_size'",
        ),
    ],
)
def test_mistakes(words, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(export, *(word.format(folder) for word in words))
    assert not list(tmp_path.iterdir())


def test_without_the_packages(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mindtwins.export.to_onnx", None)
    with pytest.raises(UserError, match='pip install "onnx'):
        run(export, "--ckpt_path", folder / "tiny.ckpt", "--file_name", tmp_path / "x.onnx")


def rough_gelu(graph: Graph, x: str) -> str:
    """x sigmoid(1.702 x): near enough to look right."""
    gate = graph.add("Sigmoid", graph.add("Mul", x, graph.constant(1.702, np.float32)))
    return graph.add("Mul", x, gate)


@pytest.mark.slow
def test_a_wrong_file_is_not_left(folder, tmp_path, monkeypatch):
    """Nor does it take the place of what was there; the report says how wrong it was."""
    monkeypatch.setattr(backbone, "gelu", rough_gelu)
    target, report = tmp_path / "x.onnx", tmp_path / "report.json"
    target.write_bytes(b"before")
    with pytest.raises(UserError, match="was not written: it differs from the live model by more"):
        run(
            export,
            *("--ckpt_path", folder / "tiny.ckpt", "--file_name", target, "--report", report),
            *("--image_size", 32, "--batch_size", 1),
        )
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "x.onnx"]
    rows = json.loads(report.read_text())
    assert not any(row["passed"] for row in rows) and min(row["deviation"] for row in rows) > 1e-3


@pytest.mark.slow
def test_an_export_to_a_full_disk(folder, tmp_path):
    """A limit of the file's size stands for it: the system says the like, and nothing is left."""
    target = tmp_path / "x.onnx"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "export.py",
            *("--ckpt_path", folder / "tiny.ckpt", "--file_name", target),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {target}: ")
    assert not list(tmp_path.iterdir())
