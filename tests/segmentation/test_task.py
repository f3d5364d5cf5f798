"""Segmentors and their data as a recipe states them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import validate
from mindtwins.config import TrainConfig, parse_config
from mindtwins.errors import UserError
from mindtwins.segmentation.overlay import write_labels
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World

CLASSES = ("left", "right", "nowhere")
TINY = {
    "task": "segmentation",
    "dataset": "pairs",
    "model": "fpn_svt_tiny",
    "num_classes": 3,
    "image_size": 32,
    "resize_scale": (64, 32),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of two sizes, class 0 on the left and 1 on the right, and a class list."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, (height, width) in enumerate([(40, 48), (40, 48), (36, 40), (40, 48)]):
            image = folder / "images" / split / f"{number}.png"
            labels = folder / "annotations" / split / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            labels.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image)
            values = np.zeros((height, width), np.uint8)
            values[:, width // 2 :] = 1
            values[:2] = 255
            write_labels(labels, values)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def recipe(data: Path, **changes: object) -> TrainConfig:
    paths = {"data_dir": str(data), "class_names": str(data / "classes.txt")}
    return TrainConfig(**{**TINY, **paths, **changes})


def test_pairs_are_found_and_batched(data: Path):
    task = create_task(recipe(data, batch_size=2))
    train = task.find_data("train")
    assert len(train) == 4 and train.classes == CLASSES
    assert next(iter(task.entries(train))) == "0.png ../../annotations/train/0.png"
    batch = next(task.training_loader(train, World()).batches(0, 1))
    assert batch.images.shape == (2, 3, 32, 32) and batch.targets.shape == (2, 32, 32)
    assert set(np.unique(batch.targets)) <= {0, 1, 255}


def test_mistakes(data: Path):
    with pytest.raises(UserError, match="has 3 classes, but num_classes is 4: set it to 3"):
        create_task(recipe(data, num_classes=4)).find_data("val")
    with pytest.raises(UserError, match="dataset list is not for task segmentation"):
        create_task(recipe(data, dataset="list", val_list="x")).find_data("val")
    with pytest.raises(UserError, match="dataset: pairs needs class_names"):
        create_task(recipe(data, class_names="")).find_data("val")
    with pytest.raises(UserError, match="did you mean 'fpn_svt_tiny'"):
        create_task(recipe(data, model="fpn_svt_tini")).build_model(World())


@pytest.mark.parametrize(
    ("changes", "ranks", "refused"),
    [
        ({"model": "upernet_svt_tiny", "image_size": 64}, 1, True),
        ({"model": "upernet_svt_tiny", "image_size": 64}, 2, False),
        ({"model": "fpn_svt_tiny"}, 1, True),
        ({"model": "fpn_svt_tiny", "batch_size": 2}, 1, False),
        ({"model": "fpn_svt_tiny", "image_size": 33}, 1, False),
        ({"model": "fpn_svt_tiny", "image_size": 63, "patch_rounding": "floor"}, 1, True),
    ],
)
def test_batch_norms_need_two_values(data: Path, changes: dict, ranks: int, refused: bool):
    task = create_task(recipe(data, **{"batch_size": 1, **changes}))
    train = task.find_data("train")
    if not refused:
        task.training_loader(train, World(size=ranks))
        return
    with pytest.raises(UserError, match=r"batch_size is 1, .* need at least 2 images"):
        task.training_loader(train, World(size=ranks))


def test_fresh_classifiers_and_recorded_dialect(data: Path, tmp_path: Path):
    model, metadata = create_task(recipe(data, patch_rounding="floor")).build_model(World())
    weights = {p.name: p.asnumpy() for p in model.get_parameters()}
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, weights, metadata)
    again, restored = create_task(recipe(data, ckpt_path=str(path))).build_model(World())
    assert restored == metadata and again.dialect.patch_rounding == "floor"
    for parameter in again.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name])
    other = recipe(data, ckpt_path=str(path), num_classes=5)
    with pytest.raises(UserError, match=r"num_classes 3 \(asked for: 5\)"):
        create_task(other).build_model(World())
    fresh, _ = create_task(replace(other, drop_head=True)).build_model(World())
    shapes = {p.name: p.shape for p in fresh.get_parameters()}
    assert shapes["decode_head.conv_seg.weight"][0] == 5


@pytest.mark.slow
def test_validation_is_the_protocol_by_hand(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """validate.py's numbers from the model's own logits, resized and counted here."""
    config = recipe(data)
    model, metadata = create_task(config).build_model(World())
    rng = np.random.default_rng(3)
    for parameter in model.get_parameters():
        values = parameter.asnumpy()
        if parameter.name.endswith(("weight", "bias")):
            values = values + 0.1 * rng.normal(size=values.shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    weights = {p.name: p.asnumpy() for p in model.get_parameters()}
    save_checkpoint(tmp_path / "a.ckpt", weights, metadata)
    (tmp_path / "fine_tuning.yaml").write_text("drop_head: true\n")  # the checkpoint's is meant
    validate.main(
        [
            *("-c", str(tmp_path / "fine_tuning.yaml")),
            *("--task", "segmentation", "--dataset", "pairs", "--data_dir", str(data)),
            *("--class_names", str(data / "classes.txt"), "--model", "fpn_svt_tiny"),
            *("--num_classes", "3", "--resize_scale", "64,32", "--eval_batch_size", "2"),
            *("--ckpt_path", str(tmp_path / "a.ckpt"), "--output_json", str(tmp_path / "r.json")),
        ]
    )
    result = json.loads((tmp_path / "r.json").read_text())

    import torch

    task = create_task(config)
    pairs = task.find_data("val")
    confusion = np.zeros((3, 3), int)
    evaluator = task.evaluator(model, pairs, World())
    for batch in evaluator._loader:
        for row in np.flatnonzero(batch.valid):
            view = batch.images[0][row : row + 1]
            logits = torch.from_numpy(model(Tensor(view)).asnumpy())
            for size in (view.shape[2:], batch.labels.shape[1:]):
                logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
            predicted = logits.argmax(1)[0].numpy()
            counted = batch.labels[row] != 255
            np.add.at(confusion, (batch.labels[row][counted], predicted[counted]), 1)
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    iou = 100 * hit[union > 0] / union[union > 0]
    assert result["images"] == 4
    assert result["miou"] == pytest.approx(iou.mean(), abs=0.02)
    assert result["aacc"] == pytest.approx(100 * hit.sum() / confusion.sum(), abs=0.02)
    assert result["accuracy"]["nowhere"] is None
    printed = capsys.readouterr().out
    assert f"mIoU {result['miou']:.2f} %" in printed and "nowhere" in printed


def test_speed_is_a_sum_over_ranks_or_unknown(monkeypatch: pytest.MonkeyPatch):
    assert validate.total_speed(World(), 2.5) == 2.5
    assert validate.total_speed(World(), None) is None
    monkeypatch.setattr(World, "exchange", lambda self, label, payload: [payload, b"1.5"])
    assert validate.total_speed(World(), 2.5) == 4.0
    assert validate.total_speed(World(), None) is None


def test_the_demo_recipe_is_for_the_digits():
    config = parse_config(TrainConfig, ["-c", "configs/fpn_svt_tiny_digits.yaml"], "")
    assert (config.task, config.dataset, config.num_classes) == ("segmentation", "digits", 11)


def test_a_classifier_s_backbone_starts_a_segmentor(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    classifier, metadata = create_task(TrainConfig(model="svt_tiny")).build_model(World())
    weights = {p.name: p.asnumpy() for p in classifier.get_parameters()}
    path = tmp_path / "svt_tiny.ckpt"
    save_checkpoint(path, weights, metadata)
    config = recipe(data, pretrained_backbone=str(path))
    model, _ = create_task(config).build_model(World())
    assert f"backbone from {path}" in capsys.readouterr().out
    ours = {p.name: p.asnumpy() for p in model.get_parameters()}
    name = "blocks.1.0.attn.qkv.weight"
    np.testing.assert_array_equal(ours[f"backbone.{name}"], weights[name])
    with pytest.raises(UserError, match="pretrained_backbone is for segmentation and detection"):
        replace(config, ckpt_path=str(path))


def test_pairs_are_read_as_asked(data: Path) -> None:
    for turned in (False, True):
        options = {"data_dir": str(data), "class_names": str(data / "classes.txt")}
        config = TrainConfig(**TINY | options, exif_orientation=turned)
        assert create_task(config).find_data("val").exif_orientation == turned


def test_a_checkpoint_of_fewer_names_is_refused_in_a_sentence(data: Path, tmp_path: Path):
    task = create_task(recipe(data))
    task.find_data("train")
    model, metadata = task.build_model(World())
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, tensors, {**metadata, "classes": list(CLASSES[:2])})
    later = create_task(recipe(data, ckpt_path=str(path)))
    with pytest.raises(UserError, match="'nowhere' stands where that has 'no class'"):
        later.find_data("val")
