"""Segmentors: from each project's file to a checkpoint and back."""

import functools
import hashlib
import re

import numpy as np
import pytest
import torch

import mindtwins
from mindtwins.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mindtwins.conversion.converter import choose_layout, from_torch, to_torch
from mindtwins.conversion.kinds import find_layout
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import format_table, verify
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import (
    create_backbone_reference,
    create_segmentation_reference,
)
from mindtwins.reference.weights import randomize
from mindtwins.segmentation.variants import segmentor_shapes
from mindtwins.tasks import KINDS

ATTENTION = "backbone.layers.0.0.attn"
GLOBAL = "backbone.layers.1.1.attn.attn"


@functools.cache
def state(layout, head="upernet", **widths):
    """A random svt_tiny with 12 classes as the project's code holds it; not to be changed."""
    reference = create_segmentation_reference(
        f"{head}_svt_tiny", 12, official_names=layout == "official", **widths
    )
    tensors = dict(randomize(reference, seed=1).state_dict())
    if layout == "official":
        tensors |= {"backbone.norm.weight": torch.ones(128), "backbone.head.bias": torch.ones(9)}
    if layout == "sssegmentation":
        return {old: tensors[new] for new, old in sssegmentation_names(tensors).items()}
    return tensors


def sssegmentation_names(names):
    """MMSegmentation's names to sssegmentation's, by search and replace."""
    found = {}
    for name in names:
        new = re.sub("^backbone", "backbone_net", name)
        new = re.sub(r"^decode_head\.psp_modules\.(\d)\.1\.conv", r"ppm_net.branches.\1.1", new)
        new = re.sub(r"^decode_head\.psp_modules\.(\d)\.1\.bn", r"ppm_net.branches.\1.2", new)
        new = new.replace("decode_head.bottleneck", "ppm_net.bottleneck")
        new = new.replace("decode_head.fpn_bottleneck", "decoder")
        new = new.replace("decode_head.conv_seg", "decoder.4")
        new = new.replace("auxiliary_head.convs.0", "auxiliary_decoder")
        new = new.replace("auxiliary_head.conv_seg", "auxiliary_decoder.4")
        new = new.removeprefix("decode_head.")
        found[name] = new.replace(".conv.", ".0.").replace(".bn.", ".1.")
    return found


@pytest.fixture
def convert(save):
    """Saves a state dict, changed by some tensors (None removes one), and converts it."""

    def convert(state, change=None, container="state_dict", **options):
        state = {k: v for k, v in (state | (change or {})).items() if v is not None}
        return from_torch(read_source(save({container: state, "meta": {}})), KINDS, **options)

    return convert


@pytest.mark.parametrize("head", ["fpn", "upernet"])
def test_every_parameter_holds_its_tensor(convert, head):
    source = state("mmsegmentation", head)
    conversion = convert(source)
    tensors = conversion.tensors
    assert {k: v.shape for k, v in tensors.items()} == segmentor_shapes(f"{head}_svt_tiny", 12)
    # Same width throughout a block, so these are the examples that a shape does not tell apart.
    for ours, theirs in {
        "backbone.blocks.0.0.attn.proj.bias": f"{ATTENTION}.proj.bias",
        "backbone.blocks.1.1.attn.proj.weight": f"{GLOBAL}.out_proj.weight",
        "backbone.blocks.1.1.norm1.gamma": "backbone.layers.1.1.norm1.weight",
        "backbone.blocks.1.1.norm2.gamma": "backbone.layers.1.1.norm2.weight",
        "backbone.norm_list.0.beta": "backbone.norm_list.0.bias",
        "decode_head.conv_seg.bias": "decode_head.conv_seg.bias",
    }.items():
        np.testing.assert_array_equal(tensors[ours], source[theirs].numpy())
    query, key_value = source[f"{GLOBAL}.in_proj_weight"].split([64, 128])
    np.testing.assert_array_equal(tensors["backbone.blocks.1.1.attn.q.weight"], query)
    np.testing.assert_array_equal(tensors["backbone.blocks.1.1.attn.kv.weight"], key_value)
    assert conversion.account.used[f"{GLOBAL}.in_proj_bias"] == (
        "backbone.blocks.1.1.attn.q.bias",
        "backbone.blocks.1.1.attn.kv.bias",
    )


