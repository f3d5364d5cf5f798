"""A detector's backbone from a classifier's checkpoint."""

import numpy as np

import mindtwins
from mindtwins.checkpoint import save_checkpoint
from mindtwins.training.pretrained_backbone import load_backbone


def test_from_a_classifier(tmp_path):
    classifier = mindtwins.create_model("svt_tiny", 10)
    tensors = {p.name: p.asnumpy() for p in classifier.get_parameters()}
    metadata = {"task": "classification", "variant": "svt_tiny", "num_classes": 10}
    save_checkpoint(tmp_path / "x.ckpt", tensors, metadata)
    detector = mindtwins.create_detector("maskrcnn_svt_tiny", 3)
    report = load_backbone(detector, tmp_path / "x.ckpt")
    assert sorted(report.left_out) == ["head.bias", "head.weight", "norm.beta", "norm.gamma"]
    values = {p.name: p.asnumpy() for p in detector.get_parameters()}
    assert len(report.used) == len(tensors) - 4
    for name in report.used:
        np.testing.assert_array_equal(values[f"backbone.{name}"], tensors[name])
    modules = {name.split(".")[0] for name in report.fresh if "norm_list" not in name}
    assert modules == {"neck", "rpn_head", "roi_head"}
