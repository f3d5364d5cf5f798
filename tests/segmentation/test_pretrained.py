import numpy as np
import pytest
import safetensors.torch
import torch

import mindtwins
from mindtwins.checkpoint import save_checkpoint
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.tensor_files import write_ckpt
from mindtwins.training.pretrained_backbone import load_backbone


@pytest.fixture
def classifier(tmp_path):
    """Saves a classifier and returns its tensors and the path."""

    def classifier(name="svt_tiny", num_classes=5, **metadata):
        model = mindtwins.create_model(name, num_classes)
        tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
        metadata = {"variant": name, "num_classes": num_classes, "in_channels": 3} | metadata
        save_checkpoint(tmp_path / "x.ckpt", tensors, metadata)
        return tensors, tmp_path / "x.ckpt"

    return classifier


def values(segmentor):
    return {p.name: p.asnumpy().copy() for p in segmentor.get_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 0])
@pytest.mark.parametrize("name", ["fpn_svt_tiny", "upernet_svt_tiny"])
def test_every_tensor_is_accounted_for(classifier, name, classes):
    tensors, path = classifier(num_classes=classes)
    segmentor = mindtwins.create_segmentor(name, 3)
    before = values(segmentor)
    report = load_backbone(segmentor, path)
    after = values(segmentor)
    assert {*report.used, *report.left_out} == tensors.keys()
    assert set(report.left_out) == {n for n in tensors if n.startswith(("norm.", "head."))}
    assert {*report.fresh, *(f"backbone.{n}" for n in report.used)} == after.keys()
    for name in report.used:
        np.testing.assert_array_equal(after[f"backbone.{name}"], tensors[name])
    for name in report.fresh:
        np.testing.assert_array_equal(after[name], before[name])
        assert name.startswith(("backbone.norm_list.", "neck.", "decode_head.", "auxiliary_head."))


def test_the_report_in_words(classifier):
    tensors, path = classifier()
    text = str(load_backbone(mindtwins.create_segmentor("fpn_svt_tiny", 3), path))
    assert text.splitlines() == [
        f"backbone from {path}: {len(tensors) - 4} tensors used",
        "left out: norm.gamma, norm.beta (the classifier's norm, which is not used here)",
        "left out: head.weight, head.bias (the classifier's head, which is not used here)",
        "initialized anew: backbone.norm_list, neck, decode_head (61 tensors)",
    ]


def test_the_dialect_stays_that_of_the_segmentor(classifier):
    _, path = classifier(dialect={"block_epsilon": 1e-6})
    segmentor = mindtwins.create_segmentor("fpn_svt_tiny", 3)
    load_backbone(segmentor, path)
    assert segmentor.dialect.block_epsilon == 1e-5


@pytest.mark.slow
def test_another_backbone(classifier):
    _, path = classifier()
    with pytest.raises(UserError, match="checkpoint of svt_tiny, whose backbone is not pcpvt_sm"):
        load_backbone(mindtwins.create_segmentor("fpn_pcpvt_small", 3), path)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["fpn_svt_tiny", "upernet_svt_tiny"])
@pytest.mark.parametrize("metadata", [None, {"task": "segmentation"}])
def test_another_segmentor(tmp_path, other, metadata):
    """With the norms after its stages."""
    source = values(mindtwins.create_segmentor(other, 5))
    source = {name: array + 1 for name, array in source.items()}
    path = tmp_path / "x.ckpt"
    if metadata is None:
        write_ckpt(path, source)
    else:
        save_checkpoint(path, source, metadata | {"variant": other})
    segmentor = mindtwins.create_segmentor("fpn_svt_tiny", 3)
    before = values(segmentor)
    report = load_backbone(segmentor, path)
    after = values(segmentor)
    assert "backbone.norm_list.0.gamma" in report.used
    assert {*report.used, *report.left_out} == source.keys()
    for name in after:
        expected = source if name.startswith("backbone.") else before
        np.testing.assert_array_equal(after[name], expected[name])
    assert f"left out: {next(n for n in source if n in report.left_out)}" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["classifier", "segmentor"])
def test_a_training_steps_file(tmp_path, model):
    if model == "classifier":
        cell, prefix = mindtwins.create_model("svt_tiny", 5), "backbone."
    else:
        cell, prefix = mindtwins.create_segmentor("upernet_svt_tiny", 5), ""
    weights = {f"{p.name}": p.asnumpy() + 1 for p in cell.get_parameters()}
    state = {
        f"{part}.{name}": a * 0 for name, a in weights.items() for part in ("ema", "optimizer")
    }
    metadata = {"variant": "svt_tiny" if prefix else "upernet_svt_tiny", "recipe": {}}
    save_checkpoint(tmp_path / "step_00000002.ckpt", weights | state, metadata)
    segmentor = mindtwins.create_segmentor("fpn_svt_tiny", 3)
    report = load_backbone(segmentor, tmp_path / "step_00000002.ckpt")
    after = values(segmentor)
    for name in report.used:
        np.testing.assert_array_equal(after[f"{prefix}{name}"], weights[name])
    assert {report.left_out[name] for name in state} == {"the state of a training, not weights"}


@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "x.safetensors"])
def test_pytorchs_weights_are_sent_to_the_conversion(tmp_path, name):
    state = create_reference("svt_tiny", 5).state_dict()
    write = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    write(state, tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} holds PyTorch's weights: .*mindtwins convert "):
        load_backbone(mindtwins.create_segmentor("fpn_svt_tiny", 3), tmp_path / name)


def test_a_tensor_that_does_not_fit(tmp_path, classifier):
    tensors, path = classifier()
    del tensors["blocks.0.0.norm1.gamma"]
    save_checkpoint(path, tensors, {})
    segmentor = mindtwins.create_segmentor("fpn_svt_tiny", 3)
    with pytest.raises(UserError, match=r"it lacks backbone\.blocks\.0\.0\.norm1\.gamma$"):
        load_backbone(segmentor, path)
    save_checkpoint(path, tensors | {"surplus": np.ones(3, np.float32)}, {})
    with pytest.raises(UserError, match=r"it has no use for backbone\.surplus$"):
        load_backbone(segmentor, path)
