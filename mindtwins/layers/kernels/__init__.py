"""C++ kernels for the CPU, built at installation where there is a compiler.

`operators` holds MindSpore primitives that call them; without the library, or on a processor it
was not compiled for, layers use their plain formulation, and `status` says why.
"""

from mindtwins.layers.kernels.loading import available, status
from mindtwins.layers.kernels.operators import (
    add_bias,
    bias_gelu,
    conv3x3,
    cross_entropy,
    depthwise,
    gather_patches,
    global_attention,
    layer_norm,
    moments,
    normalize,
    resize_bilinear,
    scale,
    sum_of_squares,
    swap_axes,
    window_attention,
)

__all__ = [
    "add_bias",
    "available",
    "bias_gelu",
    "conv3x3",
    "cross_entropy",
    "depthwise",
    "gather_patches",
    "global_attention",
    "layer_norm",
    "moments",
    "normalize",
    "resize_bilinear",
    "scale",
    "status",
    "sum_of_squares",
    "swap_axes",
    "window_attention",
]
