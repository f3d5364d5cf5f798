"""infer.py: classes of images by a converted checkpoint, against the PyTorch reference, and
segmented pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import infer
from mindtwins.config import InferConfig
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.segmentation import ade20k, digits
from mindtwins.tasks import KINDS, create_task
from mindtwins.training.distributed import World

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a converted svt_tiny, two photographs, and names for its ten classes."""
    folder = tmp_path_factory.mktemp("infer")
    reference = randomize(create_reference("svt_tiny", num_classes=10))
    torch.save(reference.state_dict(), folder / "tiny.pth")
    conversion = from_torch(read_source(folder / "tiny.pth"), KINDS)
    save_checkpoint(folder / "tiny.ckpt", conversion.tensors, conversion.metadata)
    (folder / "photographs").mkdir()
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(folder / "photographs" / f"{name}.PNG")
    (folder / "photographs" / "notes.txt").write_text("no image")
    (folder / "names.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    return folder


def evaluated_photographs() -> np.ndarray:
    """As the ImageNet evaluation sees them: float32 (2, 3, 224, 224)."""
    images = []
    for pixels in load_sample_images().images:  # both are wider than high
        picture = Image.fromarray(pixels)
        size = int(256 * picture.width / picture.height), 256
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left = round((picture.width - 224) / 2)
        images.append(np.asarray(picture.crop((left, 16, left + 224, 240)), np.float32) / 255)
    normalized = (np.stack(images) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2), np.float32)


def run(*arguments: object) -> None:
    infer.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_classes_and_probabilities_are_the_reference_s(folder, capsys):
    with torch.no_grad():
        reference = randomize(create_reference("svt_tiny", num_classes=10))
        expected = reference(torch.from_numpy(evaluated_photographs())).softmax(1).numpy()
    run(
        *("--ckpt_path", folder / "tiny.ckpt", "--images", folder / "photographs"),
        *("--top_k", 3, "--class_names", folder / "names.txt"),
        *("--output_json", folder / "out.json", "--output_png", folder / "sheet.png"),
    )
    printed = capsys.readouterr().out
    found = json.loads((folder / "out.json").read_text())
    assert [Path(image["file"]).name for image in found] == ["a.PNG", "b.PNG"]
    for image, probabilities in zip(found, expected, strict=True):
        best = np.argsort(-probabilities)[:3]
        assert image["classes"] == best.tolist()
        assert image["names"] == [f"name {i}" for i in best]
        np.testing.assert_allclose(image["probabilities"], probabilities[best], atol=1e-5)
        assert f"{image['file']}: name {best[0]} {probabilities[best[0]]:.3f}, name" in printed
    assert Image.open(folder / "sheet.png").size == (600, 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "missing.jpg"], "missing.jpg does not exist: --images takes images, folders"),
        (["--images", "configs"], "configs holds no images: name a folder of"),
        ([], "images is missing: name images, folders or patterns with"),
        (["--images", "README.md"], "cannot read image README.md ("),
    ],
)
def test_mistakes(folder, arguments, message):
    with pytest.raises(UserError) as caught:
        run("--ckpt_path", folder / "tiny.ckpt", *arguments)
    assert str(caught.value).startswith(message)


def test_class_names_must_fit(folder):
    (folder / "nine.txt").write_text("name\n" * 9)
    with pytest.raises(UserError, match=r"nine\.txt has 9 names, but the model 10 classes"):
        run(
            *("--ckpt_path", folder / "tiny.ckpt", "--images", folder / "photographs"),
            *("--class_names", folder / "nine.txt"),
        )


@pytest.mark.slow
def test_segmented_pictures(tmp_path, capsys):
    """A checkpoint of 11 classes, without a config: its classes are not the digits."""
    config = InferConfig(task="segmentation", model="fpn_svt_tiny", num_classes=11)
    model, metadata = create_task(config).build_model(World())
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    save_checkpoint(tmp_path / "tiny.ckpt", tensors, metadata)
    pixels = load_sample_images().images[0]
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels[:60, :80]).save(tmp_path / "images" / name)
    run(
        *("--ckpt_path", tmp_path / "tiny.ckpt", "--images", tmp_path / "images"),
        *("--resize_scale", "64,48", "--top_k", 1),
        *("--output_dir", tmp_path / "out", "--output_json", tmp_path / "out.json"),
    )
    printed = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [Path(image["file"]).name for image in found] == ["a.png", "b.jpg"]
    for image, stem, line in zip(found, "ab", printed, strict=True):
        assert set(image) == {"file", "labels", "overlay", "shares"}
        assert image["labels"] == str(tmp_path / "out" / f"{stem}_labels.png")
        assert image["overlay"] == str(tmp_path / "out" / f"{stem}_overlay.png")
        labels = Image.open(image["labels"])
        assert labels.mode == "L" and labels.size == (80, 60)
        parts = np.bincount(np.asarray(labels).ravel(), minlength=11) / (60 * 80)
        expected = {f"class {i}": parts[i] for i in np.flatnonzero(parts)}
        assert image["shares"] == pytest.approx(expected)
        assert Image.open(image["overlay"]).height == 240  # four times as large
        assert line.startswith(f"{image['file']}: class ") and line.endswith(image["overlay"])


