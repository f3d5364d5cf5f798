from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from mindtwins.data.image_folder import ImageFolder, check_same_classes, find_split
from mindtwins.errors import UserError


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def relative(dataset: ImageFolder) -> list[str]:
    return [str(Path(path).relative_to(dataset.root)) for path in dataset.paths]


def test_order_is_torchvisions(tmp_path: Path) -> None:
    # torchvision: classes sorted as strings, within one the walked folders sorted by path, within
    # those the files sorted by name; extensions in any case; other files passed over.
    make_files(
        tmp_path,
        "b/2.png",
        "b/10.JPEG",
        "b/deep/1.jpg",
        "b/notes.txt",
        "a/z.webp",
        "a/Z.Tiff",
        "10/x.bmp",
        "9/x.ppm",
        "not_a_class.jpg",
    )
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ("10", "9", "a", "b")
    assert dataset.num_classes == 4
    assert relative(dataset) == [
        "10/x.bmp",
        "9/x.ppm",
        "a/Z.Tiff",
        "a/z.webp",
        "b/10.JPEG",
        "b/2.png",
        "b/deep/1.jpg",
    ]
    assert dataset.labels.tolist() == [0, 1, 2, 2, 3, 3, 3]
    assert len(dataset) == 7


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: No such file"):
        ImageFolder(tmp_path / "absent")


def test_folder_without_classes(tmp_path: Path) -> None:
    make_files(tmp_path, "picture.jpg")
    with pytest.raises(UserError, match="holds no class folder"):
        ImageFolder(tmp_path)


def test_class_folder_without_images_is_named(tmp_path: Path) -> None:
    make_files(tmp_path, "cat/1.jpg", "dog/readme.txt")
    with pytest.raises(UserError, match=f"{tmp_path}/dog holds no image"):
        ImageFolder(tmp_path)


def test_list_file(tmp_path: Path) -> None:
    listing = tmp_path / "train.txt"
    listing.write_text("b/1.jpg 2\n\na/with space.jpg\t0\n")
    dataset = ImageFolder.from_list(tmp_path, listing)
    assert relative(dataset) == ["b/1.jpg", "a/with space.jpg"]
    assert dataset.labels.tolist() == [2, 0]
    assert (dataset.num_classes, dataset.classes) == (3, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg 0\nb.jpg\n", "line 2: expected 'path label'.*found 'b.jpg'"),
        ("a.jpg -1\n", "line 1: expected 'path label'"),
        ("a.jpg cat\n", "line 1: expected 'path label'"),
        ("a.jpg 99999999999999999999\n", "line 1: expected 'path label'"),
        ("7\n", "line 1: expected 'path label'"),
        ("\n", "is empty"),
    ],
)
def test_bad_list_file(tmp_path: Path, content: str, message: str) -> None:
    listing = tmp_path / "train.txt"
    listing.write_text(content)
    with pytest.raises(UserError, match=message):
        ImageFolder.from_list(tmp_path, listing)


def test_a_byte_order_mark_is_not_part_of_the_first_path(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa.jpg 0\n")
    assert relative(ImageFolder.from_list(tmp_path, tmp_path / "train.txt")) == ["a.jpg"]


def test_missing_list_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the image list"):
        ImageFolder.from_list(tmp_path, tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (map(str, range(12)), "0, 1, 10, 11, 2 and 7 more"),
        (("class 9", "class 10", "other"), "class 10, class 9, other"),
        (("2_cat", "10_cat"), "10_cat, 2_cat"),
    ],
)
def test_numbers_out_of_order_are_told(
    names: Iterable[str], shown: str, tmp_path: Path, told: Callable
) -> None:
    make_files(tmp_path, *(f"{name}/1.jpg" for name in names))
    dataset = ImageFolder(tmp_path)
    assert list(dataset.classes) == sorted(dataset.classes)
    (notice,) = told()
    assert notice.startswith(f"notice: the class folders of {tmp_path} are ordered as text, as")
    assert f"not by their numbers: {shown}; for another order" in notice
    ImageFolder(tmp_path)  # as the other split
    assert len(told()) == 1


