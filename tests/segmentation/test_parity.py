"""The segmentors against the PyTorch reference: maps, logits, predictions and gradients."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from parity import (
    assert_same_up_to_rounding,
    copy_weights,
    name_in_torch,
    on_or_off,
    photographs,
)

import mindtwins
from mindtwins.conversion.verify import TOLERATED
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import amplify, randomize
from mindtwins.segmentation.segmentor import SegmentorOutputs

TINY = ("fpn_svt_tiny", "upernet_svt_tiny")
OFFICIAL = {
    "window_padding": "mask",
    "patch_rounding": "floor",
    "block_epsilon": 1e-6,
    "embed_epsilon": 1e-5,
}


def pair(name, weights=randomize, **options):
    """A segmentor and the reference with the same random weights and batch statistics."""
    reference = weights(create_segmentation_reference(name, official_names=True, **options))
    segmentor = mindtwins.create_segmentor(name, **options)
    copy_weights(reference, segmentor)
    return segmentor, reference


def stages(name):
    maps = [f"stage{i}" for i in range(1, 5)]
    if name.startswith("fpn"):
        return [*maps, *(f"neck{i}" for i in range(1, 5)), "logits"]
    return [*maps, "logits", "auxiliary"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name.endswith("_small") else pytest.mark.endurance
        )
        for name in mindtwins.list_segmentors()
    ],
)
def test_every_segmentor(name):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # without a graph to build for each
    segmentor, reference = pair(name)
    rows = assert_same_up_to_rounding(SegmentorOutputs(segmentor), reference, photographs(160, 192))
    assert [row.stage for row in rows] == stages(name)


SMALL = ("fpn_svt_small", "upernet_svt_small")


@pytest.mark.endurance
@pytest.mark.parametrize("name", mindtwins.list_segmentors())
def test_every_segmentor_at_512(name):
    """In graph mode; those of a graph in the other tiers are of `svt_tiny`."""
    segmentor, reference = pair(name)
    rows = assert_same_up_to_rounding(SegmentorOutputs(segmentor), reference, photographs(512, 512))
    assert [row.stage for row in rows] == stages(name)


# What the four stages' maps of these sizes need to be whole patches and windows: 448 x 512 columns
# in every stage and rows in none, so that nothing is masked; 200 x 260 both in three stages and
# columns in the last; 512 x 683 both everywhere, and patches are cut at the right.
SIZES = {"one axis": (448, 512), "both axes": (200, 260), "as in ADE20K": (512, 683)}


@pytest.mark.parametrize(
    "size", ["both axes", *(pytest.param(s, marks=pytest.mark.slow) for s in list(SIZES)[::2])]
)
@pytest.mark.parametrize("name", TINY)
def test_sizes_that_need_padding(name, size):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # without a graph to build for each
    segmentor, reference = pair(name)
    assert_same_up_to_rounding(SegmentorOutputs(segmentor), reference, photographs(*SIZES[size]))


@pytest.mark.endurance
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fpn_svt_small", "one axis"),
        ("fpn_svt_small", "as in ADE20K"),
        ("fpn_pcpvt_small", "as in ADE20K"),
        ("upernet_svt_small", "both axes"),
    ],
)
def test_published_models_at_sizes_that_need_padding(name, size):
    segmentor, reference = pair(name)
    assert_same_up_to_rounding(SegmentorOutputs(segmentor), reference, photographs(*SIZES[size]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_official_dialect(name):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    segmentor, reference = pair(name, **OFFICIAL)
    assert_same_up_to_rounding(SegmentorOutputs(segmentor), reference, photographs(163, 99))


@pytest.mark.parametrize(
    "name",
    [
        "fpn_svt_tiny",
        pytest.param("upernet_svt_tiny", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.endurance) for name in SMALL),
    ],
)
def test_predictions(name):
    """Every pixel has the same class, but where two of them tie within the rounding error."""
    segmentor, reference = pair(name)
    images = photographs(128, 160)
    logits = segmentor(Tensor(images)).asnumpy()
    with torch.no_grad():
        single = reference(torch.from_numpy(images)).numpy()
        exact = reference.double()(torch.from_numpy(images).double()).numpy()
    noise = TOLERATED * np.abs(single - exact).max()
    second, first = np.partition(exact, -2, axis=1)[:, -2:].transpose(1, 0, 2, 3)
    clear = first - second > 2 * noise
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(logits.argmax(1)[clear], exact.argmax(1)[clear])


class PlainStages(nn.Cell):
    """Norms only what the heads see, not what the next stage does."""

    def __init__(self, segmentor):
        super().__init__(auto_prefix=False)
        self.segmentor = segmentor
        segmentor.backbone.normalizes_stages = False

    def construct(self, images):
        segmentor = self.segmentor
        maps = ()
        for i, tokens in enumerate(segmentor.features(images)):
            maps = (*maps, segmentor.backbone.norm_list[i](tokens))
        return segmentor.decode_head(segmentor.refine(maps), None)


def stages_not_normalized(segmentor):
    return PlainStages(segmentor)


def norms_of_another_level(segmentor):
    first, second = (segmentor.decode_head.fpn_convs[i].bn for i in (0, 1))
    for ours, theirs in zip(first.get_parameters(), second.get_parameters(), strict=True):
        ours.set_data(Tensor(theirs.asnumpy()))
    return segmentor


def perturbed_statistics(segmentor):
    bn = segmentor.decode_head.bottleneck.bn
    bn.moving_variance.set_data(bn.moving_variance * 1.00002)
    return segmentor


MISTAKES = {
    "none": ({}, lambda segmentor: segmentor),
    "block epsilon": ({"block_epsilon": 1e-6}, lambda segmentor: segmentor),
    "patch rounding": ({"patch_rounding": "floor"}, lambda segmentor: segmentor),
    "window padding": ({"window_padding": "zeros"}, lambda segmentor: segmentor),
    "stages not normalized": ({}, stages_not_normalized),
    "norms of another level": ({}, norms_of_another_level),
    "batch statistics": ({}, perturbed_statistics),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_parity_fails_under_each_mistake(mistake):
    """A test of the test."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    options, spoil = MISTAKES[mistake]
    name = "upernet_svt_tiny"
    reference = amplify(randomize(create_segmentation_reference(name, official_names=True)))
    segmentor = mindtwins.create_segmentor(name, **options)
    copy_weights(reference, segmentor)
    images = photographs(100, 164)
    logits = spoil(segmentor)(Tensor(images)).asnumpy()
    with torch.no_grad():
        single = reference(torch.from_numpy(images)).numpy()
        exact = reference.double()(torch.from_numpy(images).double()).numpy()
    if logits.shape == exact.shape:
        ratio = np.linalg.norm(logits - single) / np.linalg.norm(single - exact)
    else:
        ratio = np.inf
    assert (ratio < TOLERATED) == (mistake == "none"), ratio


