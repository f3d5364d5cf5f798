from __future__ import annotations

import os
from pathlib import Path

import pytest

from mindtwins.config import Config
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.text_files import read_class_names, read_lines
from mindtwins.errors import UserError
from mindtwins.training import recipe

NAMES = ("road", "traffic light", "Äcker", "海狸")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_as_any_editor_saves_it(encoding: str, end: str, tmp_path: Path) -> None:
    text = end.join([" road", "traffic light ", "Äcker", "海狸", "", ""])
    if encoding.startswith("utf-16-"):
        text = "\ufeff" + text
    (tmp_path / "names.txt").write_bytes(text.encode(encoding))
    assert read_class_names(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    "text",
    [
        '["road", "traffic light", "Äcker", "海狸"]',
        '{"0": "road", "1": "traffic light", "3": "海狸", "2": "Äcker"}',
        '{"Äcker": 2, "road": 0, "traffic light": 1, "海狸": 3}',
        '\ufeff[\r\n  "road",\r\n  "traffic light",\r\n "Äcker",\r\n "\\u6d77\\u72f8"\r\n]\r\n',
    ],
)
def test_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.JSON").write_bytes(text.encode())
    assert read_class_names(tmp_path / "names.JSON", unique=True) == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be a JSON list of names, or an object of the numbers from 0 on"),
        ('{"1": "a", "2": "b"}', "object of the numbers from 0 on and their names"),
        ('{"a": "b"}', "object of the numbers from 0 on and their names"),
        ('"road"', "must be a JSON list of names"),
        ("road\nsky\n", r"names\.json: it is no JSON \(Expecting value"),
        ('["a", ""]', r"names\.json, name 2 is empty: give one name per class"),
        ('["a", "b", "a"]', r"names\.json, name 3 repeats 'a'"),
    ],
)
def test_other_json(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_names(tmp_path / "names.json", unique=True)


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("road\n\nsky\n")
    with pytest.raises(UserError, match=r"classes\.txt, line 2 is empty: give one name per class"):
        read_class_names(path)
    path.write_text("road\nsky\nroad\n")
    with pytest.raises(UserError, match=r"classes\.txt, line 3 repeats 'road'"):
        read_class_names(path, unique=True)
    assert read_class_names(path) == ("road", "sky", "road")  # as ImageNet's cranes
    path.write_text("")
    with pytest.raises(UserError, match=r"classes\.txt, line 1 is empty"):
        read_class_names(path)
    with pytest.raises(UserError, match=r"cannot read the class list .*no\.txt: No such file"):
        read_class_names(tmp_path / "no.txt")
    path.write_bytes("Äcker\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"not in UTF-8 \(.* at byte 0\); save it as UTF-8"):
        read_class_names(path)


def test_names_of_a_recipe_s_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfbeaver\r\ncrow\r\n\r\n")
    config = Config(class_names=str(path), num_classes=2)
    assert recipe.read_class_names(config) == ("beaver", "crow")
    with pytest.raises(UserError, match=r"has 2 names, but the model 3 classes: give one name"):
        recipe.read_class_names(Config(class_names=str(path), num_classes=3))


def test_names_of_files_may_be_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf\xe9t\xe9.jpg 1\r\n\xc3\xa4.jpg 0\r\n")
    assert read_lines(path, "image list", file_names=True) == ["\udce9t\udce9.jpg 1", "ä.jpg 0"]
    dataset = ImageFolder.from_list(tmp_path, path)
    assert os.fsencode(dataset.paths[0]) == os.fsencode(tmp_path) + b"/\xe9t\xe9.jpg"


def test_lists_from_powershell(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a b.jpg 3\r\nü.jpg 0\r\n", encoding="utf-16")
    dataset = ImageFolder.from_list(tmp_path, tmp_path / "list.txt")
    assert [Path(path).name for path in dataset.paths] == ["a b.jpg", "ü.jpg"]
    assert dataset.labels.tolist() == [3, 0]
