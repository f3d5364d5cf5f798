"""Exported files as functions of arrays, and which files are refused."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from parity import photographs

import mindtwins
from mindtwins.errors import UserError
from mindtwins.export.onnx_model import OnnxModel


def test_the_model_of_a_file(tiny, tiny_onnx):
    model = OnnxModel(tiny_onnx)
    x = photographs(97, 131, 2)
    with torch.no_grad():
        expected = tiny[1](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    assert model.classes is None and model.metadata["variant"] == "svt_tiny"


def test_its_preprocessing_is_the_checkpoint_s(tiny, tiny_onnx, photographs):
    model, live = mindtwins.load_onnx(tiny_onnx), mindtwins.load_model(tiny[0])
    np.testing.assert_array_equal(
        model.preprocessing(photographs[0]), live.preprocessing(photographs[0])
    )
    assert model.classes == live.classes


def test_batches_of_a_file_that_takes_one_size(tiny, tmp_path, write):
    target = tmp_path / "two.onnx"
    write(tiny[0], target, batch_size=2)
    x = photographs(64, 64, 5)
    with torch.no_grad():
        expected = tiny[1](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(OnnxModel(target)(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 64, 64)), "takes float32 images of shape .* not float64"),
        (np.zeros((1, 4, 64, 64), np.float32), "takes float32 images of shape .* not float32"),
        (np.zeros((3, 64, 64), np.float32), "takes float32 images of shape"),
        (np.zeros((1, 3, 64, 31), np.float32), "at least 32 pixels on each side, not 64 x 31"),
    ],
)
def test_images_that_it_does_not_take(images, message, tiny_onnx):
    with pytest.raises(UserError, match=message):
        OnnxModel(tiny_onnx)(images)


def test_a_size_whose_windows_are_not_whole(tmp_path, save_classifier, write):
    save_classifier(tmp_path / "x.ckpt", window_padding="none")
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"cannot compute images of shape \(1, 3, 200, 260\)"):
        OnnxModel(tmp_path / "x.onnx")(photographs(200, 260))


def others_onnx() -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[: len(content) // 2], "was not exported by MindTwins"),
        (lambda content: content[:-1], "is damaged, was cut short"),
        (lambda content: flipped(content, len(content) // 2), "is damaged, was cut short"),
        (
            lambda content: flipped(content, len(content) - 70),
            "was not exported by MindTwins, or was cut",
        ),
        (
            lambda content: others_onnx(),
            "was not exported by MindTwins.* .it is an ONNX model.: such files",
        ),
        (lambda content: b"\x89HDF\r\n\x1a\n" + content[:99], "it is a Keras or HDF5 file"),
        (lambda content: changed(content), "was changed by another program"),
    ],
)
def test_files_that_are_refused(change, message, tiny_onnx, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(change(tiny_onnx.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        OnnxModel(path)
    assert "\n" not in str(caught.value)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def changed(content: bytes) -> bytes:
    """As a tool that renames a node writes it."""
    model = onnx.load_model_from_string(content)
    model.graph.name = "optimized"
    return model.SerializeToString()


def test_without_onnxruntime(tiny_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'pip install "onnxruntime>=1\.20" "numpy<2"'):
        OnnxModel(tiny_onnx)
