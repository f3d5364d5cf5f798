from __future__ import annotations

from pathlib import Path

import pytest

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


def test_find_split(tmp_path: Path) -> None:
    make_files(tmp_path, "both/train/a/1.jpg", "both/val/a/1.jpg", "alone/a/1.jpg")
    assert find_split(tmp_path / "both", "val") == str(tmp_path / "both" / "val")
    assert find_split(tmp_path / "both", "train") == str(tmp_path / "both" / "train")
    assert find_split(tmp_path / "alone", "val") == str(tmp_path / "alone")


@pytest.mark.parametrize(
    ("data_dir", "split", "message"),
    [
        ("absent", "val", "absent does not exist"),
        ("half", "val", "has no 'val' folder"),
        ("alone", "train", "has no 'train' folder"),
    ],
)
def test_find_split_errors(tmp_path: Path, data_dir: str, split: str, message: str) -> None:
    make_files(tmp_path, "half/train/a/1.jpg", "alone/a/1.jpg")
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