class Factors(torch.nn.Module):
    """Dropout of channels with given factors (N, channels)."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors[:, :, None, None].to(x)


class WeightedSum(nn.Cell):
    """A scalar that depends on every logit differently."""

    def __init__(self, model, weights):
        super().__init__(auto_prefix=False)
        self.model = model
        self.weights = [Tensor(array) for array in weights]

    def construct(self, images, dropout_mask):
        total = 0.0
        for i, output in enumerate(self.model(images, None, dropout_mask)):
            total = total + (output * self.weights[i]).sum()
        return total


def gradients_in_torch(reference, images, weights):
    """In float64, the gradients and the running statistics after one step in training mode."""
    outputs = reference.double().train()(torch.from_numpy(images).double())
    total = sum((x * torch.from_numpy(w)).sum() for x, w in zip(outputs, weights, strict=True))
    total.backward()
    found = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    return found | {n: b.numpy() for n, b in reference.named_buffers() if "running" in n}


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in TINY),
        *(pytest.param(name, marks=pytest.mark.endurance) for name in SMALL),
    ],
)
def test_gradient_of_every_parameter(name):
    """In training: by the batch's statistics, with channels dropped, both heads' logits."""
    ms.set_context(mode=ms.PYNATIVE_MODE)  # in a graph: test_steps.py
    segmentor, reference = pair(name, on_or_off, num_classes=10)
    images = photographs(96, 112, batch=4)
    random = np.random.default_rng(0)
    channels = [h.conv_seg.in_channels for h in (reference.decode_head,)]
    if hasattr(reference, "auxiliary_head"):
        channels.append(reference.auxiliary_head.conv_seg.in_channels)
    assert segmentor.dropout_channels == sum(channels)
    dropout_mask = ((random.random((4, sum(channels))) > 0.1) / 0.9).astype(np.float32)
    decode, *auxiliary = torch.from_numpy(dropout_mask).split(channels, 1)
    reference.decode_head.dropout = Factors(decode)
    if auxiliary:
        reference.auxiliary_head.dropout = Factors(*auxiliary)
    sides = [(24, 28), (6, 7)][: len(channels)]
    weights = [random.standard_normal((4, 10, *side)).astype(np.float32) for side in sides]

    segmentor.set_train()
    parameters = list(segmentor.trainable_params())
    model = WeightedSum(segmentor, weights)
    gradients = ms.grad(model, None, parameters)(Tensor(images), Tensor(dropout_mask))
    found = {name_in_torch(p.name): g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
    found |= {
        name_in_torch(p.name): p.asnumpy() for p in segmentor.get_parameters() if "moving" in p.name
    }
    exact = gradients_in_torch(reference, images, weights)
    assert found.keys() == exact.keys()
    for key, expected in exact.items():
        error = np.linalg.norm(found[key] - expected)
        assert error <= 1e-4 * np.linalg.norm(expected), key
