"""create_model and list_models: names, sizes, shapes and errors."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import mindtwins
from mindtwins.models.variants import ALIASES, VARIANTS, parameter_shapes, resolve_name

# Parameters of the official models with 1000 classes.
PARAMETERS = {
    "pcpvt_small": 24_106_216,
    "pcpvt_base": 43_828_456,
    "pcpvt_large": 60_989_672,
    "svt_small": 24_060_776,
    "svt_base": 56_070_952,
    "svt_large": 99_271_400,
}


def images(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def test_list_models():
    assert mindtwins.list_models() == list(PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    shapes = parameter_shapes(name)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == PARAMETERS[name]


def test_parameter_shapes_are_those_of_a_built_model():
    model = mindtwins.create_model("svt_tiny", num_classes=7, in_channels=1)
    built = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    assert parameter_shapes("svt_tiny", num_classes=7, in_channels=1) == built
    assert built["head.weight"] == (7, 128)
    assert built["patch_embeds.0.proj.weight"] == (32, 1, 4, 4)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("alt_gvt_small", "svt_small"),
        ("alt_gvt_large", "svt_large"),
        ("pcpvt_base_v0", "pcpvt_base"),
        ("twins_svt_base", "svt_base"),
        ("twins_pcpvt_large", "pcpvt_large"),
        ("svt_tiny", "svt_tiny"),
    ],
)
def test_aliases(alias, name):
    assert resolve_name(alias) == name


def test_every_alias_means_a_variant():
    assert len(ALIASES) == 12
    assert set(ALIASES.values()) == set(PARAMETERS)
    assert set(VARIANTS) == {*PARAMETERS, "svt_tiny"}


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("svt_smal", "svt_small"), ("twins_pcpvt_bas", "twins_pcpvt_base")]
)
def test_unknown_name_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{wrong}' .did you mean '{nearest}'"):
        mindtwins.create_model(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_padding": "reflect"}, "window_padding is 'reflect'.*none, zeros, mask"),
        ({"patch_rounding": "round"}, "patch_rounding is 'round'.*floor, ceil"),
        ({"num_classes": -1}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mindtwins.create_model("svt_tiny", **options)


@pytest.mark.parametrize(
    ("rounding", "sides"),
    [
        ("floor", [(24, 40), (12, 20), (6, 10), (3, 5)]),
        ("ceil", [(25, 41), (13, 21), (7, 11), (4, 6)]),
    ],
)
def test_features_only(rounding, sides):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = mindtwins.create_model("svt_tiny", features_only=True, patch_rounding=rounding)
    maps = model(images(2, 3, 99, 163))
    channels = (32, 64, 96, 128)
    assert [m.shape for m in maps] == [
        (2, c, *side) for c, side in zip(channels, sides, strict=True)
    ]
    assert not any(p.name.startswith(("norm.", "head.")) for p in model.get_parameters())


def test_pooled_features_are_what_the_head_sees():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = mindtwins.create_model("svt_tiny", num_classes=5)
    pooled = mindtwins.create_model("svt_tiny", num_classes=0)
    weights = {p.name: p for p in model.get_parameters()}
    for parameter in pooled.get_parameters():
        parameter.set_data(weights[parameter.name])
    x = images(2, 3, 64, 64)
    features = pooled(x).asnumpy()
    assert features.shape == (2, 128)
    logits = features @ model.head.weight.asnumpy().T + model.head.bias.asnumpy()
    np.testing.assert_allclose(model(x).asnumpy(), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 64, 64), "3 channels"),
        ((3, 64, 64), "4 dimensions"),
        ((2, 64, 64, 3), "3 channels"),
        ((2, 3, 31, 64), "at least 32 x 32 pixels, not 31 x 64"),
    ],
)
def test_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        mindtwins.create_model("svt_tiny")(images(*shape))


def test_wrong_dtype():
    with pytest.raises(TypeError, match="float32 or float16, not uint8"):
        mindtwins.create_model("svt_tiny")(Tensor(np.zeros((1, 3, 64, 64), np.uint8)))


@pytest.mark.slow
def test_initialization():
    """The official one: linear layers 0.02, convolutions by fan-out, biases 0, norms 1 and 0."""
    model = mindtwins.create_model("svt_small")
    values = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert values["blocks.3.3.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.01)
    fan_out = 2 * 2 * 512
    assert values["patch_embeds.3.proj.weight"].std() == pytest.approx(
        (2 / fan_out) ** 0.5, rel=0.01
    )
    # Depthwise: fan-out 9 * channels / groups = 9.
    assert values["pos_block.3.proj.0.weight"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    for name, value in values.items():
        if name.endswith((".bias", ".beta")):
            assert not value.any(), name
        if name.endswith(".gamma"):
            assert (value == 1).all(), name
