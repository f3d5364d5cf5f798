"""Classifiers and their data as a recipe states them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from PIL import Image

from mindtwins.checkpoint import save_checkpoint
from mindtwins.config import InferConfig, TrainConfig
from mindtwins.data.decode import UnreadableImage
from mindtwins.errors import UserError
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World

TINY = {"model": "svt_tiny", "num_classes": 10, "image_size": 32}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model, _ = create_task(TrainConfig(**TINY)).build_model(World())
    return {
        p.name: rng.normal(size=p.shape).astype(np.float32) / 8 + (p.name.endswith("gamma"))
        for p in model.get_parameters()
    }


METADATA = {
    "variant": "svt_tiny",
    "num_classes": 10,
    "dialect": {"window_padding": "mask", "patch_rounding": "ceil"},
}


def build(config: TrainConfig) -> tuple[nn.Cell, dict]:
    return create_task(config).build_model(World())


def write(path: Path, tensors: dict, metadata: dict | None = None) -> str:
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    save_checkpoint(path, tensors, metadata or METADATA)
    return str(path)


def test_weights_and_dialect_come_from_the_checkpoint(tmp_path: Path, weights: dict):
    state = {"optimizer.step": np.zeros(1), "ema.norm.beta": np.zeros(1)}
    path = write(tmp_path / "a.ckpt", weights | state)
    model, metadata = build(TrainConfig(**TINY, ckpt_path=path))
    for parameter in model.get_parameters():
        np.testing.assert_array_equal(
            parameter.asnumpy(), weights[parameter.name].astype(np.float32)
        )
    assert metadata["variant"] == "svt_tiny" and metadata["num_classes"] == 10
    assert metadata["dialect"]["window_padding"] == "mask"
    asked = TrainConfig(**TINY, ckpt_path=path, window_padding="zeros")
    assert build(asked)[1]["dialect"]["window_padding"] == "zeros"


def test_a_fresh_head_for_other_classes(tmp_path: Path, weights: dict):
    path = write(tmp_path / "a.ckpt", weights)
    config = {**TINY, "num_classes": 3, "ckpt_path": path}
    with pytest.raises(UserError, match=r"num_classes 10 \(asked for: 3\)"):
        build(TrainConfig(**config))
    model, _ = build(TrainConfig(**config, drop_head=True))
    loaded = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert loaded["head.weight"].shape == (3, 128)
    np.testing.assert_array_equal(loaded["norm.gamma"], weights["norm.gamma"].astype(np.float32))


def test_a_checkpoint_of_another_model(tmp_path: Path, weights: dict):
    path = write(tmp_path / "a.ckpt", weights, {**METADATA, "variant": "svt_small"})
    with pytest.raises(UserError, match=r"variant svt_small \(asked for: svt_tiny\)"):
        build(TrainConfig(**TINY, ckpt_path=path))


def test_data_mistakes(tmp_path: Path):
    with pytest.raises(UserError, match="data_dir is missing"):
        create_task(TrainConfig(**TINY)).find_data("val")
    digits = TrainConfig(**TINY, dataset="digits", data_dir=str(tmp_path / "digits"))
    task = create_task(digits)
    images = task.find_data("val")
    assert len(images) == 355 and len(task.find_data("train")) == 1442
    few = TrainConfig(model="svt_tiny", num_classes=7, data_dir=str(tmp_path / "digits"))
    with pytest.raises(UserError, match="has 10 classes, but num_classes is 7"):
        create_task(few).evaluator(None, images, World())


def test_fewer_class_folders_than_classes(tmp_path: Path, told: Callable):
    for split in ("train", "val"):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.jpg").touch()
    few = [f"{tmp_path}/train has 3 classes, num_classes is", "has 3 of the 5 classes"]
    for count, expected in ((3, []), (5, few)):
        task = create_task(TrainConfig(model="svt_tiny", num_classes=count, data_dir=str(tmp_path)))
        train, val = task.find_data("train"), task.find_data("val")
        np.testing.assert_array_equal(train.labels, val.labels)
        assert [text in notice for text, notice in zip(expected, told(), strict=True)] == [
            True for _ in expected
        ]


@pytest.mark.parametrize("dataset", ["imagefolder", "list"])
def test_how_pictures_are_read(
    dataset: str, tmp_path: Path, photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "val" / "a").mkdir(parents=True)
    photographs[0].crop((0, 0, 64, 48)).save(tmp_path / "val" / "a" / "x.png", exif=exif)
    (tmp_path / "val.txt").write_text("val/a/x.png 0\n")
    options = TINY | {
        "dataset": dataset,
        "data_dir": str(tmp_path),
        "val_list": str(tmp_path / "val.txt"),
        "num_classes": 1,
    }
    for turned, size in ((False, (64, 48)), (True, (48, 64))):
        config = TrainConfig(**options, exif_orientation=turned)
        data = create_task(config).find_data("val")
        assert data.read(0).size == size
        batch = next(iter(create_task(config).evaluator(None, data, World())._loader))
        expected = create_task(config).preprocessing()(data.read(0))
        np.testing.assert_array_equal(batch.images[0], expected)
    data = create_task(TrainConfig(**options, max_pixels=3070)).find_data("val")
    with pytest.raises(UnreadableImage, match=r"\(3072 pixels\) exceeds .* with --max_pixels"):
        data.read(0)


@pytest.mark.slow
def test_photographs_to_classify_may_be_turned(tmp_path: Path, photographs: list[Image.Image]):
    exif = Image.Exif()
    exif[0x0112] = 3
    upright = photographs[0].crop((0, 0, 64, 48))
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "stored.png", exif=exif)
    files = [tmp_path / "upright.png", tmp_path / "stored.png"]
    model = create_task(TrainConfig(**TINY)).build_model(World())[0].set_train(False)
    for turned in (False, True):
        task = create_task(InferConfig(**TINY, exif_orientation=turned))
        first, second = task.predict(model, files)
        assert (first["probabilities"] == second["probabilities"]) == turned
