"""Files that take whole pictures: their pixels are Pillow's, up to a few that round otherwise."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import mindtwins
from mindtwins.classification.export_preprocessing import write_preprocessing
from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data.photographs import photograph_crops
from mindtwins.errors import UserError
from mindtwins.export.graph import Graph
from mindtwins.export.onnx_file import ANTIALIASING_OPSET, build_model
from mindtwins.export.onnx_model import OnnxModel

OPTIONS = {
    "image_size": 224,
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (224, 0.9), (33, 1.0)])
def test_pixels_are_pillow_s(image_size, crop_pct):
    options = OPTIONS | {"image_size": image_size, "crop_pct": crop_pct}
    graph = Graph({})
    pixels = write_preprocessing(graph, options)
    graph.output(pixels.value, "pixels", 3, pixels.height, pixels.width)
    model = build_model(graph, ANTIALIASING_OPSET)
    assert model.opset_import[0].version == 18
    session = onnxruntime.InferenceSession(model.SerializeToString())
    one_level = 1 / (255 * np.reshape(OPTIONS["std"], (3, 1, 1)))
    # Margins that are odd and even, halves of both; enlarged and shrunk, wide and upright.
    for height, width in ((427, 640), (400, 300), (97, 131), (131, 97), (256, 259), (256, 261)):
        (picture,) = photograph_crops(1, height, width)
        (found,) = session.run(None, {"image": picture[None]})
        expected = EvaluationTransform(**options)(Image.fromarray(picture))
        assert np.mean(found[0] == expected) > 0.998, (height, width)
        assert (np.abs(found[0] - expected) < 2.01 * one_level).all(), (height, width)


def test_what_needs_no_resizing_is_exact(tiny, tmp_path, write):
    write(tiny[0], tmp_path / "x.onnx", preprocess=True)
    model = OnnxModel(tmp_path / "x.onnx")
    assert model.takes_pictures and model.input_shape == (1, "height", "width", 3)
    (picture,) = photograph_crops(1, 256, 301)
    x = EvaluationTransform(**OPTIONS)(Image.fromarray(picture))[None]
    with torch.no_grad():
        expected = tiny[1](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model(picture[None]), expected, atol=1e-5)
    prepared = mindtwins.load_onnx(tmp_path / "x.onnx").preprocessing(Image.fromarray(picture))
    np.testing.assert_array_equal(prepared, picture)  # the file does the rest
    onnx.checker.check_model(onnx.load(tmp_path / "x.onnx"), full_check=True)
    two = model(np.stack([picture, picture[::-1]]))  # one after the other
    np.testing.assert_array_equal(two[0], model(picture[None])[0])
    with pytest.raises(UserError, match=r"takes uint8 images of shape .* not float32"):
        model(x)


@pytest.mark.slow
def test_the_command_tells_how_many_differ(tiny, tmp_path, run_export, told, capsys):
    target = tmp_path / "x.onnx"
    run_export("--ckpt_path", tiny[0], "--file_name", target, "--preprocess")
    assert any("% of the file's pixels are as Pillow has them" in line for line in told())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    exact = [row for row in rows if row[0] == "onnxruntime"]
    assert len(exact) == 4 and all(row[-1] == "1e-05" for row in exact)
    assert sum(row[:2] == ["with", "Pillow"] for row in rows) == 4


def test_a_crop_larger_than_the_picture():
    with pytest.raises(UserError, match=r"crop_pct 1\.2 crops more than there is"):
        write_preprocessing(Graph({}), OPTIONS | {"crop_pct": 1.2})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.mindir", "--preprocess"], r"--preprocess is for \.onnx"),
        (["x.onnx", "--preprocess", "--batch_size", "2"], "--preprocess takes one picture at a"),
        (["x.onnx", "--preprocess", "--precision", "int8"], "--preprocess takes one picture at a"),
        (["x.onnx", "--device_target", "GPU"], r"--device_target is for \.mindir"),
    ],
)
def test_flags_that_do_not_go_together(words, message, tiny, run_export):
    with pytest.raises(UserError, match=message):
        run_export("--ckpt_path", tiny[0], "--file_name", *words)
