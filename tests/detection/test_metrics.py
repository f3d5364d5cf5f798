"""COCO's numbers: by hand, and against pycocotools reading the same files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CATEGORIES, annotation
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.detections import Detections
from mindtwins.detection.metrics import NUMBERS, DetectionMetrics, Results, as_results
from mindtwins.errors import UserError

# Of the classes.
NAMES = [category["name"] for category in CATEGORIES]


def detections(boxes: Any, scores: Any, labels: Any, masks: Any = None) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        masks,
    )


def write(folder: Path, annotations: list[dict], sizes: list[tuple[int, int]]) -> Path:
    """A data set of black pictures with the ids 10, 11 ..."""
    (folder / "images").mkdir()
    images = []
    for number, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / "images" / f"{number}.png")
        images.append(
            {"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height}
        )
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def dataset(folder: Path, **options: Any) -> CocoDataset:
    return CocoDataset(folder / "images", folder / "annotations.json", **options)


def test_by_hand(tmp_path: Path) -> None:
    """Two cats and two dogs; of the detected cats the second is wrong, of the dogs one is found."""
    write(
        tmp_path,
        [
            annotation(0, 10, 3, [0, 0, 20, 20]),
            annotation(1, 11, 3, [10, 10, 20, 20]),
            annotation(2, 10, 7, [40, 40, 50, 50]),
            annotation(3, 11, 7, [40, 40, 50, 50]),
        ],
        [(100, 100), (100, 100)],
    )
    results = Results(dataset(tmp_path))
    # Shifted by 4 of 20 pixels: IoU 16 / 24, right at .50, .55, .60 and .65.
    boxes = [[4, 0, 24, 20], [60, 60, 80, 80], [40, 40, 90, 90]]
    results.add(0, detections(boxes, [0.9, 0.8, 0.5], [0, 0, 1]))
    results.add(1, detections([[10, 10, 30, 30]], [0.7], [0]))
    metrics = results.metrics()
    # Of 101 recalls 51 are up to 1/2, where the precision is 1 for cats and for dogs.
    cat = (51 + 50 * 2 / 3) / 101
    later = 51 / 3 / 101  # only the third is right: 1 of 3, up to a recall of 1/2
    found = metrics.kinds["box"]
    assert found.per_class[0] == pytest.approx((100 * (4 * cat + 6 * later) / 10, 100 * cat))
    assert found.per_class[1] == pytest.approx((100 * 51 / 101, 100 * 51 / 101))
    assert np.isnan(found.per_class[2]).all()
    named = found.by_name()
    assert tuple(named) == NUMBERS
    ap, ap50 = np.mean([found.per_class[0], found.per_class[1]], axis=0)
    assert (named["AP"], named["AP50"]) == pytest.approx((ap, ap50))
    assert named["AP_m"] == pytest.approx(100 * 51 / 101)  # the dogs
    assert np.isnan(named["AP_l"])
    # Cats: both at four IoUs, else one; dogs: one of two.
    assert named["AR@100"] == named["AR@1000"] == pytest.approx(100 * ((4 + 3) / 10 + 0.5) / 2)
    assert metrics.score == named["AP"]
    assert metrics.images == 2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Detections]]:
    """Twelve pictures with crowds, and detections with equal scores near the objects."""
    rng = np.random.default_rng(0)
    annotations: list[dict] = []
    found: dict[int, Detections] = {}
    sizes = [(int(width), int(height)) for width, height in rng.integers(100, 300, (12, 2))]
    for index, (width, height) in enumerate(sizes):
        count = int(rng.integers(1, 8))
        corners = rng.uniform(0, (width * 0.7, height * 0.7), (count, 2))
        spans = rng.uniform(4, 0.3 * min(width, height), (count, 2))
        boxes = np.concatenate([corners, spans], axis=1).round(2)
        labels = rng.integers(0, 3, count)
        for box, label in zip(boxes, labels, strict=True):
            crowd = {}
            if rng.random() < 0.2:
                mask = np.zeros((height, width), np.uint8, order="F")
                left, top, across, down = box.astype(int)
                mask[top : top + down, left : left + across] = 1
                code = mask_tools.encode(mask)
                crowd = {
                    "iscrowd": 1,
                    "segmentation": {**code, "counts": code["counts"].decode()},
                }
            number = CATEGORIES[label]["id"]
            annotations.append(
                annotation(len(annotations), 10 + index, number, box.tolist(), **crowd)
            )
        some = np.concatenate([boxes, boxes[: count // 2]])
        moved = some + rng.normal(0, 1.5, some.shape)
        moved[:, 2:] = moved[:, 2:].clip(1) + moved[:, :2]
        masks = np.zeros((len(some), height, width), bool)
        for mask, (left, top, right, bottom) in zip(masks, moved.round().astype(int), strict=True):
            mask[max(top, 0) : bottom, max(left, 0) : right] = True
        mistaken = np.where(rng.random(len(some)) < 0.2, 1, 0)
        guesses = (np.concatenate([labels, labels[: count // 2]]) + mistaken) % 3
        found[index] = detections(moved, rng.integers(1, 9, len(some)) / 8, guesses, masks)
    found[3] = detections([], [], [], np.zeros((0, *sizes[3][::-1]), bool))
    return write(tmp_path_factory.mktemp("scene"), annotations, sizes), found


@pytest.fixture(scope="module")
def scored(scene: tuple[Path, dict[int, Detections]]) -> tuple[Results, DetectionMetrics]:
    folder, found = scene
    results = Results(dataset(folder, masks=True), masks=True)
    for index, objects in found.items():
        results.add(index, objects)
    return results, results.metrics()


@pytest.mark.parametrize(("kind", "name"), [("box", "bbox"), ("mask", "segm")])
def test_numbers_are_those_of_cocos_own_tools(
    scene: tuple[Path, dict[int, Detections]],
    scored: tuple[Results, DetectionMetrics],
    tmp_path: Path,
    kind: str,
    name: str,
) -> None:
    results, metrics = scored
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.listed(kind)))
    content = json.loads((scene[0] / "annotations.json").read_text())
    for one in content["annotations"]:
        one["id"] += 1  # pycocotools misses a match with the id 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(str(path)), name)
        reference.params.maxDets = [100, 300, 1000]
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    expected = np.where(reference.stats < 0, np.nan, 100 * reference.stats)
    np.testing.assert_allclose(metrics.kinds[kind].numbers, expected, rtol=1e-12)
    assert 10 < metrics.score < 90
    assert np.mean(metrics.kinds[kind].per_class, axis=0) == pytest.approx(expected[:2])


def test_ranks_share_the_pictures(
    scene: tuple[Path, dict[int, Detections]], scored: tuple[Results, DetectionMetrics]
) -> None:
    """However they are shared, and also where two have the same picture."""
    folder, found = scene
    parts = [Results(dataset(folder, masks=True), masks=True) for _ in range(3)]
    for index, objects in reversed(found.items()):
        parts[index % 3].add(index, objects)
    parts[1].add(0, found[0])
    total = Results(dataset(folder, masks=True), masks=True)
    for part in parts:
        total.add_bytes(part.to_bytes())
    assert total.listed("mask") == scored[0].listed("mask")
    assert total.metrics().result(NAMES) == scored[1].result(NAMES)


def test_pictures_that_were_left_out_do_not_count(
    scene: tuple[Path, dict[int, Detections]],
) -> None:
    folder, found = scene
    results = Results(dataset(folder))
    results.add(5, found[5])
    perfect = Results(dataset(folder))
    objects = dataset(folder).objects(5)
    perfect.add(5, detections(objects.boxes, np.ones(len(objects)), objects.labels))
    assert results.metrics().images == 1
    assert perfect.metrics().kinds["box"].by_name()["AP50"] == pytest.approx(100)
    for index in range(6, 12):
        perfect.add(index, detections([], [], []))
    assert perfect.metrics().score < 60


def test_nothing_found_and_nothing_to_find(tmp_path: Path) -> None:
    write(tmp_path, [annotation(1, 10, 3, [0, 0, 20, 20])], [(50, 40), (50, 40)])
    results = Results(dataset(tmp_path), masks=True)
    nothing = detections([], [], [], np.zeros((0, 40, 50), bool))
    results.add(1, nothing)
    with pytest.raises(UserError, match="no object of the 3 classes in the 1 pictures"):
        results.metrics()
    results.add(0, nothing)
    assert results.metrics().score == 0
    with pytest.raises(ValueError, match="the detector has found none"):
        results.add(0, detections([[1, 1, 2, 2]], [0.5], [0]))


def test_results_as_json() -> None:
    masks = np.zeros((1, 3, 4), bool)
    masks[0, [1, 2, 0], [1, 1, 2]] = True
    found = as_results(detections([[0.1, 1, 2.5, 3]], [0.75], [2], masks))
    left = float(np.float32(0.1))
    assert found == [
        {
            "label": 2,
            "score": 0.75,
            "bbox": [left, 1.0, 2.5 - left, 2.0],
            "segmentation": {"size": [3, 4], "counts": "435"},
        }
    ]
    assert json.loads(json.dumps(found)) == found


def test_report(scored: tuple[Results, DetectionMetrics]) -> None:
    metrics = scored[1]
    box, mask = metrics.kinds["box"], metrics.kinds["mask"]
    assert metrics.record() == {
        "box_ap": box.numbers[0],
        "box_ap50": box.numbers[1],
        "mask_ap": mask.numbers[0],
        "mask_ap50": mask.numbers[1],
    }
    assert str(metrics).startswith(f"box AP {box.numbers[0]:.2f} %, AP50 {box.numbers[1]:.2f} %")
    lines = metrics.table(NAMES).splitlines()
    heads = "class, box AP, box AP50, mask AP, mask AP50"
    assert lines[0].split() == heads.replace(",", "").split()
    assert lines[2].split() == ["dog", *(f"{v:.2f}" for v in box.per_class[1] + mask.per_class[1])]
    assert lines[4].split()[0] == "mean"
    assert lines[5].startswith("box: AP75 ") and lines[5].endswith("AR_l@1000 -")
    result = metrics.result(NAMES)
    assert result["box"]["AP"] == box.numbers[0]
    assert result["mask"]["classes"]["dog"]["AP50"] == mask.per_class[1][1]
    assert result["box"]["AP_l"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_as_mmdetection(tmp_path: Path) -> None:
    """The numbers of its `CocoDataset.evaluate`.

    Those of masks by size are left out: MMDetection 2.8 tells the size of a found mask by its box.
    """
    theirs = np.load(Path(__file__).parent / "fixtures" / "coco_scores.npz")
    content = json.loads(theirs["annotations"].tobytes())
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).touch()
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    results = Results(dataset(tmp_path, masks=True), masks=True)
    for index, image in enumerate(content["images"]):
        here = theirs["image"] == index
        boxes = theirs["boxes"][here]
        masks = [
            mask_tools.decode(
                mask_tools.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], *shape_of(image))
            )[:, :, 0]
            for x1, y1, x2, y2 in boxes.tolist()
        ]
        found = detections(boxes, theirs["scores"][here], theirs["labels"][here], np.stack(masks))
        results.add(index, found)
    metrics = results.metrics()
    for kind, name, compared in (("box", "bbox", range(12)), ("mask", "segm", (0, 1, 2, 6, 7, 8))):
        expected = np.where(theirs[name] < 0, np.nan, 100 * theirs[name])
        numbers = np.array(metrics.kinds[kind].numbers)
        np.testing.assert_allclose(numbers[[*compared]], expected[[*compared]], rtol=1e-12)


def shape_of(image: dict[str, int]) -> tuple[int, int]:
    return image["height"], image["width"]
