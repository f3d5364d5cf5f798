"""infer.py: classes of images by a converted checkpoint, against the PyTorch reference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import infer
from mindtwins.checkpoint import save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import photographs
from mindtwins.errors import UserError
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomise

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a converted svt_tiny, two photographs, and names for its ten classes."""
    folder = tmp_path_factory.mktemp("infer")
    reference = randomise(create_reference("svt_tiny", num_classes=10))
    torch.save(reference.state_dict(), folder / "tiny.pth")
    conversion = from_torch(read_source(folder / "tiny.pth"))
    save_checkpoint(folder / "tiny.ckpt", conversion.tensors, conversion.metadata)
    (folder / "photographs").mkdir()
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(folder / "photographs" / f"{name}.PNG")
    (folder / "photographs" / "notes.txt").write_text("no image")
    (folder / "names.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    return folder


def run(*arguments: object) -> None:
    infer.main([str(argument) for argument in arguments])


def test_classes_and_probabilities_are_the_reference_s(folder, capsys):
    with torch.no_grad():
        reference = randomise(create_reference("svt_tiny", num_classes=10))
        expected = reference(torch.from_numpy(photographs())).softmax(1).numpy()
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
        (["--images", "missing.jpg"], "missing.jpg does not exist: --images takes an image or"),
        (["--images", "configs"], "configs holds no images (.bmp, "),
        ([], "images is missing: name an image or a folder with --images"),
        (["--images", "README.md"], "cannot read image README.md ("),
    ],
)
def test_mistakes(folder, arguments, message):
    with pytest.raises(UserError) as caught:
        run("--ckpt_path", folder / "tiny.ckpt", *arguments)
    assert str(caught.value).startswith(message)


def test_class_names_must_fit(folder):
    (folder / "nine.txt").write_text("name\n" * 9)
    with pytest.raises(UserError, match=r"nine\.txt has 9 lines, but the model 10 classes"):
        run(
            *("--ckpt_path", folder / "tiny.ckpt", "--images", folder / "photographs"),
            *("--class_names", folder / "nine.txt"),
        )


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_one_line():
    command = [sys.executable, "infer.py", "--images", "missing.jpg", "--ckpt_path", "a.ckpt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: missing.jpg does not exist: --images takes an image or")
