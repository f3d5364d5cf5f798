"""create_detector and list_detectors: names, sizes, initialization and errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.detection.postprocessing import VERSIONS
from mindtwins.detection.variants import detector_metadata, detector_shapes, resolve_detector
from mindtwins.errors import UserError

# Of the authors' code built with MMDetection 2.8.0, without backbone.norm and backbone.head, which
# it has and never uses: RetinaNet's and Mask R-CNN's.
PARAMETERS = {
    "pcpvt_small": (33_842_164, 43_759_600),
    "pcpvt_base": (53_564_404, 63_481_840),
    "pcpvt_large": (70_725_620, 80_643_056),
    "svt_small": (33_782_260, 43_699_696),
    "svt_base": (66_241_396, 75_577_200),
    "svt_large": (109_890_804, 118_644_976),
}
TENSORS = {
    "pcpvt_small": (340, 346),
    "pcpvt_base": (556, 562),
    "pcpvt_large": (790, 796),
    "svt_small": (334, 340),
    "svt_base": (428, 434),
    "svt_large": (428, 434),
}


def test_lists_the_twelve_published():
    expected = [f"{head}_{b}" for head in ("retinanet", "maskrcnn") for b in PARAMETERS]
    assert mindtwins.list_detectors() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", mindtwins.list_detectors())
def test_parameters(name):
    head, backbone = name.split("_", 1)
    column = ("retinanet", "maskrcnn").index(head)
    shapes = detector_shapes(name)
    assert sum(map(math.prod, shapes.values())) == PARAMETERS[backbone][column]
    assert len(shapes) + 4 == TENSORS[backbone][column]


@pytest.mark.parametrize("name", ["retinanet_svt_tiny", "maskrcnn_svt_tiny"])
def test_shapes_are_those_of_what_is_built(name):
    detector = mindtwins.create_detector(name, 7, in_channels=1)
    built = {parameter.name: tuple(parameter.shape) for parameter in detector.get_parameters()}
    assert detector_shapes(name, 7, 1) == built


@pytest.mark.slow
def test_initialization():
    """The authors': RetinaNet's head 0.01, objects rare at first, the pyramid Xavier's."""
    detector = mindtwins.create_detector("retinanet_svt_small")
    values = {p.name: p.asnumpy() for p in detector.get_parameters()}
    np.testing.assert_allclose(values["bbox_head.retina_cls.bias"], -math.log(99), rtol=1e-6)
    for name in ("retina_cls", "retina_reg", "cls_convs.3.conv", "reg_convs.0.conv"):
        assert values[f"bbox_head.{name}.weight"].std() == pytest.approx(0.01, rel=0.02)
    assert not values["bbox_head.retina_reg.bias"].any()
    bound = math.sqrt(6 / (9 * 512 + 9 * 256))
    assert abs(values["neck.fpn_convs.3.conv.weight"]).max() == pytest.approx(bound, rel=1e-3)


@pytest.mark.slow
def test_initialization_of_regions():
    detector = mindtwins.create_detector("maskrcnn_svt_small")
    values = {p.name: p.asnumpy() for p in detector.get_parameters()}
    assert values["rpn_head.rpn_conv.weight"].std() == pytest.approx(0.01, rel=0.02)
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    first = values[f"{box}.shared_fcs.0.weight"]
    assert abs(first).max() == pytest.approx(math.sqrt(6 / (12544 + 1024)), rel=1e-3)
    assert values[f"{box}.fc_cls.weight"].std() == pytest.approx(0.01, rel=0.02)
    assert values[f"{box}.fc_reg.weight"].std() == pytest.approx(0.001, rel=0.02)
    convolution = values[f"{mask}.convs.0.conv.weight"]
    assert convolution.std() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    assert values[f"{mask}.upsample.weight"].std() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    logits = values[f"{mask}.conv_logits.weight"]
    assert logits.std() == pytest.approx(math.sqrt(2 / 80), rel=0.03)
    assert not any(values[f"{box}.{layer}.bias"].any() for layer in ("fc_cls", "shared_fcs.1"))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("maskrcnn_svt_smal", "maskrcnn_svt_small"),
        ("retinanet_pcpvt_larg", "retinanet_pcpvt_large"),
    ],
)
def test_unknown_name_names_the_nearest(wrong, nearest):
    with pytest.raises(UserError, match=f"unknown detector '{wrong}' .did you mean '{nearest}'"):
        resolve_detector(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"window_padding": "reflect"}, "window_padding is 'reflect'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        mindtwins.create_detector("retinanet_svt_tiny", **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 64, 64), "3 channels"), ((1, 3, 31, 64), "at least 32 x 32 pixels, not 31 x 64")],
)
def test_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        mindtwins.create_detector("retinanet_svt_tiny")(Tensor(np.zeros(shape, np.float32)))


@pytest.mark.slow
def test_a_checkpoint_says_what_it_is_of(tmp_path):
    name = "retinanet_svt_tiny"
    detector = mindtwins.create_detector(name, 5)
    metadata = detector_metadata(name, 5, 3) | {
        "dialect": {"window_padding": "mask"},
        "postprocessing": vars(VERSIONS["3.x"]),
    }
    tensors = {p.name: p.asnumpy() for p in detector.get_parameters()}
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, tensors, metadata)
    loaded = mindtwins.create_detector(name, 5, path)
    assert loaded.dialect.window_padding == "mask"
    assert loaded.postprocessing == VERSIONS["3.x"]
    asked = mindtwins.create_detector(name, 5, path, postprocessing=VERSIONS["2.8.0"])
    assert asked.postprocessing == VERSIONS["2.8.0"]
    with pytest.raises(UserError, match=r"num_classes 5 \(asked for: 6\)"):
        mindtwins.create_detector(name, 6, path)
    with pytest.raises(UserError, match=r"variant retinanet_svt_tiny \(asked for: maskrcnn"):
        mindtwins.create_detector("maskrcnn_svt_tiny", 5, path)
    for recorded in ({"foo": "x"}, "pairs", ["top_k"], None):
        stated = replace(load_checkpoint(path), metadata=metadata | {"postprocessing": recorded})
        with pytest.raises(UserError, match=r"x\.ckpt records the postprocessing .* is none"):
            mindtwins.create_detector(name, 5, stated)
    stated = replace(load_checkpoint(path), metadata=metadata | {"postprocessing": {"top_k": []}})
    with pytest.raises(UserError, match=r"top_k is \[\]; it must be one of anchors, pairs"):
        mindtwins.create_detector(name, 5, stated)
    fresh = mindtwins.create_detector(name, 6, path, new_head=True)
    values = {p.name: p.asnumpy() for p in fresh.get_parameters()}
    kept = "bbox_head.cls_convs.0.conv.weight"
    np.testing.assert_array_equal(values[kept], tensors[kept])
    np.testing.assert_allclose(values["bbox_head.retina_cls.bias"], -math.log(99), rtol=1e-6)
