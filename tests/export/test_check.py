"""Comparing what a file computes with the live model."""

from __future__ import annotations

import numpy as np
import pytest

from mindtwins.export.check import Case, compare

IMAGES = np.zeros((2, 3, 32, 32), np.float32)


def rows(live: np.ndarray, found: np.ndarray) -> list:
    return compare("x", lambda images: [found], [Case(IMAGES, (live,))], ["logits"], 1e-5)


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (9e-6, True), (2e-5, False)])
def test_a_deviation_is_measured_in_those_of_the_output(off: float, passes: bool):
    live = np.array([[-3.0, 3.0], [3.0, -3.0]])  # of standard deviation 3
    (row,) = rows(live, live + 3 * off)
    assert row.passed == passes and row.deviation == pytest.approx(off)


def test_what_is_the_same_everywhere_is_compared_as_it_is():
    """As a head of zeros gives."""
    zeros = np.zeros((2, 4))
    assert rows(zeros, zeros)[0].passed
    assert not rows(zeros, zeros + 1e-4)[0].passed


def test_other_shapes_and_no_numbers_fail():
    assert not rows(np.ones((2, 4)), np.ones((2, 3)))[0].passed
    assert not rows(np.arange(8.0).reshape(2, 4), np.full((2, 4), np.nan))[0].passed
