"""create_segmentor and list_segmentors: names, sizes, shapes and errors."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import mindtwins
from mindtwins.checkpoint import save_checkpoint
from mindtwins.config import ValidateConfig
from mindtwins.errors import UserError
from mindtwins.segmentation.variants import (
    resolve_segmentor,
    resolve_widths,
    segmentor_metadata,
    segmentor_shapes,
)
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World

# Parameters of MMSegmentation's models with 150 classes.
PARAMETERS = {
    "fpn_pcpvt_small": 27_858_838,
    "fpn_pcpvt_base": 47_581_078,
    "fpn_pcpvt_large": 64_742_294,
    "fpn_svt_small": 27_798_934,
    "fpn_svt_base": 59_676_438,
    "fpn_svt_large": 102_744_214,
    "upernet_pcpvt_small": 54_080_044,
    "upernet_pcpvt_base": 73_802_284,
    "upernet_pcpvt_large": 90_963_500,
    "upernet_svt_small": 53_856_300,
    "upernet_svt_base": 87_724_460,
    "upernet_svt_large": 132_782_892,
}
# The same by part: backbone, neck, decode head, auxiliary head.
PARTS = {
    "fpn_pcpvt_small": (23_592_192, 2_623_488, 1_643_158, 0),
    "upernet_pcpvt_small": (23_592_192, 0, 29_711_510, 776_342),
    "fpn_svt_small": (23_548_672, 2_607_104, 1_643_158, 0),
    "upernet_svt_small": (23_548_672, 0, 29_678_742, 628_886),
}


def images(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def count(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> int:
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if name.startswith(prefix) and ".bn.moving_" not in name
    )


def test_list_segmentors():
    assert mindtwins.list_segmentors() == list(PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert count(segmentor_shapes(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARTS)
def test_parameter_count_of_each_part(name):
    shapes = segmentor_shapes(name)
    prefixes = ("backbone.", "neck.", "decode_head.", "auxiliary_head.")
    assert tuple(count(shapes, prefix) for prefix in prefixes) == PARTS[name]


def test_shapes_are_those_of_a_built_segmentor():
    options = {"channels": 24, "auxiliary_channels": 16}
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny", 7, in_channels=1, **options)
    built = {parameter.name: tuple(parameter.shape) for parameter in segmentor.get_parameters()}
    assert segmentor_shapes("upernet_svt_tiny", 7, 1, **options) == built
    assert built["backbone.patch_embeds.0.proj.weight"] == (32, 1, 4, 4)
    assert built["decode_head.fpn_bottleneck.conv.weight"] == (24, 96, 3, 3)
    assert built["auxiliary_head.conv_seg.weight"] == (7, 16, 1, 1)


def test_only_batch_statistics_are_not_trained():
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny")
    frozen = {p.name for p in segmentor.get_parameters() if not p.requires_grad}
    assert frozen == {n for n in segmentor_shapes("upernet_svt_tiny") if ".bn.moving_" in n}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("upernet_svt_smal", "upernet_svt_small"), ("fpn_pcpvt_larg", "fpn_pcpvt_large")],
)
def test_unknown_name_names_the_nearest(wrong, nearest):
    with pytest.raises(UserError, match=f"unknown segmentor '{wrong}' .did you mean '{nearest}'"):
        resolve_segmentor(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"window_padding": "reflect"}, "window_padding is 'reflect'"),
        ({"channels": 0}, "cannot have 0 channels"),
        ({"auxiliary_channels": 16}, "16 auxiliary channels: .* auxiliary head is absent"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        mindtwins.create_segmentor("fpn_svt_tiny", **options)


def test_a_checkpoint_of_another_head_is_named(tmp_path):
    path = tmp_path / "upernet.ckpt"
    metadata = {"task": "segmentation", "variant": "upernet_svt_tiny", "num_classes": 5}
    widths = {"channels": 64, "auxiliary_channels": 32}
    save_checkpoint(path, {"w": np.zeros(1, np.float32)}, metadata | widths)
    message = r"upernet\.ckpt .*upernet_svt_tiny.*fpn_svt_tiny"
    with pytest.raises(UserError, match=message):
        mindtwins.create_segmentor("fpn_svt_tiny", 5, ckpt_path=path)
    config = ValidateConfig(
        task="segmentation", model="fpn_svt_tiny", num_classes=5, ckpt_path=str(path)
    )
    with pytest.raises(UserError, match=message):
        create_task(config).build_model(World())


def test_the_dialect_is_mmsegmentations_unless_stated():
    segmentor = mindtwins.create_segmentor("fpn_svt_tiny")
    assert vars(segmentor.dialect) == {
        "window_padding": "mask",
        "patch_rounding": "ceil",
        "block_epsilon": 1e-5,
        "embed_epsilon": 1e-5,
        "sr_epsilon": None,
    }
    other = mindtwins.create_segmentor("fpn_svt_tiny", patch_rounding="floor", block_epsilon=1e-6)
    assert (other.dialect.patch_rounding, other.dialect.block_epsilon) == ("floor", 1e-6)
    assert other.dialect.window_padding == "mask"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn_svt_tiny", "upernet_svt_tiny"])
@pytest.mark.parametrize(
    ("rounding", "side", "third"), [("floor", (24, 40), (6, 10)), ("ceil", (25, 41), (7, 11))]
)
def test_outputs(name, rounding, side, third):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    segmentor = mindtwins.create_segmentor(name, 5, patch_rounding=rounding)
    batch = images(2, 3, 99, 163)
    assert segmentor(batch).shape == (2, 5, *side)
    segmentor.set_train()
    shapes = [output.shape for output in segmentor(batch)]
    assert shapes == [(2, 5, *side), (2, 5, *third)][: len(shapes)]
    assert len(shapes) == (1 if name.startswith("fpn") else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn_svt_tiny", "upernet_svt_tiny"])
def test_what_is_broken_shows(name):
    """No ReLU makes 0 of NaN, from which plausible logits would follow."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    pixels = images(1, 3, 64, 64).asnumpy().copy()
    pixels[0, 0, 5, 5] = np.nan
    logits = mindtwins.create_segmentor(name, 5)(Tensor(pixels)).asnumpy()
    assert np.isnan(logits).any()


