from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, content
from PIL import Image
from pycocotools import mask as mask_tools

from mindtwins.data.decode import UnreadableImage, limit_pixels
from mindtwins.detection import cocotools
from mindtwins.detection.annotations import read_annotations
from mindtwins.detection.dataset import CocoDataset, find_coco
from mindtwins.detection.run_lengths import decode_mask, encode_masks, read_counts
from mindtwins.errors import UserError

Change = Callable[[dict[str, Any]], object]


def dataset(folder: Path, **options: Any) -> CocoDataset:
    return CocoDataset(folder / "images", folder / "annotations.json", **options)


def rewrite(folder: Path, data: object) -> None:
    (folder / "annotations.json").write_text(json.dumps(data))


# What is in a data set ---------------------------------------------------------------------------


def test_pictures_and_objects(coco_folder: Path) -> None:
    data = dataset(coco_folder, masks=True)
    assert len(data) == 5
    assert (data.classes, data.category_ids) == (("cat", "dog", "fish"), [3, 7, 1])
    assert [Path(path).name for path in data.paths] == [f"{n}.png" for n in range(5)]
    assert data.image_ids == [10, 11, 12, 13, 14]
    image, objects = data.read(0)
    assert (image.mode, image.size, data.size(0)) == ("RGB", (60, 45), (60, 45))
    np.testing.assert_array_equal(
        objects.boxes, np.array([[10, 5, 30.5, 35], [0, 0, 12, 9.25]], np.float32)
    )
    assert objects.boxes.dtype == np.float32
    assert (objects.labels.tolist(), objects.labels.dtype) == ([0, 1], np.int64)
    assert objects.masks is not None
    assert (objects.masks.shape, objects.masks.dtype) == ((2, 45, 60), np.uint8)
    # A pixel belongs to a polygon that covers its center; COCO rounds half pixels up.
    expected = np.zeros((45, 60), np.uint8)
    expected[5:35, 10:31] = 1
    assert np.abs(objects.masks[0].astype(int) - expected).sum() <= 30
    assert objects.masks[0][5:35, 10:30].all() and objects.masks[0].sum() in (600, 630)


def test_pictures_without_objects(coco_folder: Path) -> None:
    data = dataset(coco_folder, masks=True)
    for index in (2, 3):  # nothing, and a crowd
        objects = data.read(index)[1]
        assert (len(objects), objects.boxes.shape, objects.labels.shape) == (0, (0, 4), (0,))
        assert objects.masks is not None and objects.masks.shape == (0, *data.size(index)[::-1])
    assert dataset(coco_folder).read(0)[1].masks is None


def test_what_is_learned_from(coco_folder: Path) -> None:
    """A picture without annotations and a small one are left out; one with a crowd stays."""
    data = dataset(coco_folder, training=True)
    assert data.image_ids == [10, 11, 13]
    assert data.sizes.tolist() == [[60, 45], [48, 64], [70, 50]]
    assert [len(data.read(index)[1]) for index in range(3)] == [2, 1, 0]
    assert dataset(coco_folder, training=True, classes=["fish"]).image_ids == [11]
    rewrite(coco_folder, content() | {"annotations": [annotation(1, 14, 3, [1, 1, 9, 9])]})
    with pytest.raises(UserError, match="no picture to learn from"):
        dataset(coco_folder, training=True)


def test_classes_are_their_names(coco_folder: Path) -> None:
    data = dataset(coco_folder, classes=["dog", "cat"])
    assert (data.classes, data.category_ids, data.num_classes) == (("dog", "cat"), [7, 3], 2)
    assert data.read(0)[1].labels.tolist() == [1, 0]
    assert len(data.read(1)[1]) == 0  # fish
    with pytest.raises(UserError, match=r"no category 'cow' \(and 1 more\), which is one"):
        dataset(coco_folder, classes=["dog", "cow", "sheep"])


