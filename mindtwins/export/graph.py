"""A graph of operators that grows node by node, in the words of ONNX and without its library.

Equal nodes are one node: what a stage asks again and again (how many rows its windows need, say)
is computed once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# ONNX's names of the operators that a Length has.
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Mod": operator.mod,
}

_SIDES = ("channels", "height", "width")


@dataclass(frozen=True)
class Node:
    """An operator with the names of what it takes and gives."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: as users call it.
        shape: for each axis a number, or what a length is called that is known only on running.
        dtype: as NumPy calls it.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass
class Graph:
    """Nodes in the order in which they run, and the arrays that they use.

    Attributes:
        tensors: the checkpoint's, by name.
        inputs: what the graph takes.
        outputs: what it gives, by the name of the value.
        nodes: so far.
        arrays: of those nodes, by name: weights and constants.
    """

    tensors: Mapping[str, np.ndarray]
    inputs: list[Port] = field(default_factory=list)
    outputs: dict[str, Port] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _known: dict[tuple, tuple[str, ...]] = field(default_factory=dict)
    _constants: dict[tuple, str] = field(default_factory=dict)
    _scope: str = ""

    def add(self, name: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator and return what its output is called."""
        return self.add_many(1, name, *inputs, **attributes)[0]

    def add_many(self, count: int, name: str, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """The same for an operator of several outputs."""
        key = (count, name, inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            number = len(self.nodes)
            called = f"{self._scope}{name}_{number}"
            outputs = tuple(f"{called}_{i}" for i in range(count)) if count > 1 else (called,)
            self.nodes.append(Node(name, inputs, outputs, attributes))
            self._known[key] = outputs
        return self._known[key]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes that are added within are called after a part of the model."""
        before, self._scope = self._scope, f"{name}/"
        try:
            yield
        finally:
            self._scope = before

    def weight(self, name: str, transposed: bool = False) -> str:
        """One of the checkpoint's tensors."""
        array = self.tensors[name]
        self.arrays[name] = np.ascontiguousarray(array.T if transposed else array)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Numbers; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.arrays[self._constants[key]] = array
        return self._constants[key]

    def output(self, value: str, name: str, *sides: Length | int) -> None:
        """Give a value, of as many rows as there are images, to the user.

        Sides that are known only when the graph runs are called after it.
        """
        shape = [self.inputs[0].shape[0]]
        for axis, side in enumerate(sides):
            length = side.value if isinstance(side, Length) else side
            shape.append(f"{name}_{_SIDES[axis]}" if isinstance(length, str) else length)
        self.outputs[value] = Port(name, tuple(shape))

    def lengths(self, x: str, *axes: int) -> tuple[Length, ...]:
        """How long axes are, as far as it is known only when the graph runs."""
        shape = self.add("Shape", x)
        return tuple(
            Length(self, self.add("Gather", shape, self.constant([axis]), axis=0)) for axis in axes
        )

    def shape(self, *sides: Length | int) -> str:
        """An int64 vector of sides; as `Reshape` has it, 0 is as before and -1 what is left."""
        values = [side.value if isinstance(side, Length) else side for side in sides]
        if not any(isinstance(value, str) for value in values):
            return self.constant(values)
        parts = [v if isinstance(v, str) else self.constant([v]) for v in values]
        return self.add("Concat", *parts, axis=0)


@dataclass(frozen=True)
class Length:
    """A side of a map: a number, or the name of one that is known only when the graph runs.

    It is computed with as numbers are; `//` is for what is not negative.
    """

    graph: Graph = field(compare=False, repr=False)
    value: int | str

    @property
    def is_zero(self) -> bool:
        """Whether it is known to be 0."""
        return self.value == 0

    @property
    def name(self) -> str:
        """As an int64 vector of one number."""
        return self.value if isinstance(self.value, str) else self.graph.constant([self.value])

    def __add__(self, other: Length | int) -> Length:
        return self._combine("Add", other)

    def __sub__(self, other: Length | int) -> Length:
        return self._combine("Sub", other)

    def __mul__(self, other: Length | int) -> Length:
        return self._combine("Mul", other)

    def __floordiv__(self, other: Length | int) -> Length:
        return self._combine("Div", other)

    def __mod__(self, other: Length | int) -> Length:
        return self._combine("Mod", other)

    def __neg__(self) -> Length:
        return Length(self.graph, 0) - self

    def _combine(self, name: str, other: Length | int) -> Length:
        right = other if isinstance(other, Length) else Length(self.graph, other)
        if isinstance(self.value, int) and isinstance(right.value, int):
            return Length(self.graph, _ARITHMETIC[name](self.value, right.value))
        return Length(self.graph, self.graph.add(name, self.name, right.name))
