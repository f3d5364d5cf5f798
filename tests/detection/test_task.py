"""Detectors as the scripts take them: evaluation, prediction, and what they refuse."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CATEGORIES, annotation
from mindspore import Tensor
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.commands import export, infer, serve, train, validate
from mindtwins.config import ServeConfig, TrainConfig, ValidateConfig, parse_config
from mindtwins.detection.complexity import count
from mindtwins.errors import UserError
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World

CLASSES = ("cat", "dog", "fish")
NAMES = ("retinanet_svt_tiny", "maskrcnn_svt_tiny")
TINY = {"task": "detection", "num_classes": 3, "resize_scale": (128, 96), "dataset": "coco"}


@pytest.fixture(scope="module")
def folder(photograph: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout: three pictures to validate, two of them alike, and annotations by name."""
    root = tmp_path_factory.mktemp("coco")
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    images = []
    for number, (width, height) in enumerate([(120, 90), (80, 96), (120, 90)]):
        picture = Image.fromarray(photograph[90 : 90 + height, 100 * number :][:, :width])
        picture.save(root / "val2017" / f"{number}.png")
        name = f"{number}.png"
        images.append({"id": 7 + number, "file_name": name, "width": width, "height": height})
    content = {
        "images": images,
        "categories": CATEGORIES[::-1],  # the model's are in another order
        "annotations": [
            annotation(1, 7, 3, [10, 5, 60, 50]),
            annotation(2, 8, 7, [0, 0, 70, 90]),
            annotation(3, 9, 1, [30, 20, 50, 40]),
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that find something, saved with all that using them takes."""
    task = create_task(ValidateConfig(model=request.param, **TINY))
    task.classes = CLASSES
    model, metadata = task.build_model(World())
    rng = np.random.default_rng(3)
    tensors = {}
    for parameter in model.get_parameters():
        values = parameter.asnumpy()
        if parameter.name.endswith("retina_cls.bias"):
            values = values + 4  # else nothing is as likely as 0.05
        if re.search(r"(cls|fc_cls|conv_logits)\.weight", parameter.name):
            values = values + rng.normal(0, 0.2, values.shape)
        tensors[parameter.name] = values.astype(np.float32)
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.ckpt"
    save_checkpoint(path, tensors, metadata)
    return path


@functools.cache
def by_hand(checkpoint: Path, file: Path) -> Any:
    """What the model in a checkpoint finds in a picture."""
    model = mindtwins.load_model(checkpoint)
    image, geometry = model.preprocessing(Image.open(file).convert("RGB"))
    return model.predict(Tensor(image[None]), [geometry])[0]


@pytest.mark.slow
def test_validation_of_a_checkpoint_alone(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    written = tmp_path / "result.json"
    paths = ["--ckpt_path", str(checkpoint), "--data_dir", str(folder)]
    validate.main([*paths, "--output_json", str(written)])
    told = capsys.readouterr().out
    result = json.loads(written.read_text())
    kinds = {"box": "bbox"} | ({"mask": "segm"} if "mask" in checkpoint.name else {})
    for kind, theirs in kinds.items():
        listing = tmp_path / f"result.{theirs}.json"
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(folder / "annotations" / "instances_val2017.json"))
            evaluation = COCOeval(truth, truth.loadRes(str(listing)), theirs)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        numbers = [100 * evaluation.stats[0], 100 * evaluation.stats[1]]
        assert numbers == pytest.approx([result[kind]["AP"], result[kind]["AP50"]])
        assert f"{kind} AP {numbers[0]:.2f} %, AP50 {numbers[1]:.2f} %" in told
        assert set(result[kind]["classes"]) == set(CLASSES)
    assert not set(tmp_path.glob("result.*.json")) - {
        tmp_path / f"result.{theirs}.json" for theirs in kinds.values()
    }
    assert result["images"] == 3 and "dog" in told
    found = by_hand(checkpoint, folder / "val2017" / "1.png")
    boxes = json.loads((tmp_path / "result.bbox.json").read_text())
    own = [one for one in boxes if one["image_id"] == 8]
    assert len(own) == len(found) > 0
    ids = {category["name"]: category["id"] for category in CATEGORIES}
    assert [one["category_id"] for one in own] == [ids[CLASSES[label]] for label in found.labels]
    np.testing.assert_allclose([one["score"] for one in own], found.scores, rtol=1e-5)


@pytest.mark.slow
def test_prediction_of_a_checkpoint_alone(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = folder / "val2017" / "1.png"
    found = by_hand(checkpoint, file)
    least = float(np.median(found.scores))
    infer.main(
        [
            *("--ckpt_path", str(checkpoint), "--images", str(file)),
            *("--output_dir", str(tmp_path), "--least_score", f"{least:.9f}"),
            *("--output_json", str(tmp_path / "all.json"), "--top_k", "1"),
            *("--output_png", str(tmp_path / "sheet.png")),
        ]
    )
    listed = json.loads((tmp_path / "1_objects.json").read_text())
    kept = [number for number, score in enumerate(found.scores) if score >= np.float32(least)]
    assert 0 < len(kept) < len(found)
    assert [one["name"] for one in listed] == [CLASSES[found.labels[number]] for number in kept]
    np.testing.assert_allclose([one["score"] for one in listed], found.scores[kept], rtol=1e-5)
    assert all(("segmentation" in one) == ("mask" in checkpoint.name) for one in listed)
    assert Image.open(tmp_path / "1_objects.png").size == (240, 288)
    (entry,) = json.loads((tmp_path / "all.json").read_text())
    assert [one["name"] for one in entry["objects"]] == [one["name"] for one in listed]
    assert f"1.png: {listed[0]['name']} " in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def test_the_file_keeps_how_boxes_are_chosen(checkpoint: Path, tmp_path: Path) -> None:
    stated = load_checkpoint(checkpoint)
    changed = stated.metadata["postprocessing"] | {"top_k": "pairs"}
    metadata = stated.metadata | {"postprocessing": changed}
    save_checkpoint(tmp_path / "3x.ckpt", stated.tensors, metadata)
    task = create_task(ValidateConfig(ckpt_path=str(tmp_path / "3x.ckpt")))
    model, again = task.build_model(World())
    assert model.postprocessing.top_k == "pairs" == again["postprocessing"]["top_k"]
    assert task.config.resize_scale == (128, 96)


def test_what_cannot_be_done_yet(checkpoint: Path) -> None:
    given = ["--ckpt_path", str(checkpoint)]
    with pytest.raises(UserError, match="models for detection cannot be served yet, only those"):
        serve.create_application(parse_config(ServeConfig, given, ""))
    for name in ("x.onnx", "x.mindir"):
        with pytest.raises(UserError, match="models for detection cannot be exported yet"):
            export.main([*given, "--file_name", name])


def test_mistakes(folder: Path) -> None:
    def find(split: str = "val", **changes: Any) -> None:
        config = {"model": NAMES[0], "data_dir": str(folder), **TINY, **changes}
        create_task(ValidateConfig(**config)).find_data(split)

    find()
    with pytest.raises(UserError, match="has 3 classes, but num_classes is 4: set it to 3"):
        find(num_classes=4)
    with pytest.raises(UserError, match="dataset list is not for task detection: use one of coco"):
        find(dataset="list", val_list="x")
    with pytest.raises(UserError, match="train"):
        find("train")
    with pytest.raises(UserError, match="other"):
        find(val_split="other")
    with pytest.raises(UserError, match="did you mean 'retinanet_svt_tiny'"):
        find(model="retinanet_svt_tini")


def test_a_training_takes_the_classes_of_its_data(checkpoint: Path, folder: Path) -> None:
    paths = {"ckpt_path": str(checkpoint), "data_dir": str(folder)}
    task = create_task(TrainConfig(train_split="val2017", **paths))
    data = task.find_data("train")
    assert task.classes == data.classes == CLASSES[::-1] and task.config.num_classes == 3
    model, metadata = task.build_model(World())
    assert metadata["classes"] == list(CLASSES[::-1])
    values = {p.name: p.asnumpy() for p in model.get_parameters()}
    before = load_checkpoint(checkpoint).tensors
    fresh = {name for name in values if not np.array_equal(values[name], before[name])}
    of_classes = ["bbox_head.retina_cls"]
    if "mask" in checkpoint.name:
        head = "roi_head.bbox_head."
        of_classes = [f"{head}fc_cls", f"{head}fc_reg", "roi_head.mask_head.conv_logits"]
    assert {name.rpartition(".")[0] for name in fresh} == set(of_classes)
    masks = " [[[10, 5, 70, 5, 70, 55, 10, 55]]]" if "mask" in checkpoint.name else ""
    assert next(iter(task.entries(data))) == f"0.png [[10.0, 5.0, 70.0, 55.0]] [2]{masks}"


def test_regions_are_of_a_second_stage() -> None:
    recipe = {"task": "detection", "num_classes": 3, "region_samples": 64}
    create_task(TrainConfig(model="maskrcnn_svt_tiny", **recipe))
    with pytest.raises(UserError, match="no second stage, which region_samples is of"):
        create_task(TrainConfig(model="retinanet_svt_tiny", **recipe))


def test_products_and_parameters() -> None:
    """The parameters are those of the official code; the heads' products are counted by hand."""
    for name, parameters in (
        ("retinanet_svt_small", 33_782_260),
        ("maskrcnn_pcpvt_base", 63_481_840),
    ):
        parts = count(name, (1024, 1024))
        assert sum(part.parameters for part in parts) == parameters
    heads = count("retinanet_svt_small", (1024, 1024))[-1]
    pixels = 128**2 + 64**2 + 32**2 + 16**2 + 8**2
    assert heads.layer_products == pixels * 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    box, mask = count("maskrcnn_svt_small", (1024, 1024))[-2:]
    assert box.layer_products == 1000 * (12544 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    at_14 = 4 * 9 * 256 * 256 + 4 * 256 * 256
    assert mask.layer_products == 100 * 14**2 * (at_14 + 4 * 256 * 80)
    # A training has other numbers of regions, which its memory is estimated by.
    recipe = {"task": "detection", "model": "maskrcnn_svt_small", "num_classes": 80}
    recipe |= {"resize_scale": (1024, 1024), "region_samples": 256}
    trained = create_task(TrainConfig(**recipe)).parts()[-2:]
    assert trained[0].kept == pytest.approx(box.kept * 256 / 1000, abs=1)
    assert trained[1].kept == pytest.approx(mask.kept * 64 / 100, abs=1)


@pytest.mark.endurance
def test_a_mask_rcnn_learns_the_digits(tmp_path: Path) -> None:
    """The recipe's loss falls to less than two thirds within twenty of its 300 steps."""
    recipe = Path(__file__).parents[2] / "configs" / "maskrcnn_svt_tiny_digits.yaml"
    paths = ["-c", str(recipe), f"--data_dir={tmp_path}/digits", f"--output_dir={tmp_path}/run"]
    train.main([*paths, "--max_steps=20", "--log_interval=1", "--warmup_steps=10"])
    lines = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) * 2 / 3


# A classifier's and a segmentor's runs do so in the slow tier; what is drawn beyond for regions
# follows from the batch: test_steps.py.
@pytest.mark.endurance
@pytest.mark.parametrize("name", ["retinanet_svt_tiny", "maskrcnn_svt_tiny"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """With moving average, drop path and a classifier's backbone."""
    classifier = mindtwins.create_model("svt_tiny", 10)
    tensors = {p.name: p.asnumpy() for p in classifier.get_parameters()}
    metadata = {"task": "classification", "variant": "svt_tiny", "num_classes": 10}
    save_checkpoint(tmp_path / "backbone.ckpt", tensors, metadata)
    recipe = {
        **{"task": "detection", "model": name, "dataset": "coco", "data_dir": folder},
        **{"train_split": "val2017", "resize_scale": "96,96", "size_steps": 1, "batch_size": 1},
        **{"scheduler": "step", "lr_epochs": 1, "warmup_epochs": 0, "warmup_steps": 2},
        **{"lr": 1e-3, "epoch_size": 1, "epoch_steps": 4, "drop_path_rate": 0.2, "ema": "true"},
        **{"pretrained_backbone": tmp_path / "backbone.ckpt", "log_interval": 1},
    }
    if name.startswith("maskrcnn"):
        recipe["region_samples"] = 40  # of which some are drawn
    arguments = [f"--{key}={value}" for key, value in recipe.items()]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*arguments, f"--output_dir={whole}"])
    train.main([*arguments, f"--output_dir={parts}", "--max_steps=2"])
    train.main([*arguments, f"--output_dir={parts}", "--resume"])
    for file in ("final.ckpt", "final_ema.ckpt"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    final = load_checkpoint(whole / "final.ckpt")
    assert final.metadata["classes"] == list(CLASSES[::-1])
    assert final.metadata["postprocessing"]["top_k"] == "anchors"
    layer = "blocks.0.0.mlp.fc1.weight"
    moved = np.abs(final.tensors[f"backbone.{layer}"] - tensors[layer]).max()
    assert 0 < moved < 0.01  # from where the classifier was, by four steps of at most 0.001
    (epoch,) = map(json.loads, (whole / "log.jsonl").read_text().splitlines())
    assert {"test_box_ap", "test_box_ap50", "test_box_ap_ema"} <= set(epoch)
