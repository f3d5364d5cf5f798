"""The two command lines, from file to file."""

import errno
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mindtwins import create_model
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.conversion import torch_files
from mindtwins.errors import UserError
from mindtwins.models import list_models
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize

ROOT = Path(__file__).parents[2]
SMALLEST = "svt_small"


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name


def every_model():
    return [
        pytest.param(name, marks=() if name == SMALLEST else pytest.mark.slow)
        for name in list_models()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", every_model())
def test_round_trip_of_every_model(tmp_path, pt2ms, ms2pt, name):
    with torch.device("meta"):  # not initialized twice
        reference = create_reference(name)
    state = randomize(reference.to_empty(device="cpu"), seed=2).state_dict()
    torch.save(state, tmp_path / "source.pth")
    pt2ms("--pt_path", tmp_path / "source.pth", "--ckpt_path", tmp_path / "x.ckpt")
    assert load_checkpoint(tmp_path / "x.ckpt").metadata["variant"] == name
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), state)


@pytest.fixture
def source(save, tiny_state):
    return save({"model": {f"module.{name}": tensor for name, tensor in tiny_state.items()}})


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_same_input_same_bytes_both_ways(tmp_path, source, pt2ms, ms2pt, suffix):
    for run in "ab":
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / f"{run}{suffix}")
        for target in (".pth", f".out{suffix}"):
            target = target.replace("ckpt", "pt")
            ms2pt(
                "--ckpt_path", tmp_path / f"{run}{suffix}", "--pt_path", tmp_path / (run + target)
            )
    names = sorted(path.name for path in tmp_path.glob("a*"))
    assert len(names) == 3
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / f"b{name[1:]}").read_bytes(), name


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_back_to_safetensors(tmp_path, source, tiny_state, pt2ms, ms2pt, layout):
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    target = tmp_path / "back.safetensors"
    ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", target, "--layout", layout)
    assert_same_bits(safetensors.torch.load_file(target), tiny_state)


@pytest.mark.slow
def test_the_model_loads_what_was_written(tmp_path, source, tiny_state, pt2ms):
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    model = create_model("svt_tiny", num_classes=10, ckpt_path=tmp_path / "x.ckpt")
    found = {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}
    np.testing.assert_array_equal(found["head.weight"], tiny_state["head.weight"].numpy())
    np.testing.assert_array_equal(found["norm.gamma"], tiny_state["norm.weight"].numpy())
    with pytest.raises(UserError, match=r"x\.ckpt"):
        create_model("svt_tiny", num_classes=1000, ckpt_path=tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt"):
        create_model("svt_small", num_classes=10, ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.slow
def test_verification_report_and_summary(tmp_path, source, tiny_state, pt2ms, capsys):
    report_path = tmp_path / "report.json"
    arguments = ("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt", "--verify")
    pt2ms(*arguments, "--report", report_path)
    report = json.loads(report_path.read_text())
    assert report["source"] == {"container": "model", "prefix": "module."}
    assert report["metadata"] == load_checkpoint(tmp_path / "x.ckpt").metadata
    assert report["account"]["used"].keys() == {f"module.{name}" for name in tiny_state}
    assert len(report["verification"]) == 10
    assert all(row["passed"] for row in report["verification"])
    printed = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in tiny_state.values())
    assert f"recognized svt_tiny, 10 classes: {count:,} parameters" in printed
    assert printed.count("  ok\n") == 10


def test_the_widening_and_the_ignored_are_printed(tmp_path, save, tiny_state, pt2ms, capsys):
    half = {name: tensor.half() for name, tensor in tiny_state.items()}
    source = save({"model": half, "optimizer": {"moment": torch.zeros(3)}})
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    printed = capsys.readouterr().out
    first = next(iter(tiny_state))
    widened = f"from float16: {first} and {len(tiny_state) - 1} more"
    assert f"widened to float32, values unchanged, {widened}\n" in printed
    assert "ignored, not in 'model', whose weights are used: optimizer.moment\n" in printed


def test_a_failed_verification_leaves_the_target_alone(
    tmp_path, source, pt2ms, monkeypatch, capsys
):
    import mindtwins.conversion.verify as module

    (tmp_path / "x.ckpt").write_bytes(b"what was there before")
    failed = module.Comparison("amplified", "logits", 1.0, 1.0, 1e-6, 1e-6)
    monkeypatch.setattr(module, "verify", lambda *args: [failed])
    with pytest.raises(UserError, match=r"x\.ckpt was not written: .* in 1 of 1 rows"):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt", "--verify")
    assert "FAILED" in capsys.readouterr().out
    assert (tmp_path / "x.ckpt").read_bytes() == b"what was there before"
    assert sorted(os.listdir(tmp_path)) == ["source.pth", "x.ckpt"]


@pytest.mark.parametrize(
    "change",
    [
        {"norm.weight": torch.full((128,), torch.inf)},
        {"norm.weight": torch.ones(127)},
        {"norm.weight": torch.ones(128).double()},
        {"surplus": torch.ones(1)},
    ],
)
def test_an_error_leaves_no_output(tmp_path, save, tiny_state, pt2ms, change):
    source = save(tiny_state | change)
    report = ("--report", tmp_path / "report.json")
    with pytest.raises(UserError, match=next(iter(change)).replace(".", r"\.")):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt", *report)
    assert os.listdir(tmp_path) == ["source.pth"]


def test_targets_that_cannot_be_written(tmp_path, source, pt2ms, ms2pt):
    with pytest.raises(UserError, match=r"has to end in \.ckpt or \.safetensors"):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"cannot write .*missing does not exist"):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "missing" / "x.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(UserError, match=r"folder\.ckpt: it is a directory"):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "folder.ckpt")
    (tmp_path / "folder.ckpt").rmdir()
    with pytest.raises(UserError, match=r"nothing\.ckpt does not exist"):
        ms2pt("--ckpt_path", tmp_path / "nothing.ckpt", "--pt_path", tmp_path / "x.pth")
    assert os.listdir(tmp_path) == ["source.pth"]


