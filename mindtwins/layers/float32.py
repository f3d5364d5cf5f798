"""What no level of precision makes compute in fp16."""

from __future__ import annotations

from mindspore import nn


class Float32Cell(nn.Cell):
    """A cell whose inputs are cast to float32 wherever the cells around it compute in fp16."""
