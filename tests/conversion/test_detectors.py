"""Detectors: from an official file to a checkpoint and back."""

import functools
import hashlib

import numpy as np
import pytest
import torch

import mindtwins
from mindtwins.checkpoint import save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.openmmlab import read_test_recipe
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import format_table, verify
from mindtwins.detection import coco
from mindtwins.detection.protocol import as_tested
from mindtwins.detection.variants import detector_shapes
from mindtwins.errors import UserError
from mindtwins.reference.detection import create_detection_reference
from mindtwins.reference.weights import randomize
from mindtwins.tasks import KINDS

NAMES = ("retinanet_svt_tiny", "maskrcnn_svt_tiny")
UNUSED = tuple(f"backbone.{n}.{p}" for n in ("norm", "head") for p in ("weight", "bias"))


@functools.cache
def state(name, classes=12):
    """Random weights as the official code holds them; not to be changed."""
    tensors = dict(randomize(create_detection_reference(name, classes), seed=1).state_dict())
    shapes = ((128,), (128,), (1000, 128), (1000,))
    return tensors | {n: torch.ones(shape) for n, shape in zip(UNUSED, shapes, strict=True)}


@pytest.fixture
def convert(save):
    """Saves a state dict, changed by some tensors (None removes one), and converts it."""

    def convert(state, change=None, meta=None, **options):
        state = {k: v for k, v in (state | (change or {})).items() if v is not None}
        content = {"state_dict": state, "meta": meta or {}, "optimizer": {"state": {}}}
        return from_torch(read_source(save(content)), KINDS, **options)

    return convert


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_holds_its_tensor(convert, name):
    conversion = convert(state(name))
    assert {k: v.shape for k, v in conversion.tensors.items()} == detector_shapes(name, 12)
    assert conversion.metadata["variant"] == name
    for ours, values in conversion.tensors.items():
        theirs = ours.replace(".gamma", ".weight").replace(".beta", ".bias")
        np.testing.assert_array_equal(values, state(name)[theirs].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_what_the_official_code_never_uses_is_left_out_by_name(convert, name):
    account = convert(state(name)).account
    assert {*account.used, *account.ignored} == set(state(name))
    reason = "of the classifier, which detection does not use"
    assert account.ignored == dict.fromkeys(UNUSED, reason)


def test_metadata(save):
    path = save({"state_dict": state("maskrcnn_svt_tiny", 80), "meta": {}}, "mask.pth")
    assert from_torch(read_source(path), KINDS).metadata == {
        "format_version": 1,
        "task": "detection",
        "variant": "maskrcnn_svt_tiny",
        "num_classes": 80,
        "in_channels": 3,
        "classes": list(coco.CLASSES),
        "preprocessing": {
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "resize_scale": [1333, 800],
            "exif_orientation": True,
        },
        "data": {"dataset": "coco"},
        "postprocessing": {
            "top_k": "anchors",
            "suppression": "picture",
            "scaling": "division",
            "empty_boxes": "kept",
        },
        "dialect": {
            "window_padding": "zeros",
            "patch_rounding": "floor",
            "block_epsilon": 1e-6,
            "embed_epsilon": 1e-5,
        },
        "source": {
            "file": "mask.pth",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "layout": "official",
        },
        "widened_from": [],
        "filled": {},
    }


CLASSES = tuple(f"name {number}" for number in range(12))


@pytest.mark.parametrize(
    "meta", [{"CLASSES": CLASSES}, {"dataset_meta": {"classes": list(CLASSES)}}]
)
def test_class_names_of_both_versions(convert, meta):
    assert convert(state(NAMES[0]), meta=meta).metadata["classes"] == list(CLASSES)


def test_half_precision(convert):
    """As the 3x recipes of Mask R-CNN save their weights."""
    half = {n: t.half() for n, t in state("maskrcnn_svt_tiny").items()}
    conversion = convert(half)
    assert conversion.metadata["widened_from"] == ["float16"]
    name = "roi_head.mask_head.upsample.weight"
    np.testing.assert_array_equal(conversion.tensors[name], half[name].float().numpy())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], {"neck.fpn_convs.4.conv.bias": None}, r"lacks neck\.fpn_convs\.4\.conv\.bias$"),
        (
            NAMES[0],
            {"bbox_head.gfl_cls.weight": torch.zeros(3)},
            r"no use for bbox_head\.gfl_cls\.weight$",
        ),
        (
            NAMES[1],
            {"roi_head.bbox_head.fc_cls.bias": torch.zeros(12)},
            r"fc_cls\.bias \(12,\) instead of \(13,\)$",
        ),
        (NAMES[1], {"rpn_head.rpn_reg.bias": torch.full((12,), torch.nan)}, r"NaN .*rpn_reg\.bias"),
    ],
)
def test_names_the_tensor_that_does_not_fit(convert, name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(state(name), change)
    assert f"source.pth does not fit {name}" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_dropped_classifiers_are_zeros(convert, name):
    with pytest.raises(UserError, match="head of 12 classes, not 5: pass --drop_head"):
        convert(state(name), num_classes=5)
    conversion = convert(state(name), num_classes=5, drop_head=True)
    assert {k: v.shape for k, v in conversion.tensors.items()} == detector_shapes(name, 5)
    layers = (
        {"bbox_head.retina_cls"}
        if name.startswith("retinanet")
        else {
            "roi_head.bbox_head.fc_cls",
            "roi_head.bbox_head.fc_reg",
            "roi_head.mask_head.conv_logits",
        }
    )
    assert {filled.rpartition(".")[0] for filled in conversion.metadata["filled"]} == layers


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(save, tmp_path, pt2ms, ms2pt, name):
    path = save({"state_dict": state(name), "meta": {"CLASSES": CLASSES}})
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt")
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"]["CLASSES"] == CLASSES
    expected = {n: t for n, t in state(name).items() if n not in UNUSED}
    assert back["state_dict"].keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(back["state_dict"][key].view(torch.int32), tensor.view(torch.int32)), key


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_verification(save, tmp_path, name):
    source = read_source(save({"state_dict": state(name), "meta": {}}))
    conversion = from_torch(source, KINDS)
    save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
    rows = verify(tmp_path / "x.ckpt", source, KINDS, conversion)
    assert all(row.passed for row in rows), format_table(rows)
    stages = {row.stage for row in rows}
    assert stages >= {"stage4", "neck5", "box5"}
    assert ("masks" in stages) == name.startswith("maskrcnn")


@pytest.fixture
def checkpoint(convert, tmp_path):
    conversion = convert(state(NAMES[0]), meta={"CLASSES": CLASSES})
    save_checkpoint(tmp_path / "det.ckpt", conversion.tensors, conversion.metadata)
    return tmp_path / "det.ckpt"


def test_load_model(checkpoint):
    model = mindtwins.load_model(checkpoint)
    assert model.classes == CLASSES and model.num_classes == 12
    assert model.metadata["variant"] == NAMES[0]
    assert model.dialect.window_padding == "zeros"
    image, geometry = model.preprocessing(np.zeros((427, 640, 3), np.uint8))
    assert image.shape == (3, 800, 1216) and (geometry.height, geometry.width) == (800, 1199)


def test_a_folder_keeps_all_that_it_takes(checkpoint, tmp_path):
    mindtwins.save_pretrained(checkpoint, tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card and "model.predict" in card
    metadata = mindtwins.load_model(tmp_path / "shared").metadata
    assert metadata["postprocessing"]["top_k"] == "anchors"


OFFICIAL_CONFIG = """
model = dict(
    type='RetinaNet',
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
             to_rgb=True),
        dict(type='Pad', size_divisor=32)])]
data = dict(test=dict(pipeline=test_pipeline))
"""
LATER_CONFIG = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[51, 51, 51], bgr_to_rgb=True),
    test_cfg=dict(rpn=dict(nms_pre=2000, max_per_img=1000, nms=dict(iou_threshold=0.7)),
                  rcnn=dict(score_thr=0.001, max_per_img=100)))
