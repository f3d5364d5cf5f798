"""The verification itself: a sound conversion passes, and each known mistake fails it."""

import numpy as np
import pytest
from mindspore import nn, ops

from mindtwins.checkpoint import load_into, save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import Comparison, format_table, verify
from mindtwins.models import twins
from mindtwins.tasks import KINDS


@pytest.fixture
def verified(tmp_path, tiny_state, save):
    """Converts svt_tiny, lets a test spoil the tensors or the metadata, and verifies the file."""

    def verified(spoil=lambda tensors, metadata: None, **options):
        source = read_source(save(tiny_state))
        conversion = from_torch(source, KINDS, **options)
        spoil(conversion.tensors, conversion.metadata)
        save_checkpoint(tmp_path / "x.ckpt", conversion.tensors, conversion.metadata)
        return verify(tmp_path / "x.ckpt", source, KINDS, conversion)

    return verified


@pytest.fixture(scope="module")
def compiled():
    """A model that compares a file, as `KINDS` builds it; the same one for the next file."""
    original = type(KINDS["classification"]).outputs
    built = []

    def outputs(kind, checkpoint):
        if not built:
            built.append(original(kind, checkpoint))
        load_into(built[0], checkpoint)
        return built[0]

    return outputs


@pytest.fixture
def compiled_once(compiled, monkeypatch):
    """For files whose model is the same but for its weights: compiling it is what takes time."""
    monkeypatch.setattr(type(KINDS["classification"]), "outputs", compiled)


@pytest.mark.slow
def test_a_sound_conversion_passes(compiled_once, verified):
    rows = verified()
    assert [(row.weights, row.stage) for row in rows] == [
        (weights, stage)
        for weights in ("as converted", "amplified")
        for stage in ("stage1", "stage2", "stage3", "stage4", "logits")
    ]
    assert all(row.passed for row in rows), format_table(rows)
    # Rounding on both sides, not a comparison of a thing with itself.
    assert all(1e-8 < row.relative_l2 < 2e-6 for row in rows)


def block_epsilon(tensors, metadata):
    metadata["dialect"]["block_epsilon"] = 1e-5


@pytest.mark.slow
def test_an_epsilon_fails_on_amplified_weights(verified):
    rows = verified(block_epsilon)
    assert not any(row.passed for row in rows if row.weights == "amplified"), format_table(rows)


def embed_epsilon(tensors, metadata):
    metadata["dialect"]["embed_epsilon"] = 1e-7


def swapped_keys_and_values(tensors, metadata):
    for name in tensors:
        if ".attn.kv." in name:
            keys, values = np.split(tensors[name], 2)
            tensors[name] = np.concatenate([values, keys])


def wrong_head_order(tensors, metadata):
    """Heads fastest instead of slowest in the queries of the last stage's three heads."""
    weight = tensors["blocks.2.1.attn.q.weight"]
    tensors["blocks.2.1.attn.q.weight"] = (
        weight.reshape(3, -1, weight.shape[1]).swapaxes(0, 1).reshape(weight.shape).copy()
    )


def one_small_change(tensors, metadata):
    bias = tensors["blocks.3.0.mlp.fc2.bias"].copy()
    bias[17] += 1e-3
    tensors["blocks.3.0.mlp.fc2.bias"] = bias


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [swapped_keys_and_values, wrong_head_order, one_small_change])
def test_a_wrong_file_fails(compiled_once, verified, mistake):
    rows = verified(mistake)
    assert not rows[-1].passed, format_table(rows)


@pytest.mark.slow
def test_another_epsilon_of_the_embeddings_fails(verified):
    rows = verified(embed_epsilon)
    assert not rows[-1].passed, format_table(rows)


class NoIdentity(twins.PositionEncoding):
    def construct(self, x):
        return self.proj[0](x)


class DenseTanhGELU(nn.Dense):
    def construct(self, x):
        return ops.gelu(super().construct(x), approximate="tanh")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "mistake"), [("PositionEncoding", NoIdentity), ("DenseGELU", DenseTanhGELU)]
)
def test_a_wrong_model_fails(verified, monkeypatch, part, mistake):
    monkeypatch.setattr(twins, part, mistake)
    rows = verified()
    assert not rows[-1].passed, format_table(rows)


@pytest.mark.slow
def test_a_new_head_is_left_out_of_the_comparison(verified):
    rows = verified(num_classes=3, drop_head=True)
    assert all(row.passed for row in rows), format_table(rows)
    assert len(rows) == 10


def comparison(**values):
    sound = {"max_abs": 1e-6, "relative_l2": 1e-7}
    return Comparison("x", "logits", **(sound | values), max_abs_floor=1e-6, relative_l2_floor=1e-7)


def test_both_measures_have_to_be_within_the_limit():
    assert comparison().passed
    assert not comparison(max_abs=1e-5).passed
    assert not comparison(relative_l2=1e-6).passed
    assert not comparison(relative_l2=float("nan")).passed


def test_the_table_has_a_line_per_comparison():
    table = format_table([comparison(), comparison(max_abs=1e-5)]).splitlines()
    assert len(table) == 3
    assert table[1].split() == ["x", "logits", "1.0e-06", "4.0e-06", "1.0e-07", "4.0e-07", "ok"]
    assert table[2].endswith("FAILED")
