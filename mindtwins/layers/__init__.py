"""Operations with torch's defaults, and the only code that knows the device.

Tokens are channels-last, (B, H, W, C). A layer offers an operation under its usual name and picks,
when it is built, the formulation that suits the device (see `device.py`); parameters have torch's
names and shapes whichever formulation computes with them.
"""

from mindtwins.layers.activation import relu
from mindtwins.layers.attention import (
    CrossAttention,
    WindowAttention,
    attend,
    merge_heads,
    merge_windows,
    partition_windows,
    split_heads,
)
from mindtwins.layers.batch_norm import BatchNorm
from mindtwins.layers.convolution import DepthwiseConv3x3, PatchConv
from mindtwins.layers.dense_convolution import (
    CONVOLUTIONS,
    Conv1x1,
    Conv3x3,
    TransposedConv2x2,
)
from mindtwins.layers.device import decided_in_python, formulation, use_formulation
from mindtwins.layers.float32 import Float32Cell
from mindtwins.layers.linear import Dense, DenseGELU
from mindtwins.layers.normalization import LayerNorm
from mindtwins.layers.padding import crop_top_left, pad_bottom_right
from mindtwins.layers.rearrangement import channels_first, channels_last, subsample
from mindtwins.layers.reduction import sum_of_squares
from mindtwins.layers.residual import (
    add_branch,
    add_global_attention,
    add_mlp,
    add_mlp_to_learn,
    add_subsampled_attention,
    add_window_attention,
    can_join,
    draw_drop_path_mask,
    scale_channels,
)
from mindtwins.layers.resize import (
    adaptive_average_pool,
    resize_bilinear,
    resize_nearest,
    resized_cross_entropy,
)
from mindtwins.layers.roi_align import roi_align
from mindtwins.layers.suppression import suppress

__all__ = [
    "CONVOLUTIONS",
    "BatchNorm",
    "Conv1x1",
    "Conv3x3",
    "CrossAttention",
    "Dense",
    "DenseGELU",
    "DepthwiseConv3x3",
    "Float32Cell",
    "LayerNorm",
    "PatchConv",
    "TransposedConv2x2",
    "WindowAttention",
    "adaptive_average_pool",
    "add_branch",
    "add_global_attention",
    "add_mlp",
    "add_mlp_to_learn",
    "add_subsampled_attention",
    "add_window_attention",
    "attend",
    "can_join",
    "channels_first",
    "channels_last",
    "crop_top_left",
    "decided_in_python",
    "draw_drop_path_mask",
    "formulation",
    "merge_heads",
    "merge_windows",
    "pad_bottom_right",
    "partition_windows",
    "relu",
    "resize_bilinear",
    "resize_nearest",
    "resized_cross_entropy",
    "roi_align",
    "scale_channels",
    "split_heads",
    "subsample",
    "sum_of_squares",
    "suppress",
    "use_formulation",
]