def test_metadata_says_where_it_came_from(save):
    path = save({"state_dict": state("mmsegmentation")}, "twins_svt-t_uperhead.pth")
    assert from_torch(read_source(path), KINDS).metadata == {
        "format_version": 1,
        "task": "segmentation",
        "variant": "upernet_svt_tiny",
        "num_classes": 12,
        "in_channels": 3,
        "channels": 64,
        "auxiliary_channels": 32,
        "classes": None,
        "preprocessing": {
            "image_size": 512,
            "resize_scale": [2048, 512],
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "exif_orientation": False,
            "test_mode": "whole",
            "test_crop": 512,
            "test_stride": 341,
            "test_ratios": [1.0],
            "test_flip": False,
        },
        "data": {"dataset": "pairs"},
        "dialect": {
            "window_padding": "mask",
            "patch_rounding": "ceil",
            "block_epsilon": 1e-5,
            "embed_epsilon": 1e-5,
        },
        "source": {
            "file": "twins_svt-t_uperhead.pth",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "layout": "mmsegmentation",
        },
        "widened_from": [],
        "filled": {},
    }


def test_every_tensor_is_used_or_ignored_for_a_reason(convert):
    source = state("official")
    account = convert(source).account
    assert {*account.used, *account.ignored} == set(source)
    reasons = {reason for name, reason in account.ignored.items() if ".num_batches_" in name}
    assert reasons == {"a counter of batch norms, not a weight"}
    others = {name for name in account.ignored if ".num_batches_" not in name}
    assert others == {"backbone.norm.weight", "backbone.head.bias"}
    assert account.ignored["backbone.head.bias"].startswith("of the classifier")


def test_official_weights_have_their_dialect(convert):
    assert convert(state("official")).metadata["dialect"] == {
        "window_padding": "mask",
        "patch_rounding": "floor",
        "block_epsilon": 1e-6,
        "embed_epsilon": 1e-5,
    }


@pytest.mark.parametrize("container", ["model", "model_ema"])
def test_sssegmentation_with_its_widths(convert, container):
    source = state("sssegmentation", channels=96, auxiliary_channels=48)
    conversion = convert(source, container=container)
    metadata = conversion.metadata
    assert metadata["source"]["layout"] == "sssegmentation"
    assert (metadata["channels"], metadata["auxiliary_channels"]) == (96, 48)
    assert metadata["dialect"]["patch_rounding"] == "ceil"
    np.testing.assert_array_equal(
        conversion.tensors["decode_head.fpn_bottleneck.bn.moving_mean"],
        source["decoder.1.running_mean"].numpy(),
    )