test_pipeline = [dict(type='Resize', scale=(640, 480), keep_ratio=True)]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


def test_the_authors_configuration_is_what_is_done(convert):
    conversion = convert(state(NAMES[0]), meta={"config": OFFICIAL_CONFIG})
    assert conversion.metadata["preprocessing"]["resize_scale"] == [1333, 800]
    assert not [note for note in conversion.notes if "not done here" in note]


def test_what_another_configuration_states_is_taken_or_told(convert):
    conversion = convert(state(NAMES[1]), meta={"cfg": LATER_CONFIG})
    preprocessing = conversion.metadata["preprocessing"]
    assert preprocessing["resize_scale"] == [640, 480]
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5] * 3, [0.2] * 3)
    told = "\n".join(note for note in conversion.notes if "not done here" in note)
    for clause in (
        "test_cfg has rcnn.score_thr 0.001, not 0.05",
        "test_cfg has rpn.nms_pre 2000, not 1000",
        "boxes are chosen as in MMDetection 3.x (create_detector's postprocessing)",
    ):
        assert clause in told


def test_all_of_a_test_protocol_that_differs_is_told():
    """Each statement by itself, in place of the published one or beside it."""
    published = (
        "model = dict(test_cfg=dict(rpn=dict(nms_across_levels=False, nms_pre=1000, nms_post=1000,"
        " max_num=1000, nms_thr=0.7, min_bbox_size=0), rcnn=dict(score_thr=0.05,"
        " nms=dict(type='nms', iou_thr=0.5), max_per_img=100, mask_thr_binary=0.5)))\n"
        "test_pipeline = [dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),"
        " dict(type='Pad', size_divisor=32)]"
    )
    options, unlike = as_tested(read_test_recipe(published))
    assert (options, unlike) == ({"resize_scale": [1333, 800]}, [])
    for stated, other, clause in (
        ("type='nms'", "type='soft_nms'", "test_cfg has rcnn.nms.type soft_nms, not nms"),
        ("iou_thr=0.5", "iou_thr=0.6", "test_cfg has rcnn.nms.iou_thr 0.6, not 0.5"),
        ("min_bbox_size=0", "min_bbox_size=4", "test_cfg has rpn.min_bbox_size 4, not 0"),
        ("nms_thr=0.7", "nms_thr=0.8", "test_cfg has rpn.nms_thr 0.8, not 0.7"),
        ("nms_post=1000", "nms_post=300", "test_cfg has rpn.nms_post 300, not 1000"),
        ("max_num=1000", "max_num=300", "test_cfg has rpn.max_num 300, not 1000"),
        ("levels=False", "levels=True", "test_cfg has rpn.nms_across_levels True, not False"),
        ("(rpn=dict", "(min_bbox_size=4, rpn=dict", "test_cfg has min_bbox_size 4, not 0"),
        ("keep_ratio=True", "keep_ratio=False", "pictures are resized without keeping their as"),
        (
            "img_scale=(1333, 800), keep_ratio=True",
            "scale=(1333, 800)",
            "pictures are resized without keeping their aspect",
        ),
        ("divisor=32", "divisor=128", "pictures are padded to multiples of 128 pixels, not of 32"),
    ):
        assert stated in published
        options, unlike = as_tested(read_test_recipe(published.replace(stated, other)))
        assert options == {"resize_scale": [1333, 800]}
        assert len(unlike) == 1 and unlike[0].startswith(clause)