@pytest.mark.parametrize(
    "names",
    [
        map(str, range(10)),
        ("00", "01", "10"),
        ("n01440764", "n10565667"),
        ("a-1", "a1", "a 20 b 3"),
    ],
)
def test_names_in_both_orders(names: Iterable[str], tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, *(f"{name}/1.jpg" for name in names))
    ImageFolder(tmp_path)
    assert told() == []


def test_pictures_are_read_as_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "a" / "x.jpg", exif=exif)
    (tmp_path / "list.txt").write_text("a/x.jpg 0\n")
    for turned, size in ((False, (8, 6)), (True, (6, 8))):
        assert ImageFolder(tmp_path, exif_orientation=turned).read(0).size == size
        listed = ImageFolder.from_list(tmp_path, tmp_path / "list.txt", exif_orientation=turned)
        assert listed.read(0).size == size


def test_find_split(tmp_path: Path) -> None:
    make_files(tmp_path, "both/train/a/1.jpg", "both/val/a/1.jpg", "alone/a/1.jpg")
    assert find_split(tmp_path / "both", "val") == str(tmp_path / "both" / "val")
    assert find_split(tmp_path / "both", "train") == str(tmp_path / "both" / "train")
    assert find_split(tmp_path / "alone", "val") == str(tmp_path / "alone")
    make_files(tmp_path, "validity/valid/1.jpg", "validity/invalid/1.jpg", "named/x/a/1.jpg")
    assert find_split(tmp_path / "validity", "val") == str(tmp_path / "validity")
    assert find_split(tmp_path / "named", "train", "x") == str(tmp_path / "named" / "x")


@pytest.mark.parametrize(
    ("data_dir", "split", "message"),
    [
        ("absent", "val", "absent does not exist"),
        ("half", "val", "has no 'val' folder: create .*half/val"),
        ("alone", "train", "has no 'train' folder: create .*alone/train"),
        ("kaggle", "val", "has no 'val' folder: it has test, valid; say so with --val_split test"),
        ("robo", "val", "has no 'val' folder: it has Validation; .* --val_split Validation"),
        ("robo", "train", "has no 'train' folder: it has training; .* --train_split training"),
        (
            "half/train",
            "train",
            "has no 'train' folder: it seems to be .*; give --data_dir .*half$",
        ),
        ("kaggle/valid", "train", "it seems to be a split itself; give --data_dir .*/kaggle$"),
    ],
)
def test_find_split_errors(tmp_path: Path, data_dir: str, split: str, message: str) -> None:
    make_files(tmp_path, "half/train/a/1.jpg", "alone/a/1.jpg")
    make_files(tmp_path, *(f"kaggle/{name}/a/1.jpg" for name in ("train", "valid", "test")))
    make_files(tmp_path, "robo/training/a/1.jpg", "robo/Validation/a/1.jpg")
    with pytest.raises(UserError, match=message):
        find_split(tmp_path / data_dir, split)


def test_check_same_classes(tmp_path: Path) -> None:
    make_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg")
    train, val = ImageFolder(tmp_path / "train"), ImageFolder(tmp_path / "val")
    check_same_classes(train, train)
    with pytest.raises(UserError, match=r"first: b; only in the second: c\)"):
        check_same_classes(train, val)


def test_check_same_classes_of_lists(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("1.jpg 0\n2.jpg 1\n")
    (tmp_path / "three.txt").write_text("1.jpg 2\n")
    two, three = (
        ImageFolder.from_list(tmp_path, tmp_path / name) for name in ("two.txt", "three.txt")
    )
    check_same_classes(three, two)
    with pytest.raises(
        UserError, match=r"three\.txt has label 2 but .*two\.txt only labels 0 to 1"
    ):
        check_same_classes(two, three)
