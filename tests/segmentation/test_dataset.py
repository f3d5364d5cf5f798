from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.decode import UnreadableImage
from mindtwins.errors import UserError
from mindtwins.segmentation import ade20k
from mindtwins.segmentation.dataset import ImageLabelFolder, find_pairs

FIVE = tuple("abcde")


def refused(message: str) -> object:
    return pytest.raises(UserError, match=message)


# What a pair holds -------------------------------------------------------------------------------


def test_pairs(pairs: ImageLabelFolder, pair_folder: Path) -> None:
    assert len(pairs) == 8
    assert pairs.root == str(pair_folder / "images")
    assert [Path(path).name for path in pairs.paths] == [f"{i}.jpg" for i in range(8)]
    assert [Path(path).name for path in pairs.label_paths] == [f"{i}.png" for i in range(8)]
    assert (pairs.classes, pairs.num_classes) == (FIVE, 5)
    image, labels = pairs.read(1)
    assert (image.mode, image.size, labels.shape) == ("RGB", (48, 64), (64, 48))
    assert pairs.size(1) == (48, 64)
    raw = np.asarray(Image.open(pairs.label_paths[1])).astype(int)
    assert set(np.unique(raw)) == set(range(6))
    np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))
    assert labels.dtype == np.uint8


def test_labels_from_zero(pair_folder: Path) -> None:
    pairs = ImageLabelFolder(pair_folder / "images", pair_folder / "labels", (*FIVE, "f"))
    raw = np.asarray(Image.open(pairs.label_paths[1]))
    np.testing.assert_array_equal(pairs.read(1)[1], raw)


@pytest.mark.parametrize("ignore_label_zero", [False, True])
def test_255_is_ignored(pair_folder: Path, ignore_label_zero: bool) -> None:
    labels = np.full((45, 60), 1, np.uint8)
    labels[:3] = 255
    Image.fromarray(labels).save(pair_folder / "labels" / "0.png")
    pairs = ImageLabelFolder(
        pair_folder / "images", pair_folder / "labels", FIVE, ignore_label_zero=ignore_label_zero
    )
    expected = np.where(labels == 255, 255, 0 if ignore_label_zero else 1)
    np.testing.assert_array_equal(pairs.read(0)[1], expected)


def test_most_classes(pair_folder: Path) -> None:
    labels = np.arange(60 * 45).reshape(45, 60).astype(np.uint8)
    Image.fromarray(labels).save(pair_folder / "labels" / "0.png")
    folders = pair_folder / "images", pair_folder / "labels"
    names = [str(number) for number in range(256)]
    np.testing.assert_array_equal(ImageLabelFolder(*folders, names[:255]).read(0)[1], labels)
    shifted = ImageLabelFolder(*folders, names[:254], ignore_label_zero=True).read(0)[1]
    np.testing.assert_array_equal(shifted, np.where(labels == 255, 255, labels - np.uint8(1)))
    for count in (0, 256):
        with refused(f"{count} classes are named: a label file of 8 bits has room for 1 to 255"):
            ImageLabelFolder(*folders, names[:count])


def test_subfolders_and_other_files(pair_folder: Path) -> None:
    for folder, extension in (("images", ".JPG"), ("labels", ".png")):
        (pair_folder / folder / "town").mkdir()
        source = pair_folder / folder / f"0{extension.lower()}"
        source.rename(pair_folder / folder / "town" / f"x{extension}")
    (pair_folder / "labels" / "1.json").write_text("not a label file")
    pairs = ImageLabelFolder(pair_folder / "images", pair_folder / "labels", (*FIVE, "f"))
    assert [str(Path(p).relative_to(pair_folder / "images")) for p in pairs.paths[-2:]] == [
        "7.jpg",
        "town/x.JPG",
    ]
    assert pairs.label_paths[-1] == str(pair_folder / "labels" / "town" / "x.png")


def test_leftovers_and_other_suffixes(pair_folder: Path, told: Callable) -> None:
    for folder, name in (("images", "._0.jpg"), ("labels", "._0.png"), ("labels", ".git/0.png")):
        (pair_folder / folder / name).parent.mkdir(exist_ok=True)
        (pair_folder / folder / name).touch()
    (pair_folder / "images" / "0.jpg").rename(pair_folder / "images" / "0.jfif")
    (pair_folder / "images" / "notes.txt").touch()
    (pair_folder / "labels" / "again").symlink_to(".")
    pairs = ImageLabelFolder(pair_folder / "images", pair_folder / "labels", (*FIVE, "f"))
    assert len(pairs) == 8 and pairs.paths[0].endswith("0.jfif")
    assert pairs.read(0)[0].size == (60, 45)
    assert told() == [
        f"notice: left out of {pair_folder}/images: left by systems and tools: 1 (._0.jpg); files "
        "of kinds that are not read here: 1 (.txt)",
        f"notice: left out of {pair_folder}/labels: left by systems and tools: 2 (._0.png, .git); "
        "links to folders that are read already: 1 (again)",
    ]