@pytest.mark.slow
def test_dropped_channels():
    """All kept and doubled is the same as doubled maps; none kept leaves the classifier's bias."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny", 5)
    assert segmentor.dropout_channels == 64 + 32
    assert segmentor.dropout_rate == 0.1
    segmentor.decode_head.conv_seg.bias.set_data(Tensor(np.arange(5, dtype=np.float32)))
    batch = images(2, 3, 64, 64)
    plain = segmentor(batch).asnumpy()
    dropout_mask = np.zeros((2, 96), np.float32)
    dropout_mask[0, :64] = 2
    factored = segmentor(batch, None, Tensor(dropout_mask)).asnumpy()
    bias = np.arange(5)[:, None, None]
    np.testing.assert_allclose(factored[0] - bias, 2 * (plain[0] - bias), atol=1e-5)
    np.testing.assert_array_equal(factored[1] - bias, 0)


@pytest.mark.slow
def test_what_is_kept_of_the_auxiliary_head_comes_last():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny", 5).set_train()
    dropout_mask = np.ones((2, 96), np.float32)
    dropout_mask[:, 64:] = 0
    logits, auxiliary = segmentor(images(2, 3, 64, 64), None, Tensor(dropout_mask))
    assert not auxiliary.asnumpy().any()
    assert logits.asnumpy().std() > 0.001


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 64, 64), "3 channels"), ((2, 3, 31, 64), "at least 32 x 32 pixels, not 31 x 64")],
)
def test_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        mindtwins.create_segmentor("fpn_svt_tiny")(images(*shape))


def test_a_checkpoint_says_what_it_is_of(tmp_path):
    segmentor = mindtwins.create_segmentor("upernet_svt_tiny", 5, auxiliary_channels=16)
    widths = resolve_widths("upernet_svt_tiny", None, 16)
    metadata = segmentor_metadata("upernet_svt_tiny", 5, 3, widths)
    metadata["dialect"] = vars(segmentor.dialect) | {"patch_rounding": "floor"}
    tensors = {p.name: p.asnumpy() for p in segmentor.get_parameters()}
    save_checkpoint(tmp_path / "x.ckpt", tensors, metadata)
    loaded = mindtwins.create_segmentor("upernet_svt_tiny", 5, tmp_path / "x.ckpt")
    assert loaded.dialect.patch_rounding == "floor"
    assert {p.name: p.shape for p in loaded.get_parameters()} == {
        p.name: p.shape for p in segmentor.get_parameters()
    }
    with pytest.raises(UserError, match=r"num_classes 5 \(asked for: 6\)"):
        mindtwins.create_segmentor("upernet_svt_tiny", 6, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"variant upernet_svt_tiny \(asked for: fpn_svt_tiny\)"):
        mindtwins.create_segmentor("fpn_svt_tiny", 5, tmp_path / "x.ckpt", auxiliary_channels=0)


@pytest.mark.slow
def test_initialization():
    """MMSegmentation's: convolutions by fan-out, the pyramid Xavier's, classifiers 0.01."""
    segmentor = mindtwins.create_segmentor("fpn_svt_small")
    values = {p.name: p.asnumpy() for p in segmentor.get_parameters()}
    head = values["decode_head.scale_heads.3.0.conv.weight"]
    assert head.std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    pyramid = values["neck.fpn_convs.0.conv.weight"]
    bound = (6 / (9 * 256 + 9 * 256)) ** 0.5
    assert abs(pyramid).max() == pytest.approx(bound, rel=1e-3)
    assert pyramid.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert values["decode_head.conv_seg.weight"].std() == pytest.approx(0.01, rel=0.02)
    assert not values["decode_head.conv_seg.bias"].any()
    assert not values["neck.lateral_convs.0.conv.bias"].any()
