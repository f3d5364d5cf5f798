"""ONNX files of classifiers and backbones: what they compute is PyTorch's, at any size."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from parity import photographs

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.errors import UserError
from mindtwins.export.onnx_model import OnnxModel

# Far below what a wrong epsilon or a tanh GELU makes of amplified weights (6e-4 and more).
TOLERANCE = 1e-5
SHAPES = ((1, 224, 224), (2, 200, 260), (3, 97, 131), (1, 32, 32))


def deviations(path: Path, reference: torch.nn.Module, shapes=SHAPES) -> list[float]:
    """Of each output at each size, in standard deviations; by onnxruntime alone."""
    session = onnxruntime.InferenceSession(path)
    found = []
    for batch, height, width in shapes:
        x = photographs(height, width, batch)
        with torch.no_grad():
            expected = reference(torch.from_numpy(x))
        expected = expected if isinstance(expected, list | tuple) else [expected]
        for ours, theirs in zip(session.run(None, {"images": x}), expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            found.append(float(np.abs(ours - theirs.numpy()).max() / theirs.std()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("amplified", [False, True])
@pytest.mark.parametrize(
    "dialect",
    [
        {"window_padding": "zeros", "patch_rounding": "floor"},
        {"window_padding": "mask", "patch_rounding": "ceil"},
        {"window_padding": "zeros", "block_epsilon": 1e-3, "embed_epsilon": 1e-2},
    ],
    ids=lambda dialect: "-".join(map(str, dialect.values())),
)
def test_logits_are_pytorch_s_at_any_size(dialect, amplified, tmp_path, save_classifier, write):
    reference = save_classifier(tmp_path / "x.ckpt", amplified=amplified, **dialect)
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    # 448 x 512 pads windows on one axis only: the quirk of the mask.
    assert max(deviations(tmp_path / "x.onnx", reference, (*SHAPES, (1, 448, 512)))) < TOLERANCE


def test_windows_without_padding(tmp_path, save_classifier, write):
    reference = save_classifier(tmp_path / "x.ckpt", window_padding="none")
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    assert max(deviations(tmp_path / "x.onnx", reference, ((2, 224, 448),))) < TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"images": photographs(200, 260)})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name.endswith("_small") else pytest.mark.endurance
        )
        for name in mindtwins.list_models()
    ],
)
def test_every_model(name, tmp_path, save_classifier, write):
    reference = save_classifier(tmp_path / "x.ckpt", name)
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    assert max(deviations(tmp_path / "x.onnx", reference, SHAPES[:2])) < TOLERANCE


@pytest.mark.slow
def test_features(tiny, tmp_path, write):
    checkpoint, classifier = tiny
    target = tmp_path / "maps.onnx"
    write(checkpoint, target, features_only=True)

    class Stages(torch.nn.Module):
        def forward(self, x):
            return [output for name, output in classifier.stages(x).items() if name != "logits"]

    assert max(deviations(target, Stages())) < TOLERANCE
    names = [output.name for output in onnxruntime.InferenceSession(target).get_outputs()]
    assert names == ["stage1", "stage2", "stage3", "stage4"]
    arrays = {array.name for array in onnx.load(target).graph.initializer}
    assert not any(name.startswith(("head.", "norm.")) for name in arrays)


def test_fixed_sizes(tiny, tmp_path, write):
    """As converters for devices want them: no axis is open, and no node asks for one."""
    checkpoint, reference = tiny
    target = tmp_path / "fixed.onnx"
    write(checkpoint, target, image_size=96, batch_size=2)
    assert max(deviations(target, reference, ((2, 96, 96),))) < TOLERANCE
    assert OnnxModel(target).metadata["preprocessing"]["image_size"] == 96
    model = onnx.load(target)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        assert all(axis.dim_value > 0 for axis in value.type.tensor_type.shape.dim), value.name
    assert not {"Shape", "Range"} & {node.op_type for node in model.graph.node}


def test_the_file_keeps_to_the_rules(tiny, tiny_onnx):
    model = onnx.load(tiny_onnx)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    for node in model.graph.node:
        if node.op_type == "Conv":
            stated = {attribute.name for attribute in node.attribute}
            assert stated == {"kernel_shape", "strides", "pads", "dilations", "group"}
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 10]]
    tensors = load_checkpoint(tiny[0]).tensors
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    assert {name for name in arrays if not name.startswith("constant_")} == set(tensors)
    for name, tensor in tensors.items():
        stored = arrays[name].T if tensor.ndim == 2 else arrays[name]  # linear weights (in, out)
        np.testing.assert_array_equal(stored, tensor)


def test_what_the_file_says_of_itself(tiny, tiny_onnx):
    texts = {entry.key: entry.value for entry in onnx.load(tiny_onnx).metadata_props}
    seal = texts.pop("mindtwins.export.sha256")
    content = tiny_onnx.read_bytes()
    assert content[-64:].decode() == seal == hashlib.sha256(content[:-64]).hexdigest()
    said = {key: json.loads(text) for key, text in texts.items()}
    assert said["task"] == "classification" and said["variant"] == "svt_tiny"
    assert said["num_classes"] == 10 and said["dialect"]["window_padding"] == "zeros"
    assert said["preprocessing"]["crop_pct"] == 0.875
    export = said["export"]
    assert export["mindtwins"] == mindtwins.__version__
    assert export["checkpoint"] == {
        "file": "tiny.ckpt",
        "sha256": hashlib.sha256(tiny[0].read_bytes()).hexdigest(),
    }
    assert export["input"]["shape"] == ["batch", 3, "height", "width"]
    assert str(tiny[0].parent) not in content.decode("latin1")


def test_the_same_checkpoint_gives_the_same_bytes(tiny, tiny_onnx, tmp_path, write):
    write(tiny[0], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny_onnx.read_bytes()


def test_other_channels(tmp_path, save_classifier, write):
    save_classifier(tmp_path / "x.ckpt", channels=4)
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    (image,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").get_inputs()
    assert image.shape[1] == 4
    with pytest.raises(UserError, match="model of 4 input channels, and --preprocess is for RGB"):
        write(tmp_path / "x.ckpt", tmp_path / "x.onnx", preprocess=True)


def test_a_classifier_without_a_head_gives_pooled_features(tiny, tmp_path, write):
    checkpoint = load_checkpoint(tiny[0])
    headless = {n: array for n, array in checkpoint.tensors.items() if not n.startswith("head.")}
    save_checkpoint(tmp_path / "x.ckpt", headless, checkpoint.stated | {"num_classes": 0})
    write(tmp_path / "x.ckpt", tmp_path / "x.onnx")
    x = photographs(64, 96, 2)
    with torch.no_grad():
        stage = tiny[1].stages(torch.from_numpy(x))["stage4"].permute(0, 2, 3, 1)
        expected = tiny[1].norm(stage).mean((1, 2)).numpy()
    model = OnnxModel(tmp_path / "x.onnx")
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    assert model.metadata["export"]["outputs"] == ["features"]