def test_the_segmentor_has_the_widths_of_its_checkpoint(convert, tmp_path):
    source = state("sssegmentation", channels=96, auxiliary_channels=48)
    conversion = convert(source, container="model")
    save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny", 12, tmp_path / "x.ckpt")
    assert segmentor.dropout_channels == 96 + 48
    with pytest.raises(UserError, match=r"x\.ckpt is a checkpoint of channels 96 \(asked for: 64"):
        mindtwins.create_segmentor("upernet_svt_tiny", 12, tmp_path / "x.ckpt", channels=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{GLOBAL}.in_proj_bias": None},
            r"lacks backbone\.layers\.1\.1\.attn\.attn\.in_proj_bias$",
        ),
        (
            {f"{GLOBAL}.in_proj_weight": torch.zeros(128, 64)},
            r"attn\.in_proj_weight \(128, 64\) instead of \(192, 64\)$",
        ),
        ({f"{GLOBAL}.in_proj_bias": torch.full((192,), torch.nan)}, r"NaN values in .*proj_bias$"),
        (
            {"decode_head.bottleneck.bn.running_var": None},
            r"lacks decode_head\.bottleneck\.bn\.running_var$",
        ),
        ({"decode_head.surplus": torch.zeros(3)}, r"no use for decode_head\.surplus$"),
        ({"decode_head.fpn_bottleneck.conv.weight": torch.tensor(1.0)}, r"conv\.weight \(\) inst"),
        (
            {"auxiliary_head.convs.0.conv.weight": torch.zeros(8, 96, 3, 3)},
            r"bn\.weight \(32,\) in",
        ),
    ],
)
def test_names_the_tensor_that_does_not_fit(convert, change, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(state("mmsegmentation"), change)
    assert "source.pth does not fit upernet_svt_tiny" in str(caught.value)


def test_another_model_than_asked_for(convert):
    with pytest.raises(UserError, match=r"holds upernet_svt_tiny, not fpn_svt_tiny \(head: upern"):
        convert(state("mmsegmentation"), model="fpn_svt_tiny")
    with pytest.raises(UserError, match=r"unknown segmentor 'svt_tiny' \(did you mean 'fpn_svt"):
        convert(state("mmsegmentation"), model="svt_tiny")


def test_a_dropped_classifier_is_zeros_and_it_is_said(convert):
    with pytest.raises(UserError, match="head of 12 classes, not 5: pass --drop_head"):
        convert(state("mmsegmentation"), num_classes=5)
    with pytest.raises(UserError, match="num_classes must be at least 1"):
        convert(state("mmsegmentation"), num_classes=0, drop_head=True)
    conversion = convert(state("mmsegmentation"), num_classes=5, drop_head=True)
    head = [f"{h}_head.conv_seg.{p}" for h in ("decode", "auxiliary") for p in ("weight", "bias")]
    assert list(conversion.metadata["filled"]) == head
    assert conversion.tensors[head[0]].shape == (5, 64, 1, 1)
    assert not any(conversion.tensors[name].any() for name in head)


@pytest.fixture(scope="module")
def backbone():
    return randomize(create_backbone_reference("svt_tiny")).state_dict()


class TestBackboneOfTheKeyConverter:
    def test_is_a_classifier_without_head(self, save, backbone):
        conversion = from_torch(read_source(save(backbone)), KINDS)
        assert conversion.metadata["variant"] == "svt_tiny"
        assert conversion.metadata["num_classes"] == 0
        assert conversion.metadata["task"] == "classification"
        assert conversion.metadata["dialect"]["block_epsilon"] == 1e-6
        np.testing.assert_array_equal(
            conversion.tensors["blocks.1.1.attn.kv.bias"],
            backbone["layers.1.1.attn.attn.in_proj_bias"][64:].numpy(),
        )

    def test_goes_back_bit_for_bit(self, save, backbone, tmp_path, pt2ms, ms2pt):
        pt2ms("--pt_path", save(backbone), "--ckpt_path", tmp_path / "x.ckpt")
        ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
        assert_same_bits(torch.load(tmp_path / "back.pth"), backbone)

    @pytest.mark.slow
    def test_computes_the_same(self, save, backbone, tmp_path):
        source = read_source(save(backbone))
        conversion = from_torch(source, KINDS)
        save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
        rows = verify(tmp_path / "x.ckpt", source, KINDS, conversion)
        assert all(row.passed for row in rows), format_table(rows)


def assert_same_bits(found, expected):
    expected = {n: t for n, t in expected.items() if not re.search(r"e\.(norm|head)\.", n)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
        assert found[name].dtype == tensor.dtype, name


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("layout", "head"),
    [
        ("mmsegmentation", "fpn"),
        ("mmsegmentation", "upernet"),
        ("official", "fpn"),
        ("official", "upernet"),
        ("sssegmentation", "upernet"),
    ],
)
def test_there_and_back(save, tmp_path, pt2ms, ms2pt, layout, head, suffix):
    source = state(layout, head)
    path = save({"state_dict": source})
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / f"x{suffix}")
    ms2pt("--ckpt_path", tmp_path / f"x{suffix}", "--pt_path", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    container = "model" if layout == "sssegmentation" else "state_dict"
    assert back.keys() == ({container} if container == "model" else {container, "meta"})
    assert_same_bits(back[container], source)


def test_from_one_project_to_another(save, tmp_path, pt2ms, ms2pt, capsys):
    path = save({"model": state("sssegmentation")})
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt")
    back = ("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
    ms2pt(*back, "--layout", "mmsegmentation")
    found = torch.load(tmp_path / "back.pth")["state_dict"]
    assert_same_bits(found, state("mmsegmentation"))
    create_segmentation_reference("upernet_svt_tiny", 12).load_state_dict(found, strict=True)
    assert "note:" not in capsys.readouterr().out
    ms2pt(*back, "--layout", "official")
    printed = capsys.readouterr().out
    assert "note: the official code has patch_rounding floor, here it is ceil" in printed
    assert "note: the official code has block_epsilon 1e-06, here it is 1e-05" in printed
    with pytest.raises(UserError, match="timm has no names for models of segmentation"):
        ms2pt(*back, "--layout", "timm")


def test_an_incomplete_checkpoint_does_not_go_back(convert, tmp_path):
    tensors = convert(state("mmsegmentation")).tensors
    del tensors["backbone.blocks.1.1.attn.q.weight"]
    with pytest.raises(UserError, match=r"it lacks backbone\.blocks\.1\.1\.attn\.q\.weight"):
        to_torch(
            Checkpoint(tensors, None, tmp_path / "x.ckpt"),
            KINDS,
            find_layout(KINDS, "mmsegmentation", "segmentation"),
        )


class TestWhatMMSegmentationLooksFor:
    """`init_model` takes the classes from `meta`: CLASSES and PALETTE in 0.x, dataset_meta later"""

    names = tuple(f"name {number}" for number in range(12))

    def back(self, save, tmp_path, pt2ms, ms2pt, meta):
        path = save({"state_dict": state("mmsegmentation", "fpn"), "meta": meta})
        pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt")
        ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
        return torch.load(tmp_path / "back.pth", weights_only=True)

    @pytest.mark.parametrize(
        "meta",
        [
            {"CLASSES": names, "PALETTE": np.zeros((12, 3), np.uint8)},
            {"dataset_meta": {"classes": list(names), "palette": [[0, 0, 0]] * 12}},
            {"dataset_meta": {"CLASSES": names}},
        ],
    )
    def test_names_go_there_and_back(self, save, tmp_path, pt2ms, ms2pt, meta):
        back = self.back(save, tmp_path, pt2ms, ms2pt, meta)
        assert load_checkpoint(tmp_path / "x.ckpt").metadata["classes"] == list(self.names)
        assert back["meta"]["CLASSES"] == back["meta"]["dataset_meta"]["classes"] == self.names
        palette = back["meta"]["PALETTE"]
        assert palette == back["meta"]["dataset_meta"]["palette"]
        assert len({tuple(color) for color in palette}) == 12
        assert all(0 <= level <= 255 for color in palette for level in color)

    def test_unknown_names_are_numbers_and_it_is_said(self, save, tmp_path, pt2ms, ms2pt, capsys):
        back = self.back(save, tmp_path, pt2ms, ms2pt, {})
        assert back["meta"]["CLASSES"][11] == "class 11"
        assert "no class names: wrote 'class 0' and so on" in capsys.readouterr().out

    def test_names_of_another_head_are_not_taken(self, save, convert):
        source = {"state_dict": state("mmsegmentation"), "meta": {"CLASSES": self.names[:9]}}
        assert from_torch(read_source(save(source)), KINDS).metadata["classes"] is None

    def test_counters_of_batch_norms_are_there(self, save, tmp_path, pt2ms, ms2pt):
        found = self.back(save, tmp_path, pt2ms, ms2pt, {})["state_dict"]
        counters = [name for name in found if name.endswith("num_batches_tracked")]
        assert counters == [n for n in state("mmsegmentation", "fpn") if "num_batches" in n]
        assert all(found[n].dtype == torch.int64 and found[n].shape == () for n in counters)


def test_a_classifier_becomes_a_backbone_and_it_is_said(tmp_path, save, pt2ms, ms2pt, capsys):
    classifier = randomize(create_reference("svt_tiny", 5)).state_dict()
    pt2ms("--pt_path", save(classifier), "--ckpt_path", tmp_path / "x.ckpt")
    target = tmp_path / "back.pth"
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", target, "--layout", "mmsegmentation")
    found = torch.load(target, weights_only=True)
    segmentor = create_segmentation_reference("fpn_svt_tiny", 5)
    missing, unexpected = segmentor.backbone.load_state_dict(found, strict=False)
    assert not unexpected and all(name.startswith("norm_list.") for name in missing)
    bias = found["layers.1.1.ffn.layers.0.0.bias"]
    assert torch.equal(bias, classifier["blocks.1.1.mlp.fc1.bias"])
    printed = capsys.readouterr().out
    assert "left out, a backbone of MMSegmentation has no head: head.weight and 1 more" in printed
    assert "has no final norm: norm.gamma and 1 more" in printed


def test_somebody_elses_checkpoint_goes_to_mmsegmentation(convert, tmp_path):
    checkpoint = Checkpoint(convert(state("official")).tensors, None, tmp_path / "x.ckpt")
    assert choose_layout(checkpoint, KINDS, None) is find_layout(
        KINDS, "mmsegmentation", "segmentation"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "head", "widths"),
    [
        ("mmsegmentation", "fpn", {}),
        ("mmsegmentation", "upernet", {}),
        ("official", "upernet", {}),
        ("sssegmentation", "upernet", {"channels": 48, "auxiliary_channels": 64}),
    ],
)
def test_verification(save, tmp_path, pt2ms, capsys, layout, head, widths):
    path = save({"model": state(layout, head, **widths)})
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt", "--verify")
    outputs = 9 if head == "fpn" else 6
    assert capsys.readouterr().out.count("  ok\n") == 2 * outputs
    assert load_checkpoint(tmp_path / "x.ckpt").metadata["source"]["layout"] == layout


def wrong_rounding(tensors, metadata):
    metadata["dialect"]["patch_rounding"] = "floor"


def keys_before_queries(tensors, metadata):
    for name in list(tensors):
        if ".attn.q." in name:
            rest = name.replace(".q.", ".kv.")
            query, (key, value) = tensors[name], np.split(tensors[rest], 2)
            tensors[name], tensors[rest] = key.copy(), np.concatenate([query, value])


def swapped_statistics(tensors, metadata):
    norm = "auxiliary_head.convs.0.bn"
    mean, variance = tensors[f"{norm}.moving_mean"], tensors[f"{norm}.moving_variance"]
    tensors[f"{norm}.moving_mean"], tensors[f"{norm}.moving_variance"] = variance, abs(mean) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [wrong_rounding, keys_before_queries, swapped_statistics],
)
def test_a_wrong_file_fails_the_verification(save, tmp_path, mistake):
    source = read_source(save(state("mmsegmentation")))
    conversion = from_torch(source, KINDS)
    mistake(conversion.tensors, conversion.metadata)
    save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
    rows = verify(tmp_path / "x.ckpt", source, KINDS, conversion)
    assert not rows[-1].passed, format_table(rows)


@pytest.mark.slow
def test_a_new_classifier_is_left_out_of_the_comparison(save, tmp_path, pt2ms, capsys):
    path = save(state("mmsegmentation"))
    arguments = ("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt", "--num_classes", 3)
    pt2ms(*arguments, "--drop_head", "--verify")
    assert capsys.readouterr().out.count("  ok\n") == 12