@pytest.mark.parametrize(
    ("box", "more", "reason"),
    [
        ([1, 1, 9, 9], {"ignore": 1}, "marked to be ignored"),
        ([1, 1, 9, 9], {"iscrowd": 1}, "of crowds"),
        ([1, 1, 9, 9], {"area": 0}, "of no area"),
        ([1, 1, 9, 0.99], {}, "of no area"),
        ([1, 1, 0, 9], {}, "of no area"),
        ([-9, 1, 9, 9], {}, "outside of their pictures"),
        ([60, 1, 9, 9], {}, "outside of their pictures"),
        ([1, 45, 9, 9], {}, "outside of their pictures"),
        ([1, 1, 9, 9], {"category_id": 1}, "of other categories"),
        ([-8, -8, 9, 9], {}, ""),
        ([59, 44, 1, 1], {}, ""),
    ],
)
def test_annotations_to_leave_out(
    coco_folder: Path,
    caplog: pytest.LogCaptureFixture,
    box: list[float],
    more: dict[str, Any],
    reason: str,
) -> None:
    rewrite(coco_folder, content() | {"annotations": [annotation(1, 10, 3, box) | more]})
    with caplog.at_level(logging.WARNING):
        objects = dataset(coco_folder, classes=["cat", "dog"]).read(0)[1]
    if reason:
        assert len(objects) == 0
        assert "not learned from: 1 " + reason in caplog.text
    else:
        left, top, width, height = box
        assert objects.boxes.tolist() == [[left, top, left + width, top + height]]
        assert not caplog.text


def test_ground_truth_has_all_annotations_of_the_classes(coco_folder: Path) -> None:
    truth = dataset(coco_folder, classes=["fish", "cat"]).ground_truth()
    assert [image["id"] for image in truth["images"]] == [10, 11, 12, 13, 14]
    assert [category["id"] for category in truth["categories"]] == [1, 3]
    kept = [(one["id"], one["image_id"], one["iscrowd"]) for one in truth["annotations"]]
    assert kept == [(1, 10, 0), (2, 11, 0), (3, 13, 1), (4, 14, 0)]


def test_what_may_be_missing(coco_folder: Path) -> None:
    """An area and the mark of a crowd; corners of a polygon that covers nothing."""
    bare = annotation(1, 10, 3, [1, 2, 9, 8])
    del bare["area"], bare["iscrowd"]
    bare["segmentation"].append([1, 1, 2, 2])
    rewrite(coco_folder, content() | {"annotations": [bare]})
    (read,) = read_annotations(coco_folder / "annotations.json", masks=True).annotations
    assert (read["area"], read["iscrowd"], len(read["segmentation"])) == (72, 0, 1)


def test_cocos_layout(coco_folder: Path) -> None:
    (coco_folder / "images").rename(coco_folder / "val2017")
    (coco_folder / "annotations").mkdir()
    (coco_folder / "annotations.json").rename(
        coco_folder / "annotations" / "instances_val2017.json"
    )
    assert len(find_coco(coco_folder, "val2017", split="val")) == 5
    with pytest.raises(UserError, match="no 'train2017' folder"):
        find_coco(coco_folder, "train2017", split="train")
    with pytest.raises(UserError, match=r"folder .*test2017 of the pictures does not exist"):
        find_coco(coco_folder, "test2017")
    (coco_folder / "train2017").mkdir()
    with pytest.raises(UserError, match=r"instances_train2017\.json does not exist"):
        find_coco(coco_folder, "train2017", split="train")


# Pictures ----------------------------------------------------------------------------------------


def test_missing_picture(coco_folder: Path) -> None:
    (coco_folder / "images" / "0.png").unlink()
    (coco_folder / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"the picture .*0\.png \(and 1 more\) of .* not there"):
        dataset(coco_folder)


def test_damaged_picture_and_wrong_size(coco_folder: Path) -> None:
    data = dataset(coco_folder)
    (coco_folder / "images" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 48)).save(coco_folder / "images" / "1.png")
    with pytest.raises(UnreadableImage, match="not an image format"):
        data.read(0)
    with pytest.raises(UnreadableImage, match="it is 64 x 48 pixels, but 48 x 64 in"):
        data.read(1)


