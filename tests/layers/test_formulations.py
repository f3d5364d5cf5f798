"""Every formulation of an operation gives torch's numbers and gradients."""

import mindspore as ms
import numpy as np
import pytest
import torch
from layer_checks import FORMULATIONS, check, copy, tokens
from mindspore import Tensor, nn, ops
from parity import assert_stages_agree, copy_weights, photographs

import mindtwins
from mindtwins import layers
from mindtwins.layers import kernels
from mindtwins.layers.device import use_kernel
from mindtwins.models.twins import ClassifierOutputs
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (11, 6), (9, 13)])
@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_patch_conv(formulation, kernel, size):
    with layers.use_formulation(formulation):
        layer = layers.PatchConv(3, 5, kernel)
    reference = torch.nn.Conv2d(3, 5, kernel, stride=kernel)
    copy(reference, layer)
    check(layer, reference, tokens(2, *size, 3), channels_first=True)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_depthwise_conv(formulation, size):
    with layers.use_formulation(formulation):
        layer = layers.DepthwiseConv3x3(6)
    reference = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    copy(reference, layer)
    check(layer, reference, tokens(2, *size, 6), channels_first=True)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_dense(formulation):
    with layers.use_formulation(formulation):
        layer = layers.Dense(6, 37)
    reference = torch.nn.Linear(6, 37)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 5, 6))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [6, 64, 100])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_layer_norm(formulation, epsilon, channels):
    with layers.use_formulation(formulation):
        layer = layers.LayerNorm(channels, epsilon)
    reference = torch.nn.LayerNorm(channels, eps=epsilon)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 5, channels))


class TorchLinearGELU(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(super().forward(x))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gelu_is_the_exact_one(formulation):
    with layers.use_formulation(formulation):
        layer = layers.DenseGELU(7, 19)
    reference = TorchLinearGELU(7, 19)
    copy(reference, layer)
    check(layer, reference, tokens(2, 30, 5, 7))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_logits_are_as_precise_as_a_product_can_be(formulation):
    """Sums of 512 terms, a few of them: a plain chain of additions would be off by 4e-7."""
    with layers.use_formulation(formulation):
        layer = layers.Dense(512, 1000)
    reference = torch.nn.Linear(512, 1000)
    copy(reference, layer)
    x = tokens(2, 512)
    with torch.no_grad():
        exact = reference.double()(torch.from_numpy(x).double()).numpy()
    error = layer(Tensor(x)).asnumpy() - exact
    assert error.std() < 2e-7 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [6, 1030])
@pytest.mark.parametrize("rows", [2, 16, 97, 98])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_dense_for_few_rows_and_many(formulation, rows, channels):
    with layers.use_formulation(formulation):
        layer = layers.Dense(channels, 21)
    reference = torch.nn.Linear(channels, 21)
    copy(reference, layer)
    check(layer, reference, tokens(rows, channels) / np.float32(4 * channels**0.5))


def test_linear_layer_in_a_graph_for_any_number_of_tokens():
    """Which of its products it takes depends on that number where it is known."""
    rng = np.random.default_rng(0)
    with layers.use_formulation("matmul"):
        layer = layers.Dense(24, 10)
    layer.set_inputs(Tensor(shape=[None, 24], dtype=ms.float32))
    weight, bias = layer.weight.asnumpy(), layer.bias.asnumpy()
    for rows in (3, 16, 97, 200):
        x = rng.normal(size=(rows, 24)).astype(np.float32)
        np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), x @ weight.T + bias, atol=1e-6)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gelu_far_out(formulation):
    """Saturation, and nothing swallowed: what is not a number stays so."""
    with layers.use_formulation(formulation):
        layer = layers.DenseGELU(1, 1)
    layer.weight.set_data(Tensor(np.ones((1, 1), np.float32)))
    x = np.array([[-1e30], [-100], [-10], [-6], [6], [10], [100], [1e30], [np.nan]], np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=2e-7, atol=1e-8)


@pytest.mark.skipif(not kernels.available(), reason=kernels.status())
def test_dense_refuses_other_channels():
    """A kernel that took them would write beyond its output."""
    with pytest.raises(ValueError, match="16 channels do not fit a weight of"):
        layers.Dense(8, 5)(Tensor(np.ones((10, 16), np.float32)))


