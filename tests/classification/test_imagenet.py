"""ImageNet's classes: called as its folders are, shown in words."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mindtwins.checkpoint import load_checkpoint
from mindtwins.classification.imagenet import imagenet_words, in_words
from mindtwins.commands import convert, infer, validate
from mindtwins.config import ValidateConfig, parse_config
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.tasks import create_task, load_model

# Number, synset and words, as every list of ImageNet's classes has them.
KNOWN = {
    0: ("n01440764", "tench, Tinca tinca"),
    281: ("n02123045", "tabby, tabby cat"),
    999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
}
SIZE = 56


def timm_table(name: str) -> list[str]:
    package = importlib.util.find_spec("timm")
    if package is None:
        pytest.skip("timm is not installed")
    folder = Path(package.submodule_search_locations[0]) / "data" / "_info"
    return (folder / name).read_text().splitlines()


def test_order_and_words_are_timms():
    words = dict(line.split("\t") for line in timm_table("imagenet_synset_to_lemma.txt"))
    synsets = timm_table("imagenet_synsets.txt")
    assert list(imagenet_words()) == synsets == sorted(synsets)
    assert list(imagenet_words().values()) == [words[synset] for synset in synsets]


def test_words_of_known_classes():
    synsets = list(imagenet_words())
    for number, (synset, words) in KNOWN.items():
        assert synsets[number] == synset and in_words(synset) == words
    assert in_words("beaver") == "beaver"


@pytest.fixture(scope="module")
def model():
    """A classifier of 1000 classes, in PyTorch."""
    return randomize(create_reference("svt_tiny", num_classes=1000), seed=3).eval()


@pytest.fixture(scope="module")
def ckpt(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    torch.save(model.state_dict(), folder / "model.pth")
    path = folder / "model.ckpt"
    convert.main(["--pt_path", str(folder / "model.pth"), "--ckpt_path", str(path)])
    return path


@pytest.fixture(scope="module")
def pictures(model, tmp_path_factory) -> dict[Path, int]:
    """Six pictures and the number of the class that PyTorch sees in each."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    found = {}
    for number in range(6):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        image = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
        with torch.no_grad():
            found[path] = int(model(torch.from_numpy(image[None])).argmax())
    return found


SETTINGS = ("--image_size", str(SIZE), "--crop_pct", "1", "--num_parallel_workers", "1")


def words_for(ckpt: Path, data: Path, *more: str) -> list[str]:
    return ["--ckpt_path", str(ckpt), "--data_dir", str(data), *SETTINGS, *more]


def numbers(ckpt: Path, data: Path, *more: str) -> dict[str, int]:
    """Each picture's class in validate.py, by its file's name."""
    task = create_task(parse_config(ValidateConfig, words_for(ckpt, data, *more), ""))
    found = task.find_data("val")
    return {Path(p).name: int(n) for p, n in zip(found.paths, found.labels, strict=True)}


def by_name(pictures: dict[Path, int]) -> dict[str, int]:
    return {path.name: number for path, number in pictures.items()}


def write(folder: Path, pictures: dict[Path, int], name) -> Path:
    """Class folders with the pictures, each called by `name(number)`."""
    for path, number in pictures.items():
        target = folder / "val" / name(number)
        target.mkdir(parents=True, exist_ok=True)
        (target / path.name).write_bytes(path.read_bytes())
    return folder


def convert_again(ckpt: Path, target: Path, *more: str) -> None:
    source = ckpt.with_suffix(".pth")
    convert.main(["--pt_path", str(source), "--ckpt_path", str(target), *more])


def test_a_conversion_records_folders_and_tells(ckpt: Path, capsys, tmp_path: Path):
    assert load_checkpoint(ckpt).metadata["classes"] == list(imagenet_words())
    convert_again(ckpt, tmp_path / "again.ckpt")
    assert "by their number they are taken for ImageNet-1k's" in capsys.readouterr().out


def test_weights_by_name_tell_too(ckpt: Path, tmp_path: Path, monkeypatch, told):
    monkeypatch.setenv("MINDTWINS_CACHE", str(tmp_path))
    for time in (1, 2):  # made, and kept
        assert load_model(ckpt.with_suffix(".pth")).classes[281] == "tabby, tabby cat"
        assert len([text for text in told() if "taken for ImageNet-1k's" in text]) == time


def test_a_new_head_has_no_names(ckpt: Path, tmp_path: Path):
    convert_again(ckpt, tmp_path / "new.ckpt", "--drop_head", "--num_classes", "1000")
    assert load_checkpoint(tmp_path / "new.ckpt").metadata["classes"] is None


@pytest.mark.slow
def test_people_see_words(ckpt: Path, pictures, tmp_path: Path, capsys):
    words = list(imagenet_words().values())
    assert load_model(ckpt).classes == tuple(words)
    out = tmp_path / "out.json"
    words_given = ["--ckpt_path", str(ckpt), "--output_json", str(out), *SETTINGS, "--images"]
    infer.main([*words_given, *map(str, pictures)])
    found = [entry["names"][0] for entry in json.loads(out.read_text())]
    assert found == [words[number] for number in pictures.values()]
    assert found[0] in capsys.readouterr().out


def test_folders_of_some_classes(ckpt: Path, pictures, tmp_path: Path, told):
    synsets = list(imagenet_words())
    data = write(tmp_path, pictures, lambda number: synsets[number])
    assert numbers(ckpt, data) == by_name(pictures)
    assert f"{data}/val has {len(set(pictures.values()))} of the 1000 classes" in told()[-1]


@pytest.mark.slow
def test_accuracy(ckpt: Path, pictures, tmp_path: Path):
    """PyTorch's classes are right in all pictures but one, which lies in another's folder."""
    synsets = list(imagenet_words())
    moved, *_ = pictures
    folders = pictures | {moved: (pictures[moved] + 1) % 1000}
    data = write(tmp_path, folders, lambda number: synsets[number])
    out = tmp_path / "result.json"
    validate.main([*words_for(ckpt, data), "--output_json", str(out)])
    assert json.loads(out.read_text())["top1"] == pytest.approx(100 * 5 / 6)


def test_folders_in_words_are_refused(ckpt: Path, pictures, tmp_path: Path):
    data = write(tmp_path, pictures, lambda number: list(imagenet_words().values())[number])
    with pytest.raises(UserError, match=r"\(n01440764 is tench, Tinca tinca\): rename") as caught:
        numbers(ckpt, data)
    assert "\n" not in str(caught.value)


def test_folders_under_names_of_ones_own(ckpt: Path, pictures, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number:03}\n" for number in range(1000)))
    data = write(tmp_path, pictures, lambda number: f"class {number:03}")
    assert numbers(ckpt, data, "--class_names", str(names)) == by_name(pictures)


def test_a_list_has_numbers(ckpt: Path, pictures, tmp_path: Path):
    write(tmp_path, pictures, lambda number: "all")
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"val/all/{p.name} {number}\n" for p, number in pictures.items()))
    more = ("--dataset", "list", "--val_list", str(listing))
    assert numbers(ckpt, tmp_path, *more) == by_name(pictures)
