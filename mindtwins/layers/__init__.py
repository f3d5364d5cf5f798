"""Operations with torch's defaults, and the only code that knows the device.

Tokens are channels-last, (B, H, W, C). A layer offers an operation under its usual name and picks,
when it is built, the formulation that suits the device (see `device.py`); parameters have torch's
names and shapes whichever formulation computes with them.
"""

from mindtwins.layers.activation import GELU
from mindtwins.layers.attention import (
    CrossAttention,
    WindowAttention,
    attend,
    merge_heads,
    merge_windows,
    partition_windows,
    split_heads,
)
from mindtwins.layers.convolution import DepthwiseConv3x3, PatchConv
from mindtwins.layers.device import formulation, use_formulation
from mindtwins.layers.linear import Dense
from mindtwins.layers.normalization import LayerNorm
from mindtwins.layers.padding import crop_top_left, pad_bottom_right
from mindtwins.layers.residual import add_branch, draw_keep

__all__ = [
    "GELU",
    "CrossAttention",
    "Dense",
    "DepthwiseConv3x3",
    "LayerNorm",
    "PatchConv",
    "WindowAttention",
    "add_branch",
    "attend",
    "crop_top_left",
    "draw_keep",
    "formulation",
    "merge_heads",
    "merge_windows",
    "pad_bottom_right",
    "partition_windows",
    "split_heads",
    "use_formulation",
]
