"""Recipes of less precision: what is measured is told and stored, and no exactness is claimed."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch

from mindtwins.data.photographs import normalized_crops
from mindtwins.errors import UserError
from mindtwins.export import precision
from mindtwins.export.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def tiny_int8(tmp_path_factory, tiny, run_export):
    path = tmp_path_factory.mktemp("exported") / "int8.onnx"
    run_export("--ckpt_path", tiny[0], "--file_name", path, "--precision", "int8")
    return path


@pytest.mark.slow
def test_int8_is_as_far_off_as_it_says(tiny, tiny_int8):
    x = normalized_crops(precision.CROPS, 3, 224, 224)
    with torch.no_grad():
        expected = tiny[1](torch.from_numpy(x)).numpy()
    model = OnnxModel(tiny_int8)
    difference = (model(x) - expected) / expected.std()
    said = model.metadata["export"]["precision"]
    assert said["name"] == "int8" and "16 crops" in said["compared_on"]
    measured = said["outputs"]["logits"]
    assert measured["max_abs_over_std"] == pytest.approx(np.abs(difference).max(), rel=0.02)
    assert measured["rms_over_std"] == pytest.approx(np.sqrt((difference**2).mean()), rel=0.02)
    assert measured["same_class"] == np.mean(model(x).argmax(1) == expected.argmax(1))
    assert 1e-3 < measured["max_abs_over_std"] < 0.5  # integers, and not nonsense


def test_the_linear_layers_are_integers(tiny_int8, tiny_onnx):
    model = onnx.load(tiny_int8)
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert "MatMulInteger" in kinds
    assert tiny_int8.stat().st_size < 0.6 * tiny_onnx.stat().st_size


@pytest.mark.slow
def test_values_that_are_not_finite(tiny, tmp_path, run_export, monkeypatch):
    monkeypatch.setattr(OnnxModel, "run", lambda self, images: [np.full((16, 10), np.nan)])
    words = ("--ckpt_path", tiny[0], "--file_name", tmp_path / "x.onnx", "--image_size", 32)
    with pytest.raises(UserError, match="gives values that are not finite"):
        run_export(*words, "--precision", "int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bf16_is_a_float32_file_for_openvino(tiny, tmp_path, run_export, monkeypatch):
    words = ("--ckpt_path", tiny[0], "--file_name", tmp_path / "x.onnx", "--image_size", 32)
    words = (*words, "--precision", "bf16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="bf16 is for OpenVINO, which is not installed"):
        run_export(*words)
    monkeypatch.undo()
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UserError, match="this processor does not compute in bfloat16"):
            run_export(*words)
        return
    run_export(*words)
    said = OnnxModel(tmp_path / "x.onnx").metadata["export"]["precision"]
    assert said["name"] == "bf16" and said["how"].startswith("a float32 file")
    assert 1e-4 < said["outputs"]["logits"]["max_abs_over_std"] < 0.3


def test_precision_is_for_onnx(tiny, tmp_path, run_export):
    with pytest.raises(UserError, match=r"--precision int8 is for \.onnx"):
        run_export(
            *("--ckpt_path", tiny[0], "--file_name", tmp_path / "x.mindir"), "--precision", "int8"
        )
