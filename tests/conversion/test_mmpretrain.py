"""MMPretrain's classifiers: there, back, and with what they compute."""

import mindspore as ms
import numpy as np
import pytest
import torch

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import format_table, verify
from mindtwins.errors import UserError
from mindtwins.reference.mmpretrain import create_mmpretrain_reference
from mindtwins.reference.weights import amplify, randomize
from mindtwins.tasks import KINDS

DIALECTS = {
    "svt_tiny": {
        "window_padding": "mask",
        "patch_rounding": "ceil",
        "block_epsilon": 1e-5,
        "embed_epsilon": 1e-5,
    },
    "pcpvt_small": {
        "window_padding": "mask",
        "patch_rounding": "ceil",
        "block_epsilon": 1e-6,
        "embed_epsilon": 1e-5,
        "sr_epsilon": 1e-6,
    },
}


def reference(name="svt_tiny", classes=7, **options):
    return randomize(create_mmpretrain_reference(name, classes, **options), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
def test_is_recognized_with_its_dialect(save, name):
    state = reference(name).state_dict()
    conversion = from_torch(read_source(save({"state_dict": state, "meta": {}})), KINDS)
    metadata = conversion.metadata
    assert (metadata["task"], metadata["variant"]) == ("classification", name)
    assert (metadata["num_classes"], metadata["source"]["layout"]) == (7, "mmpretrain")
    assert metadata["dialect"] == DIALECTS[name]
    assert conversion.account.used.keys() == state.keys()
    for ours, theirs in {
        "blocks.1.1.attn.kv.weight": "backbone.stages.1.1.attn.kv.weight",
        "norm.beta": "backbone.norm_after_stage3.bias",
        "head.bias": "head.fc.bias",
    }.items():
        np.testing.assert_array_equal(conversion.tensors[ours], state[theirs].numpy())


@pytest.mark.parametrize("change", [{}, {"in_channels": 1}, {"classes": 0}])
def test_goes_back_bit_for_bit(save, tmp_path, pt2ms, ms2pt, change):
    state = reference(**change).state_dict()
    pt2ms("--pt_path", save(state), "--ckpt_path", tmp_path / "x.ckpt")
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"]["dataset_meta"]["classes"] == back["meta"]["CLASSES"]
    assert back["state_dict"].keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back["state_dict"][name], tensor), name


def test_official_weights_go_there(save, tiny_state, tmp_path, pt2ms, ms2pt):
    pt2ms("--pt_path", save(tiny_state), "--ckpt_path", tmp_path / "x.ckpt")
    target = tmp_path / "back.pth"
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", target, "--layout", "mmpretrain")
    found = torch.load(target, weights_only=True)["state_dict"]
    create_mmpretrain_reference("svt_tiny", 10).load_state_dict(found, strict=True)
    assert torch.equal(found["head.fc.weight"], tiny_state["head.weight"])


def test_norms_after_other_stages_are_refused(save):
    state = reference().state_dict() | {"backbone.norm_after_stage0.weight": torch.ones(32)}
    with pytest.raises(UserError, match=r"no use for backbone\.norm_after_stage0\.weight$"):
        from_torch(read_source(save(state)), KINDS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix"), [("svt_tiny", ""), ("pcpvt_small", "model.")])
def test_verification(save, tmp_path, pt2ms, capsys, name, prefix):
    state = {f"{prefix}{n}": t for n, t in reference(name).state_dict().items()}
    path = save({"state_dict": state})
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt", "--verify")
    assert capsys.readouterr().out.count("  ok\n") == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", [{"block_epsilon": 1e-6}, {"embed_epsilon": 1e-6}, {"sr_epsilon": 1e-6}]
)
def test_a_wrong_epsilon_fails_the_verification(save, tmp_path, mistake):
    source = read_source(save(reference().state_dict()))
    conversion = from_torch(source, KINDS)
    conversion.metadata["dialect"] |= mistake
    save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
    rows = verify(tmp_path / "x.ckpt", source, KINDS, conversion)
    assert not rows[-1].passed, format_table(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
def test_computes_the_same_at_sizes_that_fill_no_windows(save, tmp_path, pt2ms, name):
    """Where padding shows, with weights that bring out the epsilons."""
    model = amplify(reference(name))
    pt2ms("--pt_path", save(model.state_dict()), "--ckpt_path", tmp_path / "x.ckpt")
    found = mindtwins.create_model(name, 7, ckpt_path=tmp_path / "x.ckpt")
    images = np.random.default_rng(0).standard_normal((1, 3, 99, 163)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    logits = found(ms.Tensor(images)).asnumpy()
    assert abs(logits - expected).max() / expected.std() < 1e-5


def test_a_dropped_head_is_zeros(save, tmp_path, pt2ms):
    path = save(reference().state_dict())
    pt2ms("--pt_path", path, "--ckpt_path", tmp_path / "x.ckpt", "--drop_head", "--num_classes", 3)
    checkpoint = load_checkpoint(tmp_path / "x.ckpt")
    assert checkpoint.tensors["head.weight"].shape == (3, 128)
    assert not checkpoint.tensors["head.weight"].any()
