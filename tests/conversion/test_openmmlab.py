"""The configuration beside OpenMMLab's weights: how the model is to be tested."""

from __future__ import annotations

import pytest

from mindtwins.checkpoint import load_checkpoint
from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import randomize

# As mmcv's and MMEngine's `pretty_text` writes them, in versions 0.x and 1.x of the project.
OLD = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
img_norm_cfg = dict(mean=[127.5, 102.0, 51.0], std=[51.0, 51.0, 102.0], to_rgb=True)
model = dict(
    type='EncoderDecoder',
    decode_head=dict(type='FPNHead', num_classes=11, norm_cfg=norm_cfg, align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(96, 96), stride=(64, 64)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(256, 128), flip=False, img_ratios=[0.5, 1.0],
         transforms=[
             dict(type='Resize', keep_ratio=True),
             dict(type='RandomFlip'),
             dict(type='Normalize', **img_norm_cfg),
             dict(type='Collect', keys=['img'])])
]
data = dict(test=dict(type='CustomDataset', pipeline=[
    dict(type='MultiScaleFlipAug', img_scale=(256, 128), flip=False, img_ratios=[0.5, 1.0],
         transforms=[
             dict(type='Resize', keep_ratio=True),
             dict(type='Normalize', mean=[127.5, 102.0, 51.0], std=[51.0, 51.0, 102.0],
                  to_rgb=True)])]))
optimizer = dict(type='AdamW', lr=0.0001)
"""
NEW = """
crop_size = (512, 512)
data_preprocessor = dict(type='SegDataPreProcessor', mean=[127.5, 102.0, 51.0],
                         std=[51.0, 51.0, 102.0], bgr_to_rgb=True)
model = dict(data_preprocessor=dict(mean=[127.5, 102.0, 51.0], std=[51.0, 51.0, 102.0],
                                    bgr_to_rgb=True),
             decode_head=dict(type='FPNHead', align_corners=False),
             test_cfg=dict(mode='whole'))
test_dataloader = dict(batch_size=1, dataset=dict(type='BaseSegDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 160), keep_ratio=True),
    dict(type='PackSegInputs')]))
"""
USUAL = {"mean": [0.5, 0.4, 0.2], "std": [0.2, 0.2, 0.4]}


@pytest.fixture(scope="module")
def weights():
    return randomize(create_segmentation_reference("fpn_svt_tiny", num_classes=11)).state_dict()


@pytest.fixture
def converted(weights, save, tmp_path, pt2ms, capsys):
    """Preprocessing of the converted file, and what was printed."""

    def convert(meta: dict, state=weights) -> tuple[dict, str]:
        source = save({"state_dict": state, "meta": meta})
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
        return load_checkpoint(tmp_path / "x.ckpt").stated["preprocessing"], capsys.readouterr().out

    return convert


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (
            {"config": OLD},
            {
                **USUAL,
                **{"test_mode": "slide", "test_crop": 96, "test_stride": 64},
                **{"resize_scale": [256, 128], "test_ratios": [0.5, 1.0], "test_flip": False},
            },
        ),
        ({"cfg": NEW}, {**USUAL, "test_mode": "whole", "resize_scale": [320, 160]}),
    ],
    ids=["0.x", "1.x"],
)
def test_the_protocol_is_the_file_s_own(converted, meta, expected):
    preprocessing, output = converted(meta)
    assert {name: preprocessing[name] for name in expected} == expected
    assert "tested as the file's own recipe says: mean 0.5,0.4,0.2, std" in output
    assert "not done here" not in output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((", bgr_to_rgb=True", ""), "the channels stay in the order blue, green, red"),
        ((", keep_ratio=True", ""), "without keeping their aspect"),
        (("dict(type='Resize', scale=(320, 160), keep_ratio=True),", ""), "keep their size"),
        (("type='Resize', scale", "type='ResizeShortestEdge', scale"), "go through ResizeShort"),
    ],
)
def test_what_1_x_leaves_open_is_its_own_default(converted, change, told):
    text = NEW.replace("\n                                    bgr", " bgr").replace(*change)
    text = text.replace(*change)
    _, output = converted({"cfg": text})
    assert told in output


def test_a_list_of_one_scale_is_that(converted):
    preprocessing, _ = converted({"config": OLD.replace("(256, 128)", "[(128, 256)]")})
    assert preprocessing["resize_scale"] == [256, 128]


def test_without_one_it_is_as_published(converted):
    preprocessing, output = converted({})
    assert preprocessing["resize_scale"] == [2048, 512] and preprocessing["test_mode"] == "whole"
    assert "own recipe" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("align_corners=False", "align_corners=True"), "resizes with align_corners"),
        (("crop_size=(96, 96)", "crop_size=(96, 64)"), "windows have the crop_size [96, 64]"),
        (("stride=(64, 64)", "stride=(128, 128)"), "the stride [128, 128]"),
        (("img_scale=(256, 128)", "img_scale=(256, -1)"), "resized to [256, -1]"),
        (("keep_ratio=True", "keep_ratio=False"), "without keeping their aspect"),
        (("to_rgb=True", "to_rgb=False"), "the channels stay in the order blue, green, red"),
        (("img_scale=(256, 128)", "img_scale=None"), "pictures keep their size"),
        (("img_scale=(256, 128)", "img_scale=[(256, 128), (512, 256)]"), "resized to [[256, 128]"),
        (("img_ratios=[0.5, 1.0]", "img_ratios='all'"), "seen at the ratios ['all']"),
        (("mode='slide'", "mode='tiles'"), "test_cfg has the mode tiles"),
        (("mean=[127.5, 102.0, 51.0]", "mean='imagenet'"), "normalized with mean imagenet"),
        (("std=[51.0, 51.0, 102.0]", "std=[51.0, 0, 102.0]"), "normalized with std [51.0, 0"),
    ],
)
def test_what_is_not_done_here_is_told(converted, change, told):
    preprocessing, output = converted({"config": OLD.replace(*change)})
    assert preprocessing["std"] in (USUAL["std"], [0.229, 0.224, 0.225])
    (line,) = [line for line in output.splitlines() if line.startswith("not done here")]
    assert told in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "x = {(1, 2): 3, 'a': 1e999}",
        "model = dict(",
        "import os\nos.abort()\nx = os.abort()",
        "model = [*range(9)]",
        "(" * 999,
    ],
)
def test_nothing_of_it_runs_and_nonsense_says_nothing(converted, text):
    preprocessing, output = converted({"config": text})
    assert preprocessing["resize_scale"] == [2048, 512]
    assert "own recipe" not in output


def test_a_classifier_s(converted):
    text = """
data_preprocessor = dict(mean=[127.5, 102.0, 51.0], std=[51.0, 51.0, 102.0], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=192), dict(type='PackInputs')]
"""
    official = randomize(create_reference("svt_tiny", num_classes=10)).state_dict()
    preprocessing, _ = converted({"cfg": text}, official)
    assert {**preprocessing, **USUAL, "image_size": 192, "crop_pct": 0.75} == preprocessing
    for change in (
        ("scale=256", "scale=[None]"),
        ("scale=256", "scale=(256, 256)"),
        ("crop_size=192", "crop_size=(192, 160)"),
        ("edge='short'", "edge='long'"),
    ):
        preprocessing, output = converted({"cfg": text.replace(*change)}, official)
        assert "not done here, though the file's recipe says so: pictures are resized to" in output
        assert preprocessing["image_size"] == 224
    _, output = converted({"cfg": text.replace("'bicubic'", "'bilinear'")}, official)
    assert (
        "not done here, though the file's recipe says so: pictures are resized bilinear" in output
    )
