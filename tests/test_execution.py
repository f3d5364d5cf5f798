"""Device and precision."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindtwins.detection.variants import create_detector
from mindtwins.errors import UserError
from mindtwins.execution import set_precision, use_device
from mindtwins.layers import TransposedConv2x2
from mindtwins.models import create_model
from mindtwins.segmentation.loss import PixelCrossEntropy
from mindtwins.segmentation.variants import create_segmentor
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW
from mindtwins.training.step import MicroBatch, TrainStep


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model = create_model("svt_tiny", num_classes=10)
    return {
        p.name: rng.normal(size=p.shape).astype(np.float32) / 8 + (p.name.endswith("gamma"))
        for p in model.get_parameters()
    }


@pytest.mark.parametrize(
    "level",
    [
        pytest.param("O1", marks=pytest.mark.endurance),
        pytest.param("O2", marks=pytest.mark.slow),  # the recipes'
        pytest.param("O3", marks=pytest.mark.endurance),
    ],
)
def test_precision_levels_compute_in_fp16(level: str, weights: dict):
    images = Tensor(np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32))

    def logits(level: str) -> np.ndarray:
        model = create_model("svt_tiny", num_classes=10)
        for parameter in model.get_parameters():
            parameter.set_data(Tensor(weights[parameter.name], ms.float32))
        model = set_precision(model, level)
        assert all(p.dtype == ms.float32 for p in model.get_parameters())
        return model(images).asnumpy().astype(np.float32)

    full = logits("O0")
    difference = np.abs(logits(level) - full).max() / full.std()
    assert 1e-5 < difference < 0.05


@pytest.mark.endurance
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_a_segmentor_takes_a_step_at_each_level(level: str):
    """The loss and the batch norms' statistics are nearly those of float32, and still float32."""
    random = np.random.default_rng(0)
    images = random.normal(size=(4, 3, 64, 64)).astype(np.float32)
    labels = random.integers(0, 10, (4, 64, 64)).astype(np.int32)

    def step(level: str) -> tuple[float, dict[str, np.ndarray]]:
        ms.set_seed(0)
        model = create_segmentor("fpn_svt_tiny", num_classes=10).set_train()
        for parameter in model.trainable_params():
            generator = np.random.default_rng(len(parameter.name))
            noise = generator.normal(size=parameter.shape).astype(np.float32) / 20
            parameter.set_data(Tensor(noise + parameter.name.endswith("gamma"), ms.float32))
        optimizer = AdamW(parameter_groups(set_precision(model, level), 0.0))
        scale = LossScale(1.0, 1, dynamic=False)
        taken = TrainStep(model, PixelCrossEntropy((1.0,)), optimizer, scale)
        loss = taken([MicroBatch(images, labels)], 1e-3).loss
        moving = {p.name: p for p in model.get_parameters() if "moving" in p.name}
        assert all(p.dtype == ms.float32 for p in moving.values())
        return loss, {name: p.asnumpy() for name, p in moving.items()}

    (full, expected), (half, found) = step("O0"), step(level)
    assert 0 < abs(half - full) / full < 0.02
    for name, statistics in expected.items():
        error = np.linalg.norm(found[name] - statistics) / np.linalg.norm(statistics)
        assert error < 0.02, name


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_on_gpu_float32_means_float32_unless_tf32_is_allowed(allow_tf32: bool, monkeypatch):
    """MindSpore's setters are recorded: there is no GPU here to measure a product on."""
    settings = {}
    precision = ms.device_context.gpu.op_precision
    for name in ("matmul_allow_tf32", "conv_allow_tf32"):
        monkeypatch.setattr(
            precision, name, lambda value, name=name: settings.update({name: value})
        )
    monkeypatch.setattr(ms, "set_device", lambda target: settings.update(device=target))
    if allow_tf32:
        use_device("GPU", allow_tf32=True)
    else:
        use_device("GPU")
    assert settings == {
        "device": "GPU",
        "matmul_allow_tf32": allow_tf32,
        "conv_allow_tf32": allow_tf32,
    }


def test_other_devices_have_no_tf32(monkeypatch):
    def fail(value: bool) -> None:
        raise AssertionError("MindSpore logs an error where this is set for another device")

    monkeypatch.setattr(ms.device_context.gpu.op_precision, "conv_allow_tf32", fail)
    monkeypatch.setattr(ms.device_context.gpu.op_precision, "matmul_allow_tf32", fail)
    use_device("CPU", allow_tf32=True)


def test_an_unusable_device_is_one_sentence():
    with pytest.raises(UserError, match="cannot use device_target Ascend"):
        use_device("Ascend")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_regions_stay_where_they_are(level: str):
    """In fp16 the area of the first is infinite, so it would be taken from another level."""
    random = np.random.default_rng(0)
    # What fp16 holds, as the levels of a pyramid in it are.
    levels = [random.normal(size=(1, n, n, 2)).astype(np.float16) for n in (160, 80, 40, 20)]
    rois = np.array([[0, 10, 20, 310, 320], [0, 500.13, 7, 630.7, 90.2]], np.float32)

    def features(level: str, dtype: ms.Type) -> np.ndarray:
        detector = set_precision(create_detector("maskrcnn_svt_tiny"), level)
        maps = (Tensor(values, dtype) for values in levels)
        return detector.box_pooling(Tensor(rois), *maps).asnumpy()

    expected = features("O0", ms.float32)
    np.testing.assert_array_equal(features(level, ms.float16), expected)


@pytest.mark.slow
def test_a_transposed_convolution_is_a_product():
    layer = set_precision(TransposedConv2x2(2, 2), "O1")
    assert layer(Tensor(np.ones((1, 2, 2, 2), np.float32))).dtype == ms.float16