def test_a_source_is_not_overwritten(tmp_path, tiny_state, pt2ms, ms2pt):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tiny_state, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="choose another --ckpt_path"):
        pt2ms("--pt_path", path, "--ckpt_path", path)
    with pytest.raises(UserError, match="choose another --pt_path"):
        ms2pt("--ckpt_path", path, "--pt_path", path)
    target = tmp_path / "x.ckpt"
    for report in (path, target):
        with pytest.raises(UserError, match="choose another --report"):
            pt2ms("--pt_path", path, "--ckpt_path", target, "--report", report)
    assert path.read_bytes() == before and not target.exists()


def test_a_shard_is_not_overwritten(tmp_path, tiny_state, pt2ms):
    shard = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.torch.save_file(tiny_state, shard)
    before = shard.read_bytes()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tiny_state, shard.name)}))
    with pytest.raises(UserError, match="choose another --ckpt_path"):
        pt2ms("--pt_path", index, "--ckpt_path", shard)
    assert shard.read_bytes() == before


@pytest.mark.parametrize("argument", ["--verfy", "--verif"])
def test_an_unknown_flag_names_the_nearest(argument, tmp_path, source, pt2ms):
    with pytest.raises(UserError, match=r"unknown flag '--veri?f.*\(did you mean '--verify'\?\)"):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt", argument)


def test_verification_names_the_package_that_is_missing(tmp_path, source, pt2ms, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "mindtwins.conversion.verify", raising=False)
    monkeypatch.delattr("mindtwins.conversion.verify", raising=False)
    with pytest.raises(
        UserError, match=r"photographs are scikit-learn's, which is not.*pip install scikit-learn"
    ):
        pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt", "--verify")
    assert os.listdir(tmp_path) == ["source.pth"]


