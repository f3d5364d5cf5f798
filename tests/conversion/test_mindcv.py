"""Files of MindCV's port: typed here are the names and the order that its code writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

import mindtwins
from mindtwins.checkpoint import load_checkpoint
from mindtwins.config import InferConfig
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.tasks import KINDS, create_task

# Parameters of a block in the order in which the port's cells create them.
LOCAL = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.qkv", "attn.proj")
GLOBAL = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.q", "attn.kv", "attn.proj")
PCPVT = ("norm1", "attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm", "norm2")
REDUCTION = ("attn.sr", "attn.norm")
STAGES = range(4)


def modules(depths: tuple[int, ...], family: str, lists: str) -> Iterator[tuple[str, str]]:
    """The port's name of each module in its order, and the official one.

    Stages are lists of a block, the position encoding, and the other blocks; MindSpore 2.0 and 2.10
    name the first list as the list of lists (`lists`).
    """
    for k in STAGES:
        yield f"patch_embeds.{k}.proj", f"patch_embeds.{k}.proj"
        yield f"patch_embeds.{k}.norm", f"patch_embeds.{k}.norm"
    yield "norm", "norm"
    yield "head", "head"
    stages = [lists if k == 0 else f"{lists}.{k}" for k in STAGES]
    for k in STAGES:
        yield f"{stages[k]}.1.proj.0", f"pos_block.{k}.proj.0"
    for k in STAGES:
        for j in range(depths[k]):
            reduces = REDUCTION if k < 3 else ()
            if family == "svt":
                inner = LOCAL if j % 2 == 0 else (*GLOBAL, *reduces)
            else:
                inner = [part for part in PCPVT if k < 3 or part not in REDUCTION]
                inner = [*inner, "mlp.fc1", "mlp.fc2"]
            for part in inner:
                yield f"{stages[k]}.{j + (j > 0)}.{part}", f"blocks.{k}.{j}.{part}"


def in_the_ports_order(
    state: dict[str, torch.Tensor], depths: tuple[int, ...], family: str, lists: str = "0"
) -> dict[str, np.ndarray]:
    """The official weights as MindCV's converted files have them."""
    found = {}
    for theirs, official in modules(depths, family, lists):
        is_norm = official.split(".")[-1].startswith("norm")
        for leaf, name in zip(("weight", "bias"), ("gamma", "beta"), strict=True):
            tensor = state[f"{official}.{leaf}"]
            found[f"{theirs}.{name if is_norm else leaf}"] = tensor.numpy()
    assert len(found) == len(state)
    return found


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    ms.save_checkpoint([{"name": n, "data": Tensor(a)} for n, a in arrays.items()], str(path))
    return path


TINY = ((1, 2, 2, 1), "svt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "depths", "family", "lists"),
    [
        ("svt_tiny", *TINY, "0"),
        ("svt_tiny", *TINY, "merge_blocks"),
        ("pcpvt_small", (3, 4, 6, 3), "pcpvt", "0"),
    ],
)
def test_the_weights_are_the_official_ones(tmp_path, save, variant, depths, family, lists):
    state = randomize(create_reference(variant, num_classes=7), seed=1).state_dict()
    arrays = in_the_ports_order(state, depths, family, lists)
    found = from_torch(read_source(write(tmp_path / "old.ckpt", arrays)), KINDS)
    expected = from_torch(read_source(save(state)), KINDS)
    assert found.metadata["variant"] == variant
    assert found.metadata["source"]["layout"] == "mindcv"
    assert found.metadata["dialect"] == expected.metadata["dialect"]
    assert list(found.tensors) == list(expected.tensors)
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array, strict=True)


@pytest.fixture
def arrays(tiny_state) -> dict[str, np.ndarray]:
    return in_the_ports_order(tiny_state, *TINY)


@pytest.mark.slow
def test_converted_verified_and_what_is_told(tmp_path, arrays, pt2ms, capsys):
    source = write(tmp_path / "old.ckpt", arrays)
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "new.ckpt", "--verify")
    said = capsys.readouterr().out
    assert "which tensor is which was told by their order" in said
    assert "GELU's tanh approximation and epsilon 1e-07 (not 1e-05)" in said
    assert "names of the mindcv code; the model computes with" in said
    assert load_checkpoint(tmp_path / "new.ckpt").metadata["dialect"]["embed_epsilon"] == 1e-5


def test_and_back_in_official_names(tmp_path, arrays, tiny_state, pt2ms, ms2pt):
    pt2ms("--pt_path", write(tmp_path / "old.ckpt", arrays), "--ckpt_path", tmp_path / "new.ckpt")
    ms2pt("--ckpt_path", tmp_path / "new.ckpt", "--pt_path", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth")
    assert back.keys() == tiny_state.keys()
    assert all(torch.equal(back[name], tiny_state[name]) for name in back)
    with pytest.raises(UserError, match="choose from"):
        ms2pt(
            *("--ckpt_path", tmp_path / "new.ckpt", "--pt_path", tmp_path / "back.pth"),
            *("--layout", "mindcv"),
        )


def test_as_pretrained(tmp_path, arrays, monkeypatch, told):
    monkeypatch.setenv("MINDTWINS_CACHE", str(tmp_path / "converted"))
    source = write(tmp_path / "old.ckpt", arrays)
    for time in (1, 2):  # made, and kept
        model = mindtwins.create_model("svt_tiny", pretrained=source)
        np.testing.assert_array_equal(model.head.bias.asnumpy(), arrays["head.bias"])
        assert len([text for text in told() if "tanh approximation" in text]) == time


def test_without_a_head(tmp_path, arrays):
    del arrays["head.weight"], arrays["head.bias"]
    conversion = from_torch(read_source(write(tmp_path / "old.ckpt", arrays)), KINDS)
    assert conversion.metadata["num_classes"] == 0


def swapped(arrays: dict, first: str, second: str) -> dict:
    """The same with two parameters in each other's place."""
    names = {first: second, second: first}
    return {names.get(name, name): arrays[names.get(name, name)] for name in arrays}


def test_what_does_not_fit_is_refused(tmp_path, arrays):
    some = list(arrays)
    for change in (
        {name: arrays[name] for name in some[:-1]},
        {name: arrays[name] for name in reversed(some)},
        swapped(arrays, "0.0.norm1.gamma", "0.0.norm2.gamma"),  # of the same shape
        swapped(arrays, "norm.gamma", "norm.beta"),
        arrays | {"more": np.ones(3, np.float32)},
    ):
        path = write(tmp_path / "old.ckpt", change)
        with pytest.raises(UserError, match="is no Twins checkpoint"):
            from_torch(read_source(path), KINDS)
        path.chmod(0o600)


def test_unconverted_it_is_refused_with_advice(tmp_path, arrays):
    path = write(tmp_path / "old.ckpt", arrays)
    with pytest.raises(UserError, match=r"has to be converted first, with mindtwins convert"):
        create_task(InferConfig(ckpt_path=str(path)))
