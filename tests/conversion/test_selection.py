"""Where a Twins model is in a file: state dicts, prefixes, and what stands beside it."""

import pytest
import torch

from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import randomize
from mindtwins.tasks import KINDS


@pytest.fixture
def convert(save):
    def convert(content, **options):
        return from_torch(read_source(save(content)), KINDS, **options)

    return convert


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def shifted(state):
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.fixture(scope="module")
def segmentor():
    return dict(randomize(create_segmentation_reference("fpn_svt_tiny", 3)).state_dict())


def assert_is(conversion, state):
    """Values of the state dict, by two tensors that differ in every shifted copy."""
    assert conversion.metadata["variant"] == "svt_tiny"
    for ours, theirs in {"norm.beta": "norm.bias", "head.bias": "head.bias"}.items():
        if theirs in state:
            assert conversion.tensors[ours].tolist() == state[theirs].tolist()


PREFIXES = [
    "_orig_mod.",
    "model._orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.backbone.",
    "encoder.vit.",
    "net.",
    "model.model.model.",
    "a.b_c.0.",
    "backbone.module.",
    "_forward_module.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_finds_the_prefix(convert, tiny_state, prefix):
    conversion = convert({"state_dict": under(prefix, tiny_state)})
    assert conversion.metadata["task"] == "classification"
    assert conversion.selection.prefix == prefix
    assert conversion.account.used.keys() == under(prefix, tiny_state).keys()
    assert_is(conversion, tiny_state)


@pytest.mark.parametrize("prefix", ["model.", "module._orig_mod.", "a.b."])
def test_finds_the_prefix_of_a_segmentor(convert, segmentor, prefix):
    conversion = convert(under(prefix, segmentor))
    assert conversion.metadata["variant"] == "fpn_svt_tiny"
    assert conversion.selection.prefix == prefix
    bias = conversion.tensors["decode_head.conv_seg.bias"]
    assert bias.tolist() == segmentor["decode_head.conv_seg.bias"].tolist()


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_blocks_are_passed_over(convert, tiny_state, wrapper):
    """As after compiling or checkpointing each block by itself."""
    state = {n.replace("blocks.1.1.", f"blocks.1.1.{wrapper}."): t for n, t in tiny_state.items()}
    conversion = convert(under("model.", state))
    assert_is(conversion, tiny_state)
    found = conversion.tensors["blocks.1.1.mlp.fc1.bias"]
    assert found.tolist() == tiny_state["blocks.1.1.mlp.fc1.bias"].tolist()
    assert f"names are read without '{wrapper}.' in them" in conversion.notes


def test_what_stands_beside_is_left_out_with_a_reason(convert, tiny_state):
    decoder = {"decoder.conv.weight": torch.ones(3), "criterion.weight": torch.ones(2)}
    conversion = convert({"model": under("encoder.", tiny_state) | decoder})
    reason = "not under 'encoder.', where the Twins model is"
    assert conversion.account.ignored == dict.fromkeys(decoder, reason)
    assert_is(conversion, tiny_state)


@pytest.mark.parametrize("beside", [{}, {"classifier.weight": torch.ones(7, 128)}])
def test_a_backbone_without_its_head_is_a_classifier_without_one(convert, tiny_state, beside):
    body = {name: t for name, t in tiny_state.items() if not name.startswith("head.")}
    conversion = convert(under("backbone.", body) | beside)
    assert conversion.metadata["task"] == "classification"
    assert conversion.metadata["num_classes"] == 0
    assert conversion.notes[-1].endswith("has no head: it gives pooled features")
    assert conversion.account.ignored.keys() == beside.keys()
    assert conversion.metadata["classes"] is None
    assert_is(conversion, body)


@pytest.mark.parametrize("pair", [("student.", "teacher."), ("model.q.", "model.k."), ("", "ema.")])
def test_two_models_are_told_apart_by_the_prefix(convert, tiny_state, pair):
    content = under(pair[0], tiny_state) | under(pair[1], shifted(tiny_state))
    message = f"several Twins models, under the prefixes {pair[0]!r}, {pair[1]!r}: .* --prefix"
    with pytest.raises(UserError, match=message):
        convert(content)
    second = convert(content, prefix=pair[1].removesuffix("."))
    assert_is(second, shifted(tiny_state))
    assert second.account.ignored.keys() == under(pair[0], tiny_state).keys()


def test_a_prefix_that_is_not_there(convert, tiny_state):
    with pytest.raises(UserError, match="no Twins model whose names begin with 'vit'"):
        convert(under("model.", tiny_state), prefix="vit")


def test_what_is_lacking_has_the_files_own_name(convert, tiny_state, segmentor):
    state = under("net.", tiny_state)
    del state["net.blocks.2.1.norm2.weight"], state["net.norm.bias"]
    with pytest.raises(
        UserError, match=r"lacks net\.blocks\.2\.1\.norm2\.weight, net\.norm\.bias$"
    ):
        convert(state)
    state = {n: t for n, t in segmentor.items() if ".layers.0.0." not in n or "qkv" not in n}
    message = (
        r"lacks backbone\.layers\.0\.0\.attn\.qkv\.weight, backbone\.layers\.0\.0\.attn\.qkv\.b"
    )
    with pytest.raises(UserError, match=message):
        convert(state)


AVERAGES = ["model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model.state_dict"]


def nested(key, state):
    for part in reversed(key.split(".")):
        state = {part: state}
    return state


class TestStateDict:
    @pytest.mark.slow
    @pytest.mark.parametrize("average", AVERAGES)
    @pytest.mark.parametrize("weights", ["model", "state_dict", "model_state_dict"])
    def test_weights_come_before_their_average(self, convert, tiny_state, weights, average):
        content = nested(average, shifted(tiny_state)) | {weights: tiny_state}
        conversion = convert(content)
        assert_is(conversion, tiny_state)
        assert conversion.selection.container == weights
        told = f"other state dicts of a Twins model: {average!r} (--state_dict chooses)"
        assert told in conversion.notes
        reason = f"not in {weights!r}, whose weights are used"
        assert set(conversion.account.ignored.values()) == {reason}
        assert len(conversion.account.ignored) == len(tiny_state)
        assert_is(convert(content, state_dict=average), shifted(tiny_state))

    @pytest.mark.parametrize("average", AVERAGES)
    def test_an_average_alone_is_read_and_told(self, convert, tiny_state, average):
        content = {"epoch": 5, **nested(average, under("module.", tiny_state))}
        content["ema_state_steps"] = torch.tensor(1)
        conversion = convert(content)
        assert_is(conversion, tiny_state)
        assert f"the weights under {average!r} are a moving average" in conversion.notes

    def test_averages_among_the_weights(self, convert, segmentor):
        twins = {f"ema_{n.replace('.', '_')}": t + 1 for n, t in segmentor.items() if "bn" not in n}
        content = {"state_dict": segmentor | twins}
        name = "decode_head.conv_seg.bias"
        conversion = convert(content)
        assert conversion.tensors[name].tolist() == segmentor[name].tolist()
        reason = "of 'state_dict.ema_', a moving average"
        assert conversion.account.ignored[f"state_dict.ema_{name.replace('.', '_')}"] == reason
        for key in ("ema_", "state_dict.ema_"):
            chosen = convert(content, state_dict=key)
            assert chosen.tensors[name].tolist() == (segmentor[name] + 1).tolist()
            mean = "decode_head.scale_heads.0.0.bn.running_mean"
            found = chosen.tensors[mean.replace("running", "moving")]
            assert found.tolist() == segmentor[mean].tolist()

    def test_one_of_an_unknown_key_is_found(self, convert, tiny_state):
        conversion = convert({"weights": {"deep": tiny_state}, "optimizer": {"a": torch.ones(1)}})
        assert conversion.selection.container == "weights.deep"
        assert_is(conversion, tiny_state)

    def test_several_of_unknown_keys_are_refused(self, convert, tiny_state):
        content = {"first": tiny_state, "second": shifted(tiny_state)}
        with pytest.raises(UserError, match=r"several .* \('first', 'second'\): .*--state_dict"):
            convert(content)
        assert_is(convert(content, state_dict="second"), shifted(tiny_state))

    def test_a_key_that_is_not_there(self, convert, tiny_state):
        with pytest.raises(UserError, match=r"no state dict under 'ema': .* can be one of 'model'"):
            convert({"model": tiny_state}, state_dict="ema")

    def test_a_key_of_something_else(self, convert, tiny_state):
        with pytest.raises(UserError, match=r"no Twins checkpoint: .*the first is a\)"):
            convert(
                {"model": tiny_state, "optimizer": {"a": torch.ones(1)}}, state_dict="optimizer"
            )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["query_embed.weight", "bbox_embed.0.layers.0.weight"], "holds a detector"),
        (["rpn.head.conv.weight", "roi_heads.box_head.fc6.weight"], "holds a detector"),
        (["decode_head.linear_fuse.conv.weight"], "holds a segmentor of another project"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_neighbor_is_named_as_what_it_is(convert, tiny_state, names, message, prefix):
    state = under("backbone.", tiny_state) | {name: torch.ones(2) for name in names}
    with pytest.raises(UserError, match=message) as caught:
        convert(under(prefix, state))
    assert "upernet" not in str(caught.value) and "fpn_" not in str(caught.value)


OTHER_ARCHITECTURES = {
    "ResNet": ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight"],
    "Swin": [
        "patch_embed.proj.weight",
        "layers.0.blocks.0.norm1.weight",
        "layers.0.blocks.0.attn.qkv.weight",
        "norm.weight",
        "head.weight",
    ],
    "ViT": ["pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "head.weight"],
    "PVT": ["patch_embed1.proj.weight", "block1.0.attn.kv.weight", "norm.weight"],
    "MiT": ["backbone.layers.0.0.projection.weight", "decode_head.conv_seg.weight"],
}


def test_the_state_dict_with_most_tensors_is_named(convert):
    model = {"conva": torch.ones(1), "convb": torch.ones(1)}
    content = {"optimizer": {"step": torch.ones(1)}, "model": model}
    with pytest.raises(UserError, match=r"no Twins checkpoint: .*\(the first is conva\)"):
        convert(content)


@pytest.mark.parametrize("names", OTHER_ARCHITECTURES.values(), ids=list(OTHER_ARCHITECTURES))
def test_another_architecture_is_no_twins_model(convert, names):
    with pytest.raises(UserError, match="is no Twins checkpoint") as caught:
        convert({"state_dict": {name: torch.ones(2) for name in names}})
    assert "upernet" not in str(caught.value)
