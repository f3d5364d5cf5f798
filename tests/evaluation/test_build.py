"""Model and data as a recipe states them."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindtwins.checkpoint import save_checkpoint
from mindtwins.config import TrainConfig
from mindtwins.errors import UserError
from mindtwins.evaluation import build_model, evaluation_loader, find_images, use_device
from mindtwins.evaluation.build import set_precision
from mindtwins.models import create_model

TINY = {"model": "svt_tiny", "num_classes": 10, "image_size": 32}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model = create_model("svt_tiny", num_classes=10)
    return {
        p.name: rng.normal(size=p.shape).astype(np.float32) / 8 + (p.name.endswith("gamma"))
        for p in model.get_parameters()
    }


METADATA = {
    "variant": "svt_tiny",
    "num_classes": 10,
    "dialect": {"window_padding": "mask", "patch_rounding": "ceil"},
}


def write(path: Path, tensors: dict, metadata: dict | None = None) -> str:
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    save_checkpoint(path, tensors, metadata or METADATA)
    return str(path)


def test_weights_and_dialect_come_from_the_checkpoint(tmp_path: Path, weights: dict):
    state = {"optimizer.step": np.zeros(1), "ema.norm.beta": np.zeros(1)}
    path = write(tmp_path / "a.ckpt", weights | state)
    model, metadata = build_model(TrainConfig(**TINY, ckpt_path=path))
    for parameter in model.get_parameters():
        np.testing.assert_array_equal(
            parameter.asnumpy(), weights[parameter.name].astype(np.float32)
        )
    assert metadata["variant"] == "svt_tiny" and metadata["num_classes"] == 10
    assert metadata["dialect"]["window_padding"] == "mask"
    asked = TrainConfig(**TINY, ckpt_path=path, window_padding="zeros")
    assert build_model(asked)[1]["dialect"]["window_padding"] == "zeros"


def test_a_fresh_head_for_other_classes(tmp_path: Path, weights: dict):
    path = write(tmp_path / "a.ckpt", weights)
    config = {**TINY, "num_classes": 3, "ckpt_path": path}
    with pytest.raises(UserError, match=r"num_classes 10 \(asked for: 3\)"):
        build_model(TrainConfig(**config))
    model, _ = build_model(TrainConfig(**config, drop_head=True))
    loaded = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert loaded["head.weight"].shape == (3, 128)
    np.testing.assert_array_equal(loaded["norm.gamma"], weights["norm.gamma"].astype(np.float32))


def test_a_checkpoint_of_another_model(tmp_path: Path, weights: dict):
    path = write(tmp_path / "a.ckpt", weights, {**METADATA, "variant": "svt_small"})
    with pytest.raises(UserError, match=r"variant svt_small \(asked for: svt_tiny\)"):
        build_model(TrainConfig(**TINY, ckpt_path=path))


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_precision_levels_compute_in_fp16(level: str, weights: dict):
    images = Tensor(np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32))

    def logits(level: str) -> np.ndarray:
        model = create_model("svt_tiny", num_classes=10)
        for parameter in model.get_parameters():
            parameter.set_data(Tensor(weights[parameter.name], ms.float32))
        model = set_precision(model, level)
        assert all(p.dtype == ms.float32 for p in model.get_parameters())
        return model(images).asnumpy().astype(np.float32)

    full, half = logits("O0"), logits(level)
    difference = np.abs(half - full).max() / full.std()
    assert 1e-5 < difference < 0.05


def test_an_unusable_device_is_one_sentence():
    with pytest.raises(UserError, match="cannot use device_target Ascend"):
        use_device(TrainConfig(device_target="Ascend"))


def test_data_mistakes(tmp_path: Path):
    with pytest.raises(UserError, match="data_dir is missing"):
        find_images(TrainConfig(**TINY), "val")
    digits = TrainConfig(**TINY, dataset="digits", data_dir=str(tmp_path / "digits"))
    images = find_images(digits, "val")
    assert len(images) == 355 and len(find_images(digits, "train")) == 1442
    few = TrainConfig(model="svt_tiny", num_classes=7, data_dir=str(tmp_path / "digits"))
    with pytest.raises(UserError, match="has 10 classes, but num_classes is 7"):
        evaluation_loader(few, images)
