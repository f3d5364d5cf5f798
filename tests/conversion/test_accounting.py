import re

import numpy as np
import pytest
import torch

from mindtwins.conversion.accounting import AccountError, is_finite, match_parameters, widen
from mindtwins.tensor_files import BFLOAT16

SHAPES = {"x.gamma": (3,), "y.weight": (2, 3)}
NAMES = {"y.w": ("y.weight",), "x.w": ("x.gamma",)}


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        "y.w": random.standard_normal((2, 3)).astype(np.float32),
        "x.w": random.standard_normal(3).astype(np.float32),
    }


def test_fills_every_parameter_in_the_models_order(tensors):
    filled, account = match_parameters(tensors, NAMES, SHAPES)
    assert list(filled) == list(SHAPES)
    np.testing.assert_array_equal(filled["x.gamma"], tensors["x.w"])
    np.testing.assert_array_equal(filled["y.weight"], tensors["y.w"])
    assert account.used == {"x.w": ("x.gamma",), "y.w": ("y.weight",)}
    assert (account.ignored, account.widened, account.filled) == ({}, {}, {})


def test_does_not_copy_what_it_can_use(tensors):
    filled, _ = match_parameters(tensors, NAMES, SHAPES)
    assert np.shares_memory(filled["y.weight"], tensors["y.w"])


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({}, {"y.w": ("y.weight",)}, "^lacks x.gamma$"),
        ({"z": np.ones(1, "f4")}, {"z": ()}, "^has no use for z$"),
        ({"z": np.ones(1, "f4")}, {"z": ("z.weight",)}, "^has no use for z$"),
        ({"x.w": np.ones((3, 1), "f4")}, {}, r"x\.w \(3, 1\) instead of \(3,\)$"),
        ({"x.w": np.ones(3, "f8")}, {}, r"unexpected dtype for x\.w \(float64, not float32"),
        ({"x.w": np.ones(3, "i4")}, {}, r"unexpected dtype for x\.w \(int32"),
        ({"x.w": np.array([1, np.nan, 1], "f4")}, {}, r"^has infinite or NaN values in x\.w$"),
        ({"y.w": np.full((2, 3), -np.inf, "f2")}, {}, r"^has infinite or NaN values in y\.w$"),
    ],
)
def test_names_what_does_not_add_up(tensors, change, names, message):
    names = names if len(change) == 0 else NAMES | names
    with pytest.raises(AccountError, match=message):
        match_parameters(tensors | change, names, SHAPES)


class TestStackedTensors:
    """One tensor of the source holds several parameters, row after row."""

    names = {"all.w": ("q.weight", "kv.weight"), "x.w": ("x.gamma",)}  # noqa: RUF012
    shapes = {"x.gamma": (3,), "q.weight": (2, 3), "kv.weight": (4, 3)}  # noqa: RUF012

    def test_are_split_in_order(self, tensors):
        rows = np.arange(18, dtype=np.float32).reshape(6, 3)
        filled, account = match_parameters(
            {"all.w": rows, "x.w": tensors["x.w"]}, self.names, self.shapes
        )
        np.testing.assert_array_equal(filled["q.weight"], rows[:2])
        np.testing.assert_array_equal(filled["kv.weight"], rows[2:])
        assert list(filled) == list(self.shapes)
        assert account.used == {"x.w": ("x.gamma",), "all.w": ("q.weight", "kv.weight")}
        assert all(array.flags.c_contiguous for array in filled.values())

    @pytest.mark.parametrize("shape", [(5, 3), (6, 4), (18,), ()])
    def test_have_the_shape_of_all_parts(self, tensors, shape):
        tensors = {"all.w": np.ones(shape, np.float32), "x.w": tensors["x.w"]}
        with pytest.raises(
            AccountError, match=rf"all\.w {re.escape(str(shape))} instead of \(6, 3"
        ):
            match_parameters(tensors, self.names, self.shapes)

    def test_are_of_no_use_if_a_part_has_no_place(self, tensors):
        shapes = {name: shape for name, shape in self.shapes.items() if name != "kv.weight"}
        tensors = {"all.w": np.ones((6, 3), np.float32), "x.w": tensors["x.w"]}
        with pytest.raises(AccountError, match=r"^has no use for all\.w$"):
            match_parameters(tensors, self.names, shapes)


def test_reports_all_problems_at_once(tensors):
    with pytest.raises(AccountError) as caught:
        match_parameters(tensors | {"z": np.ones(1)}, {"y.w": ("y.weight",), "z": ()}, SHAPES)
    assert str(caught.value) == "lacks x.gamma; it has no use for z"


def test_states_the_widening(tensors):
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    filled, account = match_parameters(tensors | {"x.w": half["x.w"]}, NAMES, SHAPES)
    assert account.widened == {"x.w": "float16"}
    assert filled["x.gamma"].dtype == np.float32
    np.testing.assert_array_equal(filled["x.gamma"], half["x.w"])


def test_widens_every_bfloat16_and_float16_exactly():
    """All 65536 bit patterns against torch's conversion; NaNs as NaNs."""
    bits = np.arange(2**16, dtype=np.uint16)
    brain = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widen(bits.view(BFLOAT16)), brain)
    half = torch.from_numpy(bits.view(np.float16)).float().numpy()
    np.testing.assert_array_equal(widen(bits.view(np.float16)), half)
    transposed = bits.reshape(256, 256).T.view(BFLOAT16)
    np.testing.assert_array_equal(widen(transposed), brain.reshape(256, 256).T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_finds_one_value_that_is_not_finite(value):
    array = np.ones((50, 70), np.float32)
    assert is_finite(array)
    array[33, 44] = value
    assert not is_finite(array)


def test_large_values_are_finite():
    """Their squares overflow."""
    assert is_finite(np.full((3, 3), np.finfo(np.float32).max))