def test_names_are_known_or_numbers(tmp_path):
    numbers = [f"class {i}" for i in range(150)]

    def names(num_classes: int, **options: str) -> list[str]:
        config = InferConfig(task="segmentation", num_classes=num_classes, **options)
        return list(create_task(config).class_names())

    assert names(11) == numbers[:11]
    assert names(11, dataset="ade20k") == numbers[:11]
    assert names(11, dataset="digits") == list(digits.CLASSES)
    assert names(150) == names(150, dataset="ade20k") == list(ade20k.CLASSES)
    assert names(150, dataset="digits") == numbers
    (tmp_path / "names.txt").write_text("tree\nroad\n")
    assert names(2, dataset="pairs", class_names=str(tmp_path / "names.txt")) == ["tree", "road"]
    classifier = create_task(InferConfig(num_classes=150))
    assert list(classifier.class_names()) == numbers


def test_the_device_is_told_whether_tf32_is_allowed(folder, monkeypatch):
    told = []
    monkeypatch.setattr("mindtwins.execution.use_device", lambda *arguments: told.append(arguments))
    for allowed in ("false", "true"):
        with pytest.raises(UserError, match=r"missing\.ckpt does not exist"):
            run(
                *("--ckpt_path", folder / "missing.ckpt", "--images", folder / "photographs"),
                *("--allow_tf32", allowed),
            )
    assert told == [("CPU", False), ("CPU", True)]


@pytest.mark.parametrize(
    ("flag", "name"),
    [("output_json", "tiny.ckpt"), ("output_png", "photographs/a.PNG"), ("output_json", "s.png")],
)
def test_results_take_no_other_file_s_place(folder, flag, name):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"choose another --{flag}|choose another --output_png"):
        run(
            *("--ckpt_path", folder / "tiny.ckpt", "--images", folder / "photographs"),
            *("--output_png", folder / "s.png", f"--{flag}", folder / name),
        )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_unreadable_images_may_be_left_out(folder, tmp_path, capsys):
    """And a class may be called what is no formula."""
    (tmp_path / "names.txt").write_text("$\\frac{$\n" * 10)
    for name in ("a", "c"):
        shutil.copy(folder / "photographs" / "a.PNG", tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((folder / "photographs" / "b.PNG").read_bytes()[:1000])
    arguments = [
        *("--ckpt_path", folder / "tiny.ckpt", "--images", tmp_path),
        *("--class_names", tmp_path / "names.txt", "--output_json", tmp_path / "out.json"),
        *("--output_png", tmp_path / "sheet.PNG"),
    ]
    with pytest.raises(UserError, match=r"cannot read image .*b\.png.* or pass --skip_bad_images"):
        run(*arguments)
    # What came before the bad one is there.
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["file"] == str(tmp_path / "a.png")
    assert f"{tmp_path / 'a.png'}: $" in capsys.readouterr().out
    run(*arguments, "--skip_bad_images")
    assert "b.png (" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())
    assert [Path(result["file"]).name for result in results] == ["a.png", "c.png"]


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_one_line():
    command = [sys.executable, "infer.py", "--images", "missing.jpg", "--ckpt_path", "a.ckpt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: missing.jpg does not exist: --images takes images, folders"
    )


@pytest.mark.slow
def test_several_names_patterns_and_folders_in_folders(folder, tmp_path, capsys):
    """Each image once, however often it is named."""
    for name in ("a.png", "b.png", "sub/c.png", "sub/deep/d.jpg", "with,comma.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    run(
        *("--ckpt_path", folder / "tiny.ckpt", "--output_json", tmp_path / "out.json"),
        *("--images", tmp_path / "*.png", tmp_path / "sub", tmp_path / "a.png"),
    )
    names = [Path(image["file"]).name for image in json.loads((tmp_path / "out.json").read_text())]
    assert names == ["a.png", "b.png", "with,comma.png", "c.png", "d.jpg"]
    with pytest.raises(UserError, match=r"nothing\*\.png does not exist: --images takes images, f"):
        run("--ckpt_path", folder / "tiny.ckpt", "--images", tmp_path / "nothing*.png")
