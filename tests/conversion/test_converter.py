import hashlib
import re

import numpy as np
import pytest
import torch

from mindtwins.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mindtwins.conversion.converter import choose_layout, from_torch, to_torch
from mindtwins.conversion.kinds import find_layout
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.models.variants import parameter_shapes
from mindtwins.reference import create_reference
from mindtwins.tasks import KINDS

OFFICIAL = find_layout(KINDS, "official", "classification")


@pytest.fixture
def convert(save):
    """Saves a state dict, changed by some tensors (None removes one), and converts it."""

    def convert(state, change=None, **options):
        state = {k: v for k, v in (state | (change or {})).items() if v is not None}
        return from_torch(read_source(save(state)), KINDS, **options)

    return convert


def test_every_parameter_holds_its_tensor(convert, tiny_state):
    tensors = convert(tiny_state).tensors
    assert {k: v.shape for k, v in tensors.items()} == parameter_shapes("svt_tiny", 10)
    for name, tensor in tiny_state.items():
        ours = name
        if re.search(r"norm\d?\.(weight|bias)$", name):
            ours = name.replace("weight", "gamma").replace("bias", "beta")
        np.testing.assert_array_equal(tensors[ours], tensor.numpy())


def test_metadata_says_where_it_came_from(save, tiny_state):
    path = save(tiny_state, "alt_gvt_tiny.pth")
    assert from_torch(read_source(path), KINDS).metadata == {
        "format_version": 1,
        "task": "classification",
        "variant": "svt_tiny",
        "num_classes": 10,
        "in_channels": 3,
        "classes": None,
        "preprocessing": {
            "image_size": 224,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "data": {"dataset": "imagefolder", "val_split": "val"},
        "dialect": {
            "window_padding": "zeros",
            "patch_rounding": "floor",
            "block_epsilon": 1e-6,
            "embed_epsilon": 1e-5,
        },
        "source": {
            "file": "alt_gvt_tiny.pth",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "layout": "official",
        },
        "widened_from": [],
        "filled": {},
    }


def test_ignores_counters_with_a_reason(convert, tiny_state):
    account = convert(tiny_state, {"bn.num_batches_tracked": torch.tensor(3)}).account
    assert account.ignored == {"bn.num_batches_tracked": "a counter of batch norms, not a weight"}
    assert len(account.used) == len(tiny_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_are_widened_and_it_is_said(convert, tiny_state, dtype):
    narrow = {name: tensor.to(dtype) for name, tensor in tiny_state.items()}
    conversion = convert(narrow)
    word = str(dtype).removeprefix("torch.")
    assert conversion.account.widened == dict.fromkeys(tiny_state, word)
    assert conversion.metadata["widened_from"] == [word]
    for theirs, (ours,) in conversion.account.used.items():
        np.testing.assert_array_equal(conversion.tensors[ours], narrow[theirs].float().numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.2.1.mlp.fc1.bias": None}, r"svt_tiny: it lacks blocks\.2\.1\.mlp\.fc1\.bias$"),
        ({"patch_embeds.1.proj.weight": None}, r"it lacks patch_embeds\.1\.proj\.weight$"),
        ({"head.weight": None}, r"head\.weight"),
        ({"head.weight": None, "head.bias": None}, r"lacks head\.weight, head\.bias$"),
        ({"cls_token": torch.zeros(1, 1, 32)}, r"it has no use for cls_token$"),
        ({"blocks.0.0.attn.kv.bias": torch.zeros(64)}, r"no use for blocks\.0\.0\.attn\.kv\.bias$"),
        ({"norm.bias": torch.zeros(127)}, r"norm\.bias \(127,\) instead of \(128,\)$"),
        ({"norm.bias": torch.tensor(1.0)}, r"norm\.bias \(\) instead of \(128,\)$"),
        ({"head.weight": torch.tensor(1.0)}, r"head\.weight \(\) instead of \(10, 128\)"),
        (
            {"patch_embeds.0.proj.weight": torch.zeros(33, 3, 4, 4)},
            r"patch_embeds\.0\.proj\.weight \(33, 3, 4, 4\) instead of \(32, 3, 4, 4\)$",
        ),
        ({"patch_embeds.0.proj.weight": torch.zeros(32)}, r"proj\.weight \(32,\) instead of"),
        ({"norm.bias": torch.full((128,), torch.nan)}, r"infinite or NaN values in norm\.bias$"),
        ({"norm.bias": torch.zeros(128).double()}, r"dtype for norm\.bias \(float64"),
        ({"norm.bias": torch.zeros(128, dtype=torch.int32)}, r"dtype for norm\.bias \(int32"),
        ({"norm.bias": torch.zeros(128, dtype=torch.complex64)}, r"norm\.bias \(complex64"),
    ],
)
def test_names_the_tensor_that_does_not_fit(convert, tiny_state, change, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(tiny_state, change)
    assert "source.pth does not fit svt_tiny" in str(caught.value)


def test_says_what_was_seen_where_no_variant_fits(convert, tiny_state):
    extra = {
        name.replace("blocks.2.1.", "blocks.2.2."): tensor
        for name, tensor in tiny_state.items()
        if name.startswith("blocks.2.1.")
    }
    with pytest.raises(UserError, match=r"any other model \(.*blocks of stage 2: 3") as caught:
        convert(tiny_state, extra)
    assert re.search(r"it has no use for blocks\.2\.2\..* and \d+ more$", str(caught.value))


def test_a_file_of_another_model_is_named_as_such(save):
    path = save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"no Twins checkpoint: .*\(the first is conv1\.weight\)"):
        from_torch(read_source(path), KINDS)


class TestModel:
    @pytest.mark.parametrize("name", ["svt_tiny", None])
    def test_agrees(self, convert, tiny_state, name):
        assert convert(tiny_state, model=name).metadata["variant"] == "svt_tiny"

    @pytest.mark.parametrize("name", ["svt_small", "twins_svt_small", "alt_gvt_small"])
    def test_disagrees(self, convert, tiny_state, name):
        with pytest.raises(UserError, match="holds svt_tiny, not svt_small"):
            convert(tiny_state, model=name)

    def test_unknown(self, convert, tiny_state):
        with pytest.raises(UserError, match="svt_tiny"):
            convert(tiny_state, model="svt_tinny")

    def test_decides_what_to_compare_with_if_nothing_fits(self, convert, tiny_state):
        with pytest.raises(UserError, match="does not fit svt_small"):
            convert(tiny_state, {"blocks.2.7.norm1.bias": torch.zeros(96)}, model="svt_small")


class TestHead:
    def test_the_same_number_of_classes_is_fine(self, convert, tiny_state):
        conversion = convert(tiny_state, num_classes=10)
        np.testing.assert_array_equal(
            conversion.tensors["head.weight"], tiny_state["head.weight"].numpy()
        )

    @pytest.mark.parametrize("classes", [0, 5, 1000])
    def test_another_number_needs_the_flag(self, convert, tiny_state, classes):
        with pytest.raises(UserError, match=rf"head of 10 classes, not {classes}: .*--drop_head"):
            convert(tiny_state, num_classes=classes)

    @pytest.mark.parametrize("classes", [5, 10])
    def test_a_dropped_head_is_zeros_and_it_is_said(self, convert, tiny_state, classes):
        conversion = convert(tiny_state, num_classes=classes, drop_head=True)
        assert conversion.tensors["head.weight"].shape == (classes, 128)
        assert not conversion.tensors["head.weight"].any()
        assert not conversion.tensors["head.bias"].any()
        assert conversion.account.ignored.keys() == {"head.weight", "head.bias"}
        assert conversion.account.filled.keys() == {"head.weight", "head.bias"}
        assert conversion.metadata["filled"] == conversion.account.filled
        assert conversion.metadata["num_classes"] == classes

    def test_no_head(self, convert, tiny_state):
        conversion = convert(tiny_state, num_classes=0, drop_head=True)
        assert not any(name.startswith("head.") for name in conversion.tensors)
        assert conversion.account.filled == {}

    def test_a_source_without_head(self, convert, tiny_state):
        no_head = {"head.weight": None, "head.bias": None}
        assert convert(tiny_state, no_head, num_classes=0).metadata["num_classes"] == 0
        with pytest.raises(UserError, match=r"lacks head\.weight, head\.bias"):
            convert(tiny_state, no_head, num_classes=10)

    def test_nonsense(self, convert, tiny_state):
        with pytest.raises(UserError, match="--drop_head needs --num_classes"):
            convert(tiny_state, drop_head=True)
        with pytest.raises(UserError, match="at least 0"):
            convert(tiny_state, num_classes=-1)


def test_other_input_channels(convert):
    state = create_reference("svt_tiny", 10, in_channels=5).state_dict()
    conversion = convert(state)
    assert conversion.metadata["in_channels"] == 5
    assert conversion.tensors["patch_embeds.0.proj.weight"].shape == (32, 5, 4, 4)


@pytest.mark.parametrize("layout", ["official", "timm"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back_through_a_file(convert, tiny_state, tmp_path, layout, suffix):
    conversion = convert(tiny_state)
    save_checkpoint(tmp_path / f"x{suffix}", conversion.tensors, conversion.metadata)
    checkpoint = load_checkpoint(tmp_path / f"x{suffix}")
    back = to_torch(checkpoint, KINDS, choose_layout(checkpoint, KINDS, layout))
    assert back.keys() == tiny_state.keys()
    for name, tensor in tiny_state.items():
        np.testing.assert_array_equal(
            back[name].view(np.uint32), tensor.numpy().view(np.uint32), strict=True
        )


def test_an_incomplete_checkpoint_does_not_go_back(convert, tiny_state, tmp_path):
    tensors = convert(tiny_state).tensors
    del tensors["norm.gamma"]
    with pytest.raises(UserError, match=r"does not fit svt_tiny: it lacks norm\.gamma"):
        to_torch(Checkpoint(tensors, None, tmp_path / "x.ckpt"), KINDS, OFFICIAL)
