"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

_assign = ops.MultitypeFuncGraph("assign")
_average = ops.MultitypeFuncGraph("average")


@_average.register("Float", "Tensor", "Tensor")
def _average_one(decay, average, parameter):
    return ops.assign(average, average * decay + parameter * (1 - decay))


@_assign.register("Tensor", "Tensor")
def _assign_one(parameter, value):
    return ops.assign(parameter, value)


class MovingAverage(nn.Cell):
    """After each step `average = decay * average + (1 - decay) * weight`, from the first weights.

    The averages are parameters named `ema.<name of the weight>`.
    """

    def __init__(self, model: nn.Cell, decay: float) -> None:
        super().__init__(auto_prefix=False)  # the weights keep their names
        self.weights = ParameterTuple(model.get_parameters())
        self.averages = self.weights.clone("ema", "same")
        self.decay = decay
        self.map = ops.HyperMap()
        self._set_weights = _SetWeights(self.weights)

    def construct(self) -> None:
        """Take in the weights of a new step."""
        self.map(ops.partial(_average, self.decay), self.averages, self.weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averages as its weights for a while."""
        weights = _copies(self.weights)
        try:
            self._set_weights(_copies(self.averages))
            yield
        finally:
            self._set_weights(weights)


class _SetWeights(nn.Cell):
    """Sets weights inside a graph.

    `Parameter.set_data` would give a parameter new memory, while graphs that were compiled before
    go on training the old.
    """

    def __init__(self, weights: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.weights = weights
        self.map = ops.HyperMap()

    def construct(self, values: tuple[Tensor, ...]) -> None:
        self.map(_assign, self.weights, values)


def _copies(parameters: ParameterTuple) -> tuple[Tensor, ...]:
    # Mutable: otherwise the tensors would become constants of the graph.
    return ms.mutable(tuple(Tensor(parameter.asnumpy().copy()) for parameter in parameters))
