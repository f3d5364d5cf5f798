"""Graphs of the shapes seen last."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from mindtwins.serving import service
from mindtwins.serving.service import Compiled, Prepared


def test_what_may_be_computed_together():
    def kind(*shapes: tuple[int, ...], size: tuple[int, int] | None = None):
        return Prepared(tuple(np.zeros(shape, np.float32) for shape in shapes), size).kind

    assert kind((3, 4, 5)) == kind((3, 4, 5)) != kind((3, 5, 4))
    assert kind((3, 4, 5), size=(8, 10)) == kind((3, 4, 5), size=(8, 10))
    assert kind((3, 4, 5), size=(8, 10)) != kind((3, 4, 5), size=(8, 11))
    assert kind((3, 4, 5), (3, 2, 2)) != kind((3, 4, 5))
    assert hash(kind((3, 4, 5))) == hash(kind((3, 4, 5)))


def test_the_graphs_of_old_shapes_are_given_up(monkeypatch: pytest.MonkeyPatch):
    """Each shape has its own graph, made once, and those not used for longest go first."""
    made: list[weakref.ref] = []

    class Graph:
        def __init__(self, model):
            self.model = model
            made.append(weakref.ref(self))

        def start(self):
            self.is_started = True

        def __call__(self, images):
            assert self.is_started
            return self.model(images)

    monkeypatch.setattr(service, "Inference", Graph)
    compiled = Compiled(lambda images: images + 1, at_most=2)
    for side in (1, 2, 1, 3, 1, 2):
        images = np.full((1, 3, side, side), side, np.float32)
        np.testing.assert_array_equal(compiled(images), images + 1)
    gc.collect()
    # 1, 2, then 3 in the place of 2, which is made again in the place of 3.
    assert [reference() is None for reference in made] == [False, True, True, False]