class Payload:
    """Unpickling this would run a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_process_ends_with_one_line_and_runs_nothing(tmp_path, save):
    marker, target = tmp_path / "marker", tmp_path / "x.ckpt"
    source = save({"model": Payload(marker)})
    process = run("convert/pt2ms.py", "--pt_path", source, "--ckpt_path", target)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == f"error: cannot read {source}: it holds no tensors of PyTorch's\n"
    assert not marker.exists() and not target.exists()


def test_what_was_passed_over_is_said(tmp_path, save, tiny_state, pt2ms, capsys):
    marker = tmp_path / "marker"
    source = save({"model": tiny_state, "args": [types.SimpleNamespace(lr=1), Payload(marker)]})
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    told = "passed over types.SimpleNamespace, posix.system, which the file asks for: none of its"
    assert told in capsys.readouterr().out
    assert not marker.exists()


class FullDisk:
    """Takes as many bytes as there is room for."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1000, 100_000, 1_000_000])
def test_a_full_disk_is_said_in_the_systems_words(room):
    with pytest.raises(OSError, match="No space left on device"):
        torch_files.save(FullDisk(io.BytesIO(), room), {"a": np.zeros(10**6, np.float32)})


@pytest.mark.parametrize("script", ["ms2pt", "pt2ms"])
def test_a_full_disk_names_the_users_file(tmp_path, source, pt2ms, ms2pt, monkeypatch, script):
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    before = sorted(os.listdir(tmp_path))

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a temporary name")

    if script == "ms2pt":
        target = tmp_path / "y.pth"
        monkeypatch.setattr(torch_files, "save", fail)
        convert = lambda: ms2pt("--ckpt_path", tmp_path / "x.ckpt", "--pt_path", target)  # noqa: E731
    else:
        target = tmp_path / "y.ckpt"
        monkeypatch.setattr("mindtwins.checkpoint.write_ckpt", fail)
        convert = lambda: pt2ms("--pt_path", source, "--ckpt_path", target)  # noqa: E731
    with pytest.raises(UserError, match=rf"^cannot write {target}: No space left on device$"):
        convert()
    assert sorted(os.listdir(tmp_path)) == before


def test_the_state_of_a_training_is_left_out_and_it_is_said(
    tmp_path, source, tiny_state, pt2ms, ms2pt, capsys
):
    pt2ms("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    checkpoint = load_checkpoint(tmp_path / "x.ckpt")
    state = {
        "optimizer.exp_avg.norm.gamma": np.ones(128, np.float32),
        "ema.norm.gamma": np.ones(128, np.float32),
        "loss_scale.value": np.ones(1, np.float32),
    }
    step = tmp_path / "step_00000010.ckpt"
    save_checkpoint(step, checkpoint.tensors | state, checkpoint.metadata)
    ms2pt("--ckpt_path", step, "--pt_path", tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), tiny_state)
    told = "left out, the state of a training, not weights: optimizer.exp_avg.norm.gamma and 2 more"
    assert told in capsys.readouterr().out


def test_key_and_prefix_choose(tmp_path, save, tiny_state, pt2ms):
    other = {name: tensor + 1 for name, tensor in tiny_state.items()}
    both = {f"student.{n}": t for n, t in tiny_state.items()}
    both |= {f"teacher.{n}": t for n, t in other.items()}
    source = save({"first": tiny_state, "state_dict_ema": both})
    arguments = ("--pt_path", source, "--ckpt_path", tmp_path / "x.ckpt")
    pt2ms(*arguments, "--state_dict", "state_dict_ema", "--prefix", "teacher")
    found = load_checkpoint(tmp_path / "x.ckpt").tensors["norm.beta"]
    np.testing.assert_array_equal(found, other["norm.bias"].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.pth", "lightning.ckpt", "model.safetensors"])
def test_pytorchs_weights_given_as_a_checkpoint_are_sent_to_the_conversion(
    tmp_path, tiny_state, name
):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tiny_state, path, {"format": "pt"})
    else:
        torch.save({"state_dict": tiny_state}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"holds PyTorch's weights: convert it") as caught:
        load_checkpoint(path)
    command = str(caught.value).split("first, with ")[1].split()
    assert command[:4] == ["mindtwins", "convert", "--pt_path", str(path)]
    process = run("-m", *command[:-1], tmp_path / command[-1])
    assert process.returncode == 0, process.stderr
    assert "norm.gamma" in load_checkpoint(tmp_path / command[-1]).tensors
    assert path.read_bytes() == before