class TorchWindowAttention(torch.nn.Module):
    """Each window by itself, in a loop."""

    def __init__(self, heads: int, side: int, mask: np.ndarray | None) -> None:
        super().__init__()
        self.heads, self.side, self.mask = heads, side, mask

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = qkv.shape
        out = torch.empty(batch, height, width, channels // 3, dtype=qkv.dtype)
        window = 0
        for top in range(0, height, self.side):
            for left in range(0, width, self.side):
                part = qkv[:, top : top + self.side, left : left + self.side]
                query, key, value = (
                    t.reshape(batch, self.side**2, self.heads, -1).transpose(1, 2)
                    for t in part.split(channels // 3, -1)
                )
                mask = None
                if self.mask is not None:
                    mask = torch.from_numpy(self.mask[0, window, 0]).to(qkv)
                result = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=mask
                )
                out[:, top : top + self.side, left : left + self.side] = result.transpose(
                    1, 2
                ).reshape(batch, self.side, self.side, -1)
                window += 1
        return out


class Masked(nn.Cell):
    def __init__(self, layer: nn.Cell, mask: np.ndarray | None) -> None:
        super().__init__()
        self.layer = layer
        self.mask = None if mask is None else Tensor(mask)

    def construct(self, x):
        return self.layer(x, self.mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "side", "depth"), [(1, 7, 64), (3, 7, 32), (2, 2, 5)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_window_attention(formulation, heads, side, depth, masked):
    with layers.use_formulation(formulation):
        layer = layers.WindowAttention(heads, side)
    mask = None
    if masked:
        mask = np.where(tokens(1, 6, 1, side**2, side**2) > 1, np.float32(-1000), np.float32(0))
    x = tokens(2, 2 * side, 3 * side, 3 * heads * depth)
    check(Masked(layer, mask), TorchWindowAttention(heads, side, mask), x)


class TorchCrossAttention(torch.nn.Module):
    """Queries and summary both taken from one tensor, so that one gradient covers them all."""

    def __init__(self, heads: int, summary: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.summary = heads, summary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape[0], x.shape[1], x.shape[2], x.shape[3] // 3
        rows, columns = self.summary

        def heads(part: torch.Tensor) -> torch.Tensor:
            return part.reshape(batch, -1, self.heads, channels // self.heads).transpose(1, 2)

        out = torch.nn.functional.scaled_dot_product_attention(
            heads(x[..., :channels]),
            heads(x[:, :rows, :columns, channels : 2 * channels]),
            heads(x[:, :rows, :columns, 2 * channels :]),
        )
        return out.transpose(1, 2).reshape(batch, height, width, channels)


class CrossAttentionOfOne(nn.Cell):
    def __init__(self, layer: nn.Cell, summary: tuple[int, int]) -> None:
        super().__init__()
        self.layer = layer
        self.summary = summary

    def construct(self, x):
        batch, height, width, channels = x.shape
        query = ops.slice(x, (0, 0, 0, 0), (batch, height, width, channels // 3))
        size = (batch, *self.summary, 2 * channels // 3)
        return self.layer(query, ops.slice(x, (0, 0, 0, channels // 3), size))


@pytest.mark.parametrize(
    ("heads", "depth", "size", "summary"),
    [(1, 64, (9, 8), (1, 1)), (2, 32, (14, 14), (7, 7)), (3, 5, (4, 5), (4, 5))],
)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_cross_attention(formulation, heads, depth, size, summary):
    with layers.use_formulation(formulation):
        layer = layers.CrossAttention(heads)
    x = tokens(2, *size, 3 * heads * depth)
    check(CrossAttentionOfOne(layer, summary), TorchCrossAttention(heads, summary), x)


@pytest.mark.slow
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ["svt_tiny", "pcpvt_small"])
def test_whole_model(formulation, name):
    """Stage by stage as the parity tests do, with each formulation."""
    reference = randomize(create_reference(name, num_classes=10, window_padding="mask"))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    with layers.use_formulation(formulation):
        cell = mindtwins.create_model(name, num_classes=10, window_padding="mask")
    copy_weights(reference, cell)
    assert_stages_agree(ClassifierOutputs(cell), reference, photographs(99, 67))


@pytest.mark.slow
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_half_precision_has_a_formulation_too(formulation):
    """The kernels are float32 only."""
    with layers.use_formulation(formulation):
        single = layers.DenseGELU(24, 4)
        cells = [
            (layers.DenseGELU(24, 4).to_float(ms.float16), 24),
            (layers.Dense(8, 4).to_float(ms.float16), 8),
            (layers.LayerNorm(8, 1e-5).to_float(ms.float16), 8),
            (layers.DepthwiseConv3x3(8), 8),
            (layers.WindowAttention(2, 2), 24),
        ]
    for cell, channels in cells:
        x = tokens(2, 4, 4, channels)
        half = cell(Tensor(x.astype(np.float16)))
        assert half.dtype == ms.float16
    half = cells[0][0]
    half.weight.set_data(single.weight)
    np.testing.assert_allclose(
        half(Tensor(x)).asnumpy(), single(Tensor(x)).asnumpy(), rtol=2e-3, atol=2e-3
    )


def test_formulation_follows_the_device_unless_named():
    on_cpu = "kernel" if kernels.available() else "matmul"
    assert layers.formulation() == on_cpu
    with layers.use_formulation("native"):
        assert layers.formulation() == "native"
    assert layers.formulation() == on_cpu
    with (
        pytest.raises(ValueError, match="unknown formulation 'fast'"),
        layers.use_formulation("fast"),
    ):
        pass


class UsesKernel(nn.Cell):
    """What `use_kernel` says about its input to a layer and to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.formulation = layers.formulation()

    def construct(self, x):
        of_layer = 1 if use_kernel(x, self.formulation) else 0
        of_function = 1 if use_kernel(x) else 0
        return of_layer, of_function


@pytest.mark.slow
@pytest.mark.skipif(not kernels.available(), reason=kernels.status())
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_kernels_are_for_float32_and_layers_remember_their_formulation(mode):
    ms.set_context(mode=mode)
    single, half = Tensor([1.0], ms.float32), Tensor([1.0], ms.float16)
    with layers.use_formulation("matmul"):
        layer = UsesKernel()
        assert layer(single) == (0, 0)
    with layers.use_formulation("matmul"):
        layer = UsesKernel()
    assert layer(single) == (0, 1)
    layer = UsesKernel()
    assert layer(single) == (1, 1)
    assert layer(half) == (0, 0)
