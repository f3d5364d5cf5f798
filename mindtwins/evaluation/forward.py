"""A model's graph for evaluation."""

from __future__ import annotations

from mindspore import Tensor, nn


class Forward(nn.Cell):
    """A graph of its own, so that compiling for evaluation never touches the training step's."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return self.model(images)
