from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mindtwins.commands import infer
from mindtwins.data.folders import IMAGE_SUFFIXES, FolderListing, is_leftover
from mindtwins.data.image_folder import ImageFolder
from mindtwins.errors import UserError


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def relative(paths: list[str], root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


# What is no data ---------------------------------------------------------------------------------

LEFTOVER_FOLDERS = (
    *(".ipynb_checkpoints", ".git", ".cache", ".Trash-1000", ".AppleDouble", "__MACOSX"),
    *("@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "$Recycle.Bin"),
    *("System Volume Information", "__pycache__"),
)


@pytest.mark.parametrize("name", LEFTOVER_FOLDERS)
@pytest.mark.parametrize("place", ["", "cat/", "cat/deep/"])
def test_folders_left_by_systems_and_tools(
    name: str, place: str, tmp_path: Path, told: Callable
) -> None:
    make_files(tmp_path, "ant/1.jpg", "cat/1.jpg", "cat/deep/2.jpg", f"{place}{name}/x.jpg")
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ("ant", "cat")
    assert relative(dataset.paths, tmp_path) == ["ant/1.jpg", "cat/1.jpg", "cat/deep/2.jpg"]
    assert dataset.labels.tolist() == [0, 1, 1]
    expected = f"notice: left out of {tmp_path}: left by systems and tools: 1 ({name})"
    assert told() == [expected]


@pytest.mark.parametrize("name", ["._1.jpg", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini"])
def test_files_left_by_systems_and_tools(name: str, tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, f"{name}", "ant/1.jpg", f"ant/{name}", f"ant/deep/{name}")
    assert relative(ImageFolder(tmp_path).paths, tmp_path) == ["ant/1.jpg"]
    assert told() == [f"notice: left out of {tmp_path}: left by systems and tools: 3 ({name} x 3)"]


@pytest.mark.parametrize("name", ["cat", "_cat", "recycle", "DS_Store", "a.b", "tmp", "@home"])
def test_other_names_are_classes(name: str) -> None:
    assert not is_leftover(name)


def test_a_hidden_place_is_no_reason(tmp_path: Path, told: Callable) -> None:
    root = make_files(tmp_path / ".cache" / "@eaDir", "ant/1.jpg")
    assert len(ImageFolder(root)) == 1 and told() == []


# Which files are images --------------------------------------------------------------------------


def test_suffixes_are_pillow_s() -> None:
    assert {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"} < (
        IMAGE_SUFFIXES
    )
    assert {".jfif", ".jpe", ".gif", ".jp2", ".avif", ".dib", ".mpo", ".tga"} < IMAGE_SUFFIXES
    # Not read at all, or by calling another program.
    assert IMAGE_SUFFIXES.isdisjoint({".heic", ".pdf", ".mpg", ".h5", ".eps", ".wmf", ".txt"})


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "gif", "jp2", "dib", "tga", "pbm", "mpo"])
def test_files_of_these_suffixes_are_read(suffix: str, tmp_path: Path, told: Callable) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 6), (0, 255, 0)).save(tmp_path / "a" / f"x.{suffix}")
    dataset = ImageFolder(tmp_path)
    assert len(dataset) == 1 and dataset.read(0).size == (8, 6)
    assert told() == []


def test_what_is_left_out_is_counted(tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, "a/1.jpg", "a/2.HEIC", "a/3.heic", "a/b/README", "a/b/x.jpg~")
    make_files(tmp_path, "lost.jpg", "labels.csv", ".DS_Store")
    assert len(ImageFolder(tmp_path)) == 1
    assert told() == [
        f"notice: left out of {tmp_path}: left by systems and tools: 1 (.DS_Store); files of kinds "
        "that are not read here: 5 (.heic x 2, .csv, without suffix, .jpg~); images outside the "
        "class folders: 1 (lost.jpg)"
    ]


