"""Graphs of operators, and lengths that may be known only when they run."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest

from mindtwins.export.graph import Graph, Length, Port
from mindtwins.export.onnx_file import build_model
from mindtwins.export.operations import Map, average_pool, images


def pads_and_windows(side: Length) -> list[Length]:
    pad = -side % 7
    return [pad, (side + pad) // 7, (side - 1) * 2]


def test_lengths_are_what_numbers_are():
    """Known beforehand and found by the graph alike."""
    graph = Graph({}, inputs=[Port("x", ("height",))])
    (side,) = graph.lengths("x", 0)
    for number, length in enumerate(pads_and_windows(side)):
        graph.output(length.name, f"y{number}")
    for port in graph.outputs.values():
        object.__setattr__(port, "dtype", "int64")
        object.__setattr__(port, "shape", (1,))
    session = onnxruntime.InferenceSession(build_model(graph).SerializeToString())
    for size in (1, 6, 7, 8, 55, 56):
        found = session.run(None, {"x": np.zeros(size, np.float32)})
        known = pads_and_windows(Length(graph, size))
        pad = (7 - size % 7) % 7
        assert [length.value for length in known] == [pad, (size + pad) // 7, 2 * size - 2]
        assert [value.item() for value in found] == [length.value for length in known]


def test_equal_nodes_and_constants_are_one():
    graph = Graph({})
    first = graph.add("Add", "x", graph.constant(1.5, np.float32))
    assert graph.add("Add", "x", graph.constant(1.5, np.float32)) == first
    assert graph.add("Add", "x", graph.constant(1.5, np.float64)) != first
    assert graph.add("Softmax", "x", axis=0) != graph.add("Softmax", "x", axis=1)
    assert len(graph.nodes) == 4 and len(graph.arrays) == 2


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_average_pool_is_torch_s(bins: int):
    import torch

    graph = Graph({})
    pooled = average_pool(graph, images(graph, None, 3, None), bins)
    graph.output(pooled.value, "y", 3, bins, bins)
    session = onnxruntime.InferenceSession(build_model(graph).SerializeToString())
    rng = np.random.default_rng(0)
    for height, width in itertools.product((1, 6, 7, 16), (2, 5, 12)):
        x = rng.normal(size=(2, 3, height, width)).astype(np.float32)
        expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), bins).numpy()
        (found,) = session.run(None, {"images": x})
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_maps_of_known_sides_need_no_padding_nodes():
    graph = Graph({})
    x = images(graph, 1, 3, 224)
    assert isinstance(x, Map) and (x.height.value, x.width.value) == (224, 224)
    assert graph.inputs == [Port("images", (1, 3, 224, 224))] and not graph.nodes
