"""What segmentation heads are made of: every formulation gives torch's numbers and gradients."""

import mindspore as ms
import numpy as np
import pytest
import torch
from layer_checks import FORMULATIONS, Function, WeightedSum, check, copy, tokens
from mindspore import Tensor, nn

from mindtwins import layers


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_conv1x1(formulation, has_bias):
    with layers.use_formulation(formulation):
        layer = layers.Conv1x1(6, 5, has_bias)
    reference = torch.nn.Conv2d(6, 5, 1, bias=has_bias)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 4, 6), channels_first=True)


@pytest.mark.parametrize(("size", "has_bias"), [((1, 6), True), ((7, 5), False)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_conv3x3(formulation, size, has_bias):
    with layers.use_formulation(formulation):
        layer = layers.Conv3x3(6, 8, has_bias)
    reference = torch.nn.Conv2d(6, 8, 3, padding=1, bias=has_bias)
    copy(reference, layer)
    check(layer, reference, 0.2 * tokens(2, *size, 6), channels_first=True)


@pytest.mark.parametrize("formulation", FORMULATIONS[1:])
def test_conv3x3_rounds_little_more_than_torch(formulation):
    """Many channels and pixels, worked on in several strips."""
    with layers.use_formulation(formulation):
        layer = layers.Conv3x3(150, 40, has_bias=False)
    x, weight, dy = tokens(2, 35, 33, 150), tokens(40, 150, 3, 3), tokens(2, 35, 33, 40)
    layer.weight.set_data(Tensor(weight))
    grad_x, grad_weight = ms.grad(WeightedSum(layer, dy), 0, layer.trainable_params())(Tensor(x))
    ours = (layer(Tensor(x)), grad_x, grad_weight[0])

    def torchs(dtype):
        source = torch.from_numpy(x).to(dtype).requires_grad_()
        kernel = torch.from_numpy(weight).to(dtype).requires_grad_()
        out = torch.nn.functional.conv2d(source.permute(0, 3, 1, 2), kernel, padding=1)
        out = out.permute(0, 2, 3, 1)
        out.backward(torch.from_numpy(dy).to(dtype))
        return [t.detach().double().numpy() for t in (out, source.grad, kernel.grad)]

    for actual, single, exact in zip(
        ours, torchs(torch.float32), torchs(torch.float64), strict=True
    ):
        error = np.linalg.norm(actual.asnumpy() - exact) / np.linalg.norm(single - exact)
        assert error < 3


@pytest.mark.parametrize("size", [(9, 36), (16, 1), (31, 7)])
@pytest.mark.parametrize("formulation", FORMULATIONS[1:])
def test_conv3x3_of_zeros_is_zero(formulation, size):
    """Not what is left when sums cancel: Adam would make whole steps of that."""
    with layers.use_formulation(formulation):
        layer = layers.Conv3x3(18, 21, has_bias=False)
    rng = np.random.default_rng(0)
    x, dy = tokens(2, *size, 18), tokens(2, *size, 21)
    for values in (x, dy):  # few numbers at few pixels
        values *= (rng.random(values.shape) < 0.1) & (rng.random((2, *size, 1)) < 0.3)
    found = ms.grad(WeightedSum(layer, dy), 0, layer.trainable_params())(Tensor(x))
    out = layer(Tensor(x)).asnumpy()
    source = torch.from_numpy(x).double().requires_grad_()
    kernel = torch.from_numpy(layer.weight.asnumpy()).double().requires_grad_()
    expected = torch.nn.functional.conv2d(source.permute(0, 3, 1, 2), kernel, padding=1)
    expected = expected.permute(0, 2, 3, 1)
    expected.backward(torch.from_numpy(dy).double())
    for actual, exact in (
        (out, expected.detach()),
        (found[0].asnumpy(), source.grad),
        (found[1][0].asnumpy(), kernel.grad),
    ):
        np.testing.assert_array_equal(actual == 0, exact.numpy() == 0)
        assert 0 < (actual == 0).mean() < 1
        np.testing.assert_allclose(actual, exact.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_start_as_he_fan_out():
    conv = layers.Conv3x3(64, 32, has_bias=False)
    assert conv.bias is None
    np.testing.assert_allclose(conv.weight.asnumpy().std(), (2 / (9 * 32)) ** 0.5, rtol=0.03)
    given = layers.Conv1x1(64, 32, weight_init=ms.common.initializer.Normal(0.01))
    np.testing.assert_allclose(given.weight.asnumpy().std(), 0.01, rtol=0.1)
    assert not given.bias.asnumpy().any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_batch_norm(formulation, training):
    with layers.use_formulation(formulation):
        layer = layers.BatchNorm(5, epsilon=1e-3, momentum=0.3)
    reference = torch.nn.BatchNorm2d(5, eps=1e-3, momentum=0.3)
    copy(reference, layer)
    mean, variance = tokens(5), 1 + tokens(5) ** 2
    reference.running_mean.copy_(torch.from_numpy(mean))
    reference.running_var.copy_(torch.from_numpy(variance))
    layer.moving_mean.set_data(Tensor(mean))
    layer.moving_variance.set_data(Tensor(variance))
    layer.set_train(training)
    reference.train(training)
    # A mean that is not small against the deviation: a difference of squares would lose digits.
    x = tokens(2, 3, 7, 5) + 3
    check(layer, reference, x, channels_first=True)
    # `check` calls the layer twice, for the value and for the gradient.
    reference(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    for name, theirs in (
        ("moving_mean", reference.running_mean),
        ("moving_variance", reference.running_var),
    ):
        ours = getattr(layer, name).asnumpy()
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, err_msg=name)
    assert np.array_equal(layer.moving_mean.asnumpy(), mean) != training


def test_batch_norm_of_one_value_is_refused():
    """As torch does: its unbiased variance would be 0 / 0."""
    layer = layers.BatchNorm(5).set_train()
    with pytest.raises(ValueError, match="needs more than one value per channel: use a larger"):
        layer(Tensor(tokens(1, 1, 1, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "new"), [((5, 7), (10, 9)), ((9, 1), (3, 4))])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_resize(formulation, mode, size, new):
    resize = {"bilinear": layers.resize_bilinear, "nearest": layers.resize_nearest}[mode]
    options = {"align_corners": False} if mode == "bilinear" else {}
    reference = torch.nn.Upsample(new, mode=mode, **options)
    with layers.use_formulation(formulation):
        check(Function(resize, *new), reference, tokens(2, *size, 18), channels_first=True)


@pytest.mark.parametrize(("size", "bins"), [((16, 7), 6), ((2, 3), 6)])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_adaptive_average_pool(formulation, size, bins):
    reference = torch.nn.AdaptiveAvgPool2d(bins)
    with layers.use_formulation(formulation):
        layer = Function(layers.adaptive_average_pool, bins)
        check(layer, reference, tokens(2, *size, 5), channels_first=True)


class CrossEntropy(nn.Cell):
    def __init__(self, labels: np.ndarray) -> None:
        super().__init__()
        self.labels = Tensor(labels)

    def construct(self, logits):
        return layers.resized_cross_entropy(logits, self.labels)


@pytest.mark.parametrize(
    ("size", "new", "classes"), [((8, 11), (21, 44), 20), ((4, 4), (4, 4), 16)]
)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_resized_cross_entropy(formulation, size, new, classes):
    labels = np.random.default_rng(3).integers(-2, classes, (2, *new), np.int32).clip(-1)

    class Reference(torch.nn.Module):
        def forward(self, x):
            x = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), new, mode="bilinear")
            target = torch.from_numpy(labels).long()
            loss = torch.nn.functional.cross_entropy(x, target, ignore_index=-1, reduction="none")
            return loss.sum() / labels.size

    class Mean(CrossEntropy):
        def construct(self, logits):
            return super().construct(logits) / labels.size

    with layers.use_formulation(formulation):
        check(Mean(labels), Reference(), 5 * tokens(2, *size, classes))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_transposed_conv2x2(formulation):
    with layers.use_formulation(formulation):
        layer = layers.TransposedConv2x2(6, 5)
    reference = torch.nn.ConvTranspose2d(6, 5, 2, stride=2)
    copy(reference, layer)
    check(layer, reference, tokens(2, 3, 4, 6), channels_first=True)


class EveryOther(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.max_pool2d(x, 1, stride=2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_subsample(size):
    check(Function(layers.subsample), EveryOther(), tokens(2, *size, 6), channels_first=True)


def test_a_bias_starts_as_it_is_told():
    conv = layers.Conv3x3(4, 3, bias_init=-4.5)
    np.testing.assert_array_equal(conv.bias.asnumpy(), np.full(3, -4.5, np.float32))