def test_orientation(coco_folder: Path, photograph: np.ndarray) -> None:
    """A picture stored on its side is turned, so that the boxes fit."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = photograph[:64, :48]
    path = coco_folder / "images" / "1.png"
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(dataset(coco_folder).read(1)[0]), upright)
    with pytest.raises(UnreadableImage, match="it is 64 x 48 pixels"):
        dataset(coco_folder, exif_orientation=False).read(1)


# Annotation files that are not sound -------------------------------------------------------------


def with_first(**changes: Any) -> Change:
    """Change the first annotation."""
    return lambda data: data["annotations"][0].update(changes)


def code(counts: object, size: object = (45, 60)) -> Change:
    """Give the first annotation a run-length code; its picture is 45 x 60."""
    return with_first(segmentation={"size": size, "counts": counts})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("images"), "it has no list of images"),
        (lambda data: data.update(images=[]), "its list of images is empty"),
        (lambda data: data.update(categories={}), "it has no list of categories"),
        (lambda data: data.update(categories=[]), "its list of categories is empty"),
        (lambda data: data.pop("annotations"), "it has no list of annotations"),
        (lambda data: data["images"].append("x"), "entry 5 of images has no 'id'"),
        (
            lambda data: data["images"][1].pop("width"),
            "entry 1 of images has no 'width' that is a whole number",
        ),
        (lambda data: data["images"][1].update(height=0), "image 11 is 48 x 0 pixels"),
        (lambda data: data["images"][1].update(id=10), "the image id 10 is there twice"),
        (lambda data: data["images"][1].update(id="11"), "some of the image ids are numbers and"),
        (lambda data: data["categories"][1].update(id=3), "the category id 3 is there twice"),
        (lambda data: data["categories"][1].update(name="cat"), "2 categories are called 'cat'"),
        (with_first(id=6), "the annotation id 6 is there twice"),
        (with_first(image_id=99), "annotation 5 is of image 99, which there is not"),
        (with_first(category_id=8), "annotation 5 is of category 8, which there is not"),
        (with_first(category_id=None), "entry 0 of annotations has no 'category_id' that is a"),
        (with_first(bbox=[1, 2, 3]), "annotation 5 has the box [1, 2, 3], not x, y, a width"),
        (with_first(bbox=[1, 2, -3, 4]), "annotation 5 has the box [1, 2, -3, 4]"),
        (with_first(bbox=[1, 2, 3, "4"]), "annotation 5 has the box [1, 2, 3, '4']"),
        (with_first(bbox=[1, 2, float("nan"), 4]), "annotation 5 has the box [1, 2, nan, 4]"),
        (with_first(bbox=[1, 2, 10**400, 4]), "annotation 5 has the box [1, 2, 1000"),
        (with_first(area=10**400), "annotation 5 has an area or a mark of a crowd that is no"),
        (with_first(segmentation=[[10**400] * 6]), "annotation 5 has a polygon that is no list"),
        (with_first(segmentation=[[1e300] * 6]), "annotation 5 has a polygon that is no list"),
        (with_first(area="big"), "annotation 5 has an area or a mark of a crowd that is no number"),
        (with_first(segmentation=None), "annotation 5 has no segmentation"),
        (with_first(segmentation=[]), "annotation 5 has a segmentation without a polygon"),
        (with_first(segmentation=[[1, 2, 3, 4]]), "without a polygon of three corners"),
        (with_first(segmentation=[[1] * 7]), "annotation 5 has a polygon of 7 numbers"),
        (with_first(segmentation=["1 2"]), "annotation 5 has a polygon that is no list"),
        *(
            (with_first(segmentation=[corners]), "annotation 5 has a polygon with a corner more")
            for corners in (
                [1e11, 1, 5, 1, 5, 5],
                [661, 1, 5, 1, 5, 5],
                [1, 1, 5, 1, 5, -451],
            )
        ),
        (
            code([2700], [60, 45]),
            "annotation 5 has a run-length code of the size [60, 45], but its picture is 45 high",
        ),
        (code([100, 20]), "a run-length code of 120 pixels, but its picture has 45 x 60 = 2700"),
        (code([2701, -1]), "annotation 5 has a run-length code that is damaged"),
        (code([10**30]), "annotation 5 has a run-length code that is damaged"),
        (code([2**62] * 4 + [2700]), "annotation 5 has a run-length code that is damaged"),
        (code("4a"), "annotation 5 has a run-length code that is damaged"),
        (code("\u00e9"), "annotation 5 has a run-length code that is damaged"),
        (code("435"), "a run-length code of 12 pixels, but its picture has 45 x 60 = 2700"),
        (code(None), "annotation 5 has a run-length code that is damaged"),
    ],
)
def test_files_that_contradict_themselves(coco_folder: Path, change: Change, message: str) -> None:
    data = content()
    change(data)
    rewrite(coco_folder, data)
    path = re.escape(str(coco_folder / "annotations.json"))
    with pytest.raises(UserError, match=f"{path} is not in COCO's format: .*{re.escape(message)}"):
        dataset(coco_folder, masks=True)


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, r"image 11 is \d+ x \d+ pixels"),
        (-64, r"image 11 is -?\d+ x -?\d+ pixels"),
        *(
            (value, "entry 1 of images has no '(width|height)' that is a whole number")
            for value in ("64", 64.0, True, None, float("nan"), float("inf"), [64])
        ),
        (10**9, r"image 11 is .*\b1000000000\b.* pixels, .* more than 178956970 are refused"),
        (10**400, r"image 11 is .*10\^400.* pixels, .* or allow it with --max_pixels"),
    ],
)
def test_sizes_that_no_picture_has(
    coco_folder: Path, side: str, value: object, message: str
) -> None:
    data = content()
    data["images"][1][side] = value
    rewrite(coco_folder, data)
    with pytest.raises(UserError, match=message) as refused:
        dataset(coco_folder)
    assert "annotations.json" in str(refused.value) and "\n" not in str(refused.value)


def test_the_limit_of_pixels_is_the_recipes(
    coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back
    limit_pixels(70 * 50)
    assert len(dataset(coco_folder)) == 5
    limit_pixels(70 * 50 - 2)
    with pytest.raises(UserError, match=r"image 13 is 70 x 50 pixels, .* more than 3498 are"):
        dataset(coco_folder)


def test_segmentations_are_checked_where_they_are_needed(coco_folder: Path) -> None:
    data = content()
    with_first(segmentation=[])(data)
    rewrite(coco_folder, data)
    assert len(dataset(coco_folder).read(0)[1]) == 2


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b'{"images": [', "cannot read the annotation file .* it is no JSON"),
        (b"\xff\xfe\x00", "cannot read the annotation file .* it is no JSON"),
        (b"[" * 100000, "cannot read the annotation file .* it is no JSON"),
        (b"", "annotations.json is empty"),
        (b"[1, 2]", "it holds a list rather than an object of lists"),
    ],
)
def test_files_that_are_no_annotation_files(
    coco_folder: Path, written: bytes, message: str
) -> None:
    (coco_folder / "annotations.json").write_bytes(written)
    with pytest.raises(UserError, match=message):
        dataset(coco_folder)


# Masks -------------------------------------------------------------------------------------------


def test_run_lengths() -> None:
    """The code of a bitmap, by hand, and many of them against pycocotools."""
    masks = np.zeros((2, 3, 4), bool)
    masks[0, [1, 2, 0], [1, 1, 2]] = True
    codes = encode_masks(masks)
    assert codes == [{"size": [3, 4], "counts": "435"}, {"size": [3, 4], "counts": "<"}]
    assert json.loads(json.dumps(codes)) == codes
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (300, 200)):
        for part in (0.01, 0.5, 0.99):
            mask = rng.random((height, width)) < part
            (encoded,) = encode_masks(mask[None])
            np.testing.assert_array_equal(decode_mask(encoded, height, width), mask)
            counts = read_counts(encoded["counts"])
            assert counts is not None
            listed = {"size": [height, width], "counts": counts.tolist()}
            np.testing.assert_array_equal(decode_mask(listed, height, width), mask)
    assert encode_masks(np.zeros((0, 3, 4), bool)) == []


def test_polygons_are_merged() -> None:
    parts = [[1, 1, 5, 1, 5, 5, 1, 5], [3, 3, 9, 3, 9, 8, 3, 8]]
    whole = decode_mask(parts, 10, 12)
    single = [mask_tools.decode(mask_tools.frPyObjects([part], 10, 12))[:, :, 0] for part in parts]
    np.testing.assert_array_equal(whole, single[0] | single[1])
    assert whole.sum() == 16 + 30 - 4


def test_polygons_may_leave_the_picture(coco_folder: Path) -> None:
    data = content()
    with_first(segmentation=[[-600, -450, 660, -450, 660, 495, -600, 495]])(data)
    rewrite(coco_folder, data)
    masks = dataset(coco_folder, masks=True).read(0)[1].masks
    assert masks is not None and masks[0].all()


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        cocotools.cocotools("mask")