def test_a_class_of_unread_files(tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, "a/1.jpg", "b/1.heic", "b/2.heic")
    with pytest.raises(UserError, match=r"b holds no image: if it is a class, fill it or name"):
        ImageFolder(tmp_path)
    assert "(.heic x 2)" in told()[0]


def test_folders_that_cannot_be_read_are_no_empty_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "a/1.jpg", "a/closed/2.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*a/closed: Permission denied"):
        ImageFolder(tmp_path)


# Links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/latest", "."),
        ("a/up", ".."),
        ("a/further", "../.."),
        ("a/deep/back", "../../a"),
        ("a/other", "../b"),
        ("latest", "."),
        ("latest", "b"),
        ("0_first", "b"),
    ],
)
def test_no_folder_is_read_twice(link: str, target: str, tmp_path: Path, told: Callable) -> None:
    root = make_files(tmp_path / "val", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    (root / link).symlink_to(target)
    dataset = ImageFolder(root)
    assert dataset.classes == ("a", "b")
    assert relative(dataset.paths, root) == ["a/1.jpg", "a/deep/2.jpg", "b/3.jpg"]
    assert told() == [
        f"notice: left out of {root}: links to folders that are read already: 1 ({link})"
    ]


def test_two_links_that_lead_to_each_other(tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, "val/a/1.jpg", "one/2.jpg", "two/3.jpg")
    (tmp_path / "val" / "a" / "x").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "y").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "z").symlink_to(tmp_path / "one")
    dataset = ImageFolder(tmp_path / "val")
    assert relative(dataset.paths, dataset.root) == ["a/1.jpg", "a/x/2.jpg", "a/x/y/3.jpg"]
    assert told()[0].endswith(": 1 (a/x/y/z)")


def test_links_to_elsewhere_are_followed(tmp_path: Path, told: Callable) -> None:
    """A subset made of links, to class folders, to folders in them, and to files."""
    make_files(tmp_path, "all/a/1.jpg", "all/b/deep/2.jpg", "all/c/3.jpg", "sub/b/0.jpg")
    (tmp_path / "sub" / "a").symlink_to(tmp_path / "all" / "a")
    (tmp_path / "sub" / "b" / "more").symlink_to(tmp_path / "all" / "b")
    (tmp_path / "sub" / "b" / "3.jpg").symlink_to(tmp_path / "all" / "c" / "3.jpg")
    dataset = ImageFolder(tmp_path / "sub")
    expected = ["a/1.jpg", "b/0.jpg", "b/3.jpg", "b/more/deep/2.jpg"]
    assert relative(dataset.paths, dataset.root) == expected
    assert dataset.labels.tolist() == [0, 1, 1, 1] and told() == []


def test_a_link_that_goes_around_in_circles(tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "x").symlink_to("x")
    assert len(ImageFolder(tmp_path)) == 1
    assert "1 (without suffix)" in told()[0]


# The images that infer.py is given ---------------------------------------------------------------


def test_infer_s_folder(tmp_path: Path, told: Callable) -> None:
    make_files(tmp_path, "b.jfif", "a.JPG", "c.gif", "._a.JPG", "d.heic", "deep/e.jpg", "x.jpg/f")
    found = infer.find_files([str(tmp_path)])
    assert [path.name for path in found] == ["a.JPG", "b.jfif", "c.gif", "e.jpg"]
    (notice,) = told()
    assert notice == (
        f"notice: left out of {tmp_path}: left by systems and tools: 1 (._a.JPG); files of kinds "
        "that are not read here: 2 (.heic, without suffix)"
    )


def test_listing_of_one_kind(tmp_path: Path) -> None:
    make_files(tmp_path, "1.png", "1.jpg", "a/2.PNG")
    listing = FolderListing(tmp_path)
    (files,) = listing.files([str(tmp_path)], [".png"])
    assert relative(files, tmp_path) == ["1.png", "a/2.PNG"]
    assert dict(listing.passed_over) == {"files of kinds that are not read here": [".jpg"]}