def test_splits_of_other_names(pair_folder: Path, tmp_path: Path) -> None:
    for kind, files in (("images", "images"), ("annotations", "labels")):
        (tmp_path / "data" / kind).mkdir(parents=True)
        (pair_folder / files).rename(tmp_path / "data" / kind / "validation")
    folder = tmp_path / "data"
    assert len(find_pairs(folder, "validation", (*FIVE, "f"), split="val")) == 8
    with refused("images has no 'val' folder: it has validation; say so with --val_split valid"):
        find_pairs(folder, "val", FIVE, split="val")
    with refused(f"images has no 'train' folder: create {folder}/images/train"):
        find_pairs(folder, "train", FIVE, split="train")


def test_ade20k(pair_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "ade"
    for kind, files in (("images", "images"), ("annotations", "labels")):
        (root / kind).mkdir(parents=True)
        (pair_folder / files).rename(root / kind / "training")
    pairs = ade20k.find_ade20k(root, "train")
    assert (len(pairs), pairs.num_classes, pairs.ignore_label_zero) == (8, 150, True)
    assert find_pairs(root, "training", FIVE).paths == pairs.paths
    with refused("images/validation of the images does not exist"):
        ade20k.find_ade20k(root, "val")
    with refused("data folder .*nowhere does not exist"):
        ade20k.find_ade20k(tmp_path / "nowhere", "val")


def test_ade20k_classes() -> None:
    assert len(set(ade20k.CLASSES)) == len(ade20k.PALETTE) == 150
    named = dict(zip(ade20k.CLASSES, ade20k.PALETTE, strict=True))
    assert ade20k.CLASSES[:3] == ("wall", "building", "sky")
    assert ade20k.CLASSES[44:46] == ("chest of drawers", "counter")
    assert (named["wall"], named["sky"], named["flag"]) == (
        (120, 120, 120),
        (6, 230, 230),
        (92, 0, 255),
    )


# Files that do not fit ---------------------------------------------------------------------------


def test_image_without_labels_and_the_reverse(pair_folder: Path) -> None:
    folders = pair_folder / "images", pair_folder / "labels"
    (pair_folder / "labels" / "3.png").unlink()
    with refused(rf"image {folders[0]}/3\.jpg has no label file in {folders[1]}: add it or"):
        ImageLabelFolder(*folders, FIVE)
    for number in (3, 4, 5):
        (pair_folder / "images" / f"{number}.jpg").unlink()
    with refused(rf"label file {folders[1]}/4\.png \(and 1 more\) has no image in {folders[0]}"):
        ImageLabelFolder(*folders, FIVE)


def test_two_images_of_one_name(pair_folder: Path) -> None:
    Image.new("RGB", (60, 45)).save(pair_folder / "images" / "2.png")
    with refused(r"images/2\.jpg and \S+images/2\.png have the same name"):
        ImageLabelFolder(pair_folder / "images", pair_folder / "labels", FIVE)


def test_empty_or_missing_folder(pair_folder: Path) -> None:
    (pair_folder / "empty").mkdir()
    with refused(r"the folder \S+/empty holds no images: fill it"):
        ImageLabelFolder(pair_folder / "empty", pair_folder / "labels", FIVE)
    with refused(r"the folder \S+/empty holds no label files: fill it"):
        ImageLabelFolder(pair_folder / "images", pair_folder / "empty", FIVE)
    with refused(r"the folder \S+/no of the label files does not exist"):
        ImageLabelFolder(pair_folder / "images", pair_folder / "no", FIVE)


def save_depth(path: Path, bits: int) -> None:
    """Write a grayscale PNG of fewer than 8 bits, which PIL cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60, 45, bits, 0, 0, 0, 0)
    rows = (b"\0" + bytes(-(-60 * bits // 8))) * 45
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def palette(path: Path) -> None:
    image = Image.new("P", (60, 45))
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.save(path, bits=8)


WRONG_KINDS = {
    "8-bit RGB": lambda path: Image.new("RGB", (60, 45)).save(path),
    "8-bit RGBA": lambda path: Image.new("RGBA", (60, 45)).save(path),
    "8-bit grayscale with alpha": lambda path: Image.new("LA", (60, 45)).save(path),
    "16-bit grayscale": lambda path: Image.new("I;16", (60, 45)).save(path),
    "1-bit grayscale": lambda path: Image.new("1", (60, 45)).save(path),
    "4-bit grayscale": lambda path: save_depth(path, 4),
    "8-bit palette": palette,
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_wrong_kind_of_label_file(kind: str, pairs: ImageLabelFolder) -> None:
    path = Path(pairs.label_paths[0])
    WRONG_KINDS[kind](path)
    advice = "save the class numbers as 8-bit grayscale"
    if "palette" in kind:
        advice = re.escape("PIL.Image.fromarray(numpy.asarray(image))")
    with refused(f"label file {path} is a {kind} PNG: .*{advice}"):
        pairs.read(0)


def test_advice_for_palettes_helps(pairs: ImageLabelFolder) -> None:
    path = pairs.label_paths[0]
    values = np.asarray(Image.open(path))
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.save(path)
    with refused("palette"):
        pairs.read(0)
    Image.fromarray(np.asarray(Image.open(path))).save(path)
    np.testing.assert_array_equal(pairs.read(0)[1] + np.uint8(1), values)


def test_labels_out_of_range(pairs: ImageLabelFolder, pair_folder: Path) -> None:
    path = pairs.label_paths[0]
    labels = np.arange(60 * 45).reshape(45, 60) % 8
    Image.fromarray(labels.astype(np.uint8)).save(path)
    with refused(
        f"label file {path} holds the labels 6, 7, but the 5 classes are numbered 1 to 5, "
        "and 0 and 255 ignored: correct the file or the number of classes"
    ):
        pairs.read(0)
    from_zero = ImageLabelFolder(pair_folder / "images", pair_folder / "labels", tuple("abcdefg"))
    with refused("holds the label 7, but the 7 classes are numbered 0 to 6, and 255 ignored"):
        from_zero.read(0)


def test_sizes_that_differ(pairs: ImageLabelFolder) -> None:
    Image.new("L", (45, 60)).save(pairs.label_paths[0])
    message = rf"it is 60 x 45 pixels, but its label file {pairs.label_paths[0]} 45 x 60"
    with pytest.raises(UnreadableImage, match=message):
        pairs.read(0)


def rotate(path: str, orientation: int) -> None:
    """Store a picture turned, so that it is shown as it was."""
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.open(path)
    picture.transpose(turned).save(path, exif=exif, quality=95)


def test_sizes_that_exif_explains(pairs: ImageLabelFolder, pair_folder: Path) -> None:
    upright = np.asarray(pairs.read(0)[0]).astype(float)
    rotate(pairs.paths[0], 6)
    assert pairs.size(0) == (45, 60)
    advice = "45 x 60 pixels, .* 60 x 45; its EXIF orientation explains that: try --exif_orient.* "
    with pytest.raises(UnreadableImage, match=f"{advice}true$"):
        pairs.read(0)
    folders = pair_folder / "images", pair_folder / "labels"
    turned = ImageLabelFolder(*folders, FIVE, ignore_label_zero=True, exif_orientation=True)
    image, labels = turned.read(0)
    assert image.size == turned.size(0) == (60, 45) and labels.shape == (45, 60)
    assert np.abs(np.asarray(image) - upright).mean() < 4
    # Labels of the stored picture, which then do not fit the upright one.
    stored = np.asarray(Image.open(pairs.label_paths[0])).T
    Image.fromarray(np.ascontiguousarray(stored)).save(pairs.label_paths[0])
    assert pairs.read(0)[0].size == (45, 60)
    with pytest.raises(UnreadableImage, match=r"60 x 45 pixels, .* 45 x 60; .*_orientation false$"):
        turned.read(0)


def test_pictures_upside_down_are_told(pairs: ImageLabelFolder, told: Callable) -> None:
    rotate(pairs.paths[0], 3)
    assert pairs.read(0)[0].size == (60, 45)
    (notice,) = told()
    assert "0.jpg is taken as it is stored, although its EXIF orientation is 3" in notice


def test_damaged_files(pairs: ImageLabelFolder) -> None:
    image, labels = Path(pairs.paths[0]), Path(pairs.label_paths[0])
    whole = labels.read_bytes()
    for content in (b"", b"not a PNG file at all, but text", whole[:20]):
        labels.write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf"{labels} is not a PNG file, or cut short"):
            pairs.read(0)
    for content in (whole[: len(whole) // 2], whole[:60] + b"\0\0\0\0" + whole[64:]):
        labels.write_bytes(content)
        with pytest.raises(UnreadableImage, match=f"its label file {labels}: "):
            pairs.read(0)
    labels.unlink()
    with pytest.raises(UnreadableImage, match=f"its label file {labels}: No such file"):
        pairs.read(0)
    image.write_bytes(b"")
    assert pairs.size(0) == (0, 0)
    with pytest.raises(UnreadableImage):
        pairs.read(0)
