"""MindIR files: what they compute, what they say, and which are refused."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto
from parity import photographs

from mindtwins.errors import UserError
from mindtwins.export.mindir_model import MindirModel
from mindtwins.export.seal import PLACE, SEAL_KEY, seal

ROOT = Path(__file__).parents[2]


# A file is exported for most.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_mindir(tmp_path_factory, tiny, run_export) -> Path:
    """The export of svt_tiny. Tests must not change it."""
    path = tmp_path_factory.mktemp("exported") / "tiny.mindir"
    run_export("--ckpt_path", tiny[0], "--file_name", path)
    return path


def test_logits_are_pytorch_s_at_any_size(tiny, tiny_mindir):
    """By MindSpore alone, as somebody without this project loads it."""
    cell = nn.GraphCell(ms.load(str(tiny_mindir)))
    cell.set_inputs(Tensor(shape=[None, 3, None, None], dtype=ms.float32))
    for batch, height, width in ((1, 224, 224), (2, 200, 260), (3, 97, 131), (1, 448, 512)):
        x = photographs(height, width, batch)
        with torch.no_grad():
            expected = tiny[1](torch.from_numpy(x))
        deviation = np.abs(cell(Tensor(x)).asnumpy() - expected.numpy()).max() / expected.std()
        assert deviation < 1e-5


def test_what_the_file_says_of_itself(tiny_mindir):
    graph = ModelProto()
    graph.ParseFromString(tiny_mindir.read_bytes())
    said = json.loads(graph.user_info["mindtwins"])
    assert said["variant"] == "svt_tiny" and said["num_classes"] == 10
    assert said["export"]["mindspore"] == ms.__version__
    assert said["export"]["outputs"] == ["logits"]
    assert MindirModel(tiny_mindir).metadata == said


def test_no_file_of_this_disk_is_named(tiny_mindir):
    """As the project's kernels would have it: a library by its path."""
    content = tiny_mindir.read_bytes()
    assert b"Custom" not in content and b".so" not in content
    assert str(ROOT).encode() not in content and sys.prefix.encode() not in content


def test_features_for_other_devices(tiny, tmp_path, run_export):
    """With MindSpore's own operators, and for one shape."""
    target = tmp_path / "maps.mindir"
    flags = ("--features_only", "--device_target", "Ascend", "--image_size", 64, "--batch_size", 2)
    run_export("--ckpt_path", tiny[0], "--file_name", target, *flags)
    x = photographs(64, 64, 2)
    with torch.no_grad():
        stages = tiny[1].stages(torch.from_numpy(x))
    for name, found in zip(list(stages)[:4], MindirModel(target).run(x), strict=True):
        assert np.abs(found - stages[name].numpy()).max() / stages[name].std() < 1e-5


@pytest.mark.parametrize(
    ("padding", "size"),
    [
        ("mask", 100),
        pytest.param("none", 224, marks=pytest.mark.endurance),
    ],
)
def test_other_paddings_need_one_size(padding, size, tmp_path, save_classifier, run_export):
    reference = save_classifier(tmp_path / "x.ckpt", window_padding=padding)
    words = ("--ckpt_path", tmp_path / "x.ckpt", "--file_name", tmp_path / "x.mindir")
    with pytest.raises(UserError, match="svt_tiny as it computes for any shape: give --image_size"):
        run_export(*words)
    assert not list(tmp_path.glob("*.mindir"))
    run_export(*words, "--image_size", size)
    x = photographs(size, size, 2)
    with torch.no_grad():
        expected = reference(torch.from_numpy(x))
    (found,) = MindirModel(tmp_path / "x.mindir").run(x)
    assert np.abs(found - expected.numpy()).max() / expected.std() < 1e-5


def test_a_file_that_names_a_library(tiny_mindir, tmp_path):
    """Sealed as ours are, which anybody can do."""
    graph = ModelProto()
    graph.ParseFromString(tiny_mindir.read_bytes())
    graph.graph.node[0].op_type = "Custom"
    del graph.user_info[SEAL_KEY]
    place = ModelProto(user_info={SEAL_KEY: PLACE}).SerializeToString()
    (tmp_path / "x.mindir").write_bytes(seal(graph.SerializeToString() + place))
    with pytest.raises(UserError, match="runs a library which it names"):
        MindirModel(tmp_path / "x.mindir")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"\xff" * 99, "was not exported by MindTwins, or was cut short"),
        (lambda content: content[: len(content) // 2], "was not exported by .*model.mindir"),
        (lambda content: content[:-1], "is damaged, was cut short"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "damaged"),
    ],
)
def test_files_that_are_refused(change, message, tiny_mindir, tmp_path):
    (tmp_path / "x.mindir").write_bytes(change(tiny_mindir.read_bytes()))
    with pytest.raises(UserError, match=message):
        MindirModel(tmp_path / "x.mindir")


def test_another_version_of_mindspore(tiny_mindir, monkeypatch):
    def load(path):
        raise RuntimeError("Parse model failed")

    monkeypatch.setattr(ms, "load", load)
    with pytest.raises(UserError, match=f"exported by MindSpore {ms.__version__}, and .* cannot"):
        MindirModel(tiny_mindir)


def test_an_export_to_a_full_disk(tiny, tmp_path):
    """A limit of the file's size stands for it."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "export.py",
            *("--ckpt_path", tiny[0], "--file_name", tmp_path / "x.mindir"),
            *("--image_size", "32", "--batch_size", "1"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path / 'x.mindir'}: ")
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
