"""What a server answers is what infer.py finds, alone and in a crowd."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.commands import infer
from mindtwins.commands.serve import create_application
from mindtwins.config import ServeConfig, parse_config

SUFFIXES = {"ckpt": "--ckpt_path", "onnx": "--onnx_path"}
# A checkpoint's graphs are compiled, which takes a while for each shape.
BOTH = [pytest.param("ckpt", marks=pytest.mark.slow), "onnx"]


@pytest.fixture(scope="module")
def crops(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty parts of photographs of four sizes, as PNG and JPEG files."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(40):
        width, height = 100 + 20 * (number % 2), 90 + 30 * (number // 2 % 2)
        left, top = int(rng.integers(0, 500)), int(rng.integers(0, 300))
        path = folder / f"{number:02d}.{'png' if number % 2 else 'jpg'}"
        photographs[number % 2].crop((left, top, left + width, top + height)).save(path)
        paths.append(path)
    return paths


def served(running: Callable, models: Path, name: str, suffix: str, *more: str):
    words = [SUFFIXES[suffix], str(models / f"{name}.{suffix}"), *more]
    application, _, _ = create_application(parse_config(ServeConfig, words, ""))
    return running(application)


def inferred(models: Path, name: str, suffix: str, out: Path, *paths: Path) -> list[dict]:
    infer.main(
        [
            *(SUFFIXES[suffix], str(models / f"{name}.{suffix}")),
            *("--output_json", str(out / "out.json"), "--output_dir", str(out)),
            *("--eval_batch_size", "1"),
            *("--images", *map(str, paths)),
        ]
    )
    return json.loads((out / "out.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", BOTH)
def test_a_classifier(running, models, crops, tmp_path, suffix):
    with served(running, models, "classifier", suffix, "--max_batch", "2") as client:
        alone = [client.post("/predict", content=path.read_bytes()).json() for path in crops]
        with ThreadPoolExecutor(40) as pool:
            contents = [path.read_bytes() for path in crops]
            crowd = list(pool.map(lambda c: client.post("/predict", content=c).json(), contents))
        metrics = client.get("/metrics").text
    files = inferred(models, "classifier", suffix, tmp_path, *crops)
    assert alone[0] == {key: files[0][key] for key in ("classes", "names", "probabilities")}
    for found, together, expected in zip(alone, crowd, files, strict=True):
        assert found["classes"] == together["classes"] == expected["classes"]
        assert found["names"] == together["names"] == expected["names"]
        for answer in (found, together):
            np.testing.assert_allclose(
                answer["probabilities"], expected["probabilities"], atol=1e-6
            )
    # The pictures are told apart, and some were computed together.
    assert len({json.dumps(answer["probabilities"]) for answer in alone}) == 40
    assert "mindtwins_batch_size_sum 80.0" in metrics
    count = next(line for line in metrics.splitlines() if line.startswith("mindtwins_batch_size_c"))
    assert float(count.split()[1]) < 80


@pytest.mark.slow
@pytest.mark.parametrize("suffix", BOTH)
def test_a_segmentor(running, models, crops, tmp_path, suffix, told):
    # A checkpoint's graph is compiled for each size: two crops of one.
    crops = crops[0:8:4] if suffix == "ckpt" else crops[:8]
    with served(running, models, "segmentor", suffix) as client:
        with ThreadPoolExecutor(8) as pool:
            contents = [path.read_bytes() for path in crops]
            answers = list(pool.map(lambda c: client.post("/predict", content=c).json(), contents))
        labels = client.post("/predict?output=labels", content=contents[0]).content
        overlay = client.post("/predict?output=overlay", content=contents[0]).content
        refused = client.post("/predict", content=png(Image.new("RGB", (400, 20))))
    assert any("waits for a compilation" in line for line in told()) == (suffix == "ckpt")
    assert refused.status_code == 422 and "400 x 20 pixels" in refused.json()["error"]
    expected = inferred(models, "segmentor", suffix, tmp_path, *crops)
    for path, answer, found in zip(crops, answers, expected, strict=True):
        assert answer["shares"] == found["shares"]
        for name in ("labels", "overlay"):
            assert base64.b64decode(answer[name]) == Path(found[name]).read_bytes(), path
    assert labels == Path(expected[0]["labels"]).read_bytes()
    assert overlay == Path(expected[0]["overlay"]).read_bytes()
    assert len({answer["labels"] for answer in answers}) == len(crops)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return stream.getvalue()
