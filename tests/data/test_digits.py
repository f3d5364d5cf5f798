from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mindtwins.data import digits as digits_module
from mindtwins.data.digits import write_digits
from mindtwins.data.image_folder import ImageFolder, check_same_classes
from mindtwins.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("deep") / "er" / "digits")


def test_split(folder: Path) -> None:
    train, val = ImageFolder(folder / "train"), ImageFolder(folder / "val")
    check_same_classes(train, val)
    assert train.classes == tuple("0123456789")
    assert (len(train), len(val)) == (1442, 355)
    per_class = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(val.labels), per_class // 5)
    np.testing.assert_array_equal(np.bincount(train.labels), per_class - per_class // 5)


def test_every_picture_is_there_once_and_right(folder: Path) -> None:
    digits = load_digits()
    seen = set()
    for path in folder.glob("*/*/*.png"):
        number = int(path.stem)
        seen.add(number)
        assert path.parent.name == str(digits.target[number])
        if number % 50 == 0:
            picture = Image.open(path)
            assert (picture.mode, picture.size) == ("L", (32, 32))
            back = np.asarray(picture.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
            assert np.corrcoef(back.ravel(), digits.images[number].ravel())[0, 1] > 0.97
    assert seen == set(range(1797))


def test_second_call_changes_nothing_and_first_is_deterministic(
    folder: Path, tmp_path: Path
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_digits(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    again = write_digits(tmp_path / "again")
    for path in folder.glob("*/*/*.png"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_leftovers_are_no_other_content(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "digits"
    shutil.copytree(folder, copy)
    (copy / "train" / "0" / "._0000.png").touch()
    (copy / "val" / ".ipynb_checkpoints").mkdir()
    (copy / "val" / ".ipynb_checkpoints" / "0004-checkpoint.png").touch()
    assert write_digits(copy) == copy


def test_incomplete_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "digits" / "train" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match="holds 0 of the digits' 1797 files"):
        write_digits(tmp_path / "digits")


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "train").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits_module, "_write_images", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_process_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images = digits_module._write_images

    def write_while_another_finishes(folder: Path) -> None:
        monkeypatch.setattr(digits_module, "_write_images", write_images)
        write_digits(tmp_path / "digits")
        write_images(folder)

    monkeypatch.setattr(digits_module, "_write_images", write_while_another_finishes)
    assert write_digits(tmp_path / "digits") == tmp_path / "digits"
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len(list(tmp_path.glob("digits/*/*/*.png"))) == 1797


def test_a_missing_scikit_learn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
