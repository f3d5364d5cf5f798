import argparse
import hashlib
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.tensor_files import BFLOAT16

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


def assert_is_state(source):
    assert list(source.tensors) == list(STATE)
    for name, tensor in STATE.items():
        np.testing.assert_array_equal(source.tensors[name], tensor.numpy())


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.tar"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_both_formats_of_torch_save(save, name, is_zip):
    path = save(STATE, name, _use_new_zipfile_serialization=is_zip)
    assert zipfile.is_zipfile(path) == is_zip
    source = read_source(path)
    assert_is_state(source)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.container, source.prefix, source.ignored) == (None, "", {})


def test_reads_safetensors(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "x.safetensors")
    source = read_source(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in source.tensors.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }


@pytest.mark.parametrize("container", ["model", "state_dict", "model_ema", "ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_unwraps_containers_and_prefix(save, container, prefix):
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    source = read_source(save({"epoch": 3, container: state}))
    assert_is_state(source)
    assert (source.container, source.prefix) == (container, prefix)


def test_the_model_comes_before_its_average_and_the_rest_is_named(save):
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "moments": [torch.zeros(2)]}}, "lr": 0.1}
    arguments = argparse.Namespace(model="alt_gvt_small", batch_size=128)
    source = read_source(
        save({"model_ema": average, "optimizer": optimizer, "model": STATE, "args": arguments})
    )
    assert_is_state(source)
    assert source.ignored == dict.fromkeys(
        [
            "model_ema.a.weight",
            "model_ema.a.bias",
            "optimizer.state.0.step",
            "optimizer.state.0.moments.0",
        ],
        "not in 'model', whose weights are used",
    )


def test_a_prefix_that_only_some_names_have_stays(save):
    source = read_source(save({"module.a": torch.ones(1), "b": torch.ones(1)}))
    assert list(source.tensors) == ["module.a", "b"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_keeps_dtypes_and_bits(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, generator=generator)
    state = {"half": values.half(), "brain": values.bfloat16(), "double": values.double()}
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    write(state, tmp_path / f"x{suffix}")
    tensors = read_source(tmp_path / f"x{suffix}").tensors
    assert {name: array.dtype for name, array in tensors.items()} == {
        "half": np.float16,
        "brain": BFLOAT16,
        "double": np.float64,
    }
    np.testing.assert_array_equal(tensors["half"], state["half"].numpy())
    np.testing.assert_array_equal(
        tensors["brain"].view(np.uint16), state["brain"].view(torch.uint16).numpy()
    )


def test_reads_transposed_and_parameter_tensors(save):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    for tensor in (weight, weight.bfloat16()):
        array = read_source(save({"a": tensor})).tensors["a"]
        assert array.shape == (3, 2)


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, writer, nested):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = Payload(marker)
    content = {"model": STATE, "args": content} if nested else content
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(UserError, match=r"cannot read .*evil\.pth: it ") as caught:
        read_source(path)
    assert "\n" not in str(caught.value)
    if writer != "pickle":
        assert "could run code" in str(caught.value) and "system" in str(caught.value)
    assert not marker.exists()


@pytest.fixture
def history_buffer(monkeypatch):
    """A class as MMEngine's, which only the writer of the file has."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            raise AssertionError("code of the file's ran")

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.min.__module__ = module.__name__
    HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        yield HistoryBuffer()


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_mmsegmentation_keeps_beside_the_weights(save, history_buffer, is_zip):
    meta = {
        "PALETTE": np.zeros((150, 3), np.uint8),
        "hook_msgs": {"best_score": np.float64(0.44)},
        "dataset_meta": {"classes": ("wall", "building")},
    }
    hub = {"log_scalars": {"train/loss": history_buffer}, "runtime_info": {"lr": np.float32(1e-4)}}
    path = save(
        {"meta": meta, "message_hub": hub, "state_dict": STATE},
        _use_new_zipfile_serialization=is_zip,
    )
    source = read_source(path)
    assert_is_state(source)
    assert (source.container, source.ignored) == ("state_dict", {})


def test_arrays_are_no_weights(save):
    """They are left out with all else that is NumPy's, and that is said."""
    path = save({"state_dict": {"a": np.ones(3, np.float32)}})
    with pytest.raises(UserError, match=r"its a is of type \w+, not a tensor"):
        read_source(path)


def test_a_pickled_module_is_refused_with_advice(save):
    path = save(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"Linear.* save only the model's state_dict\(\)"):
        read_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds no state dict"),
        (torch.ones(1), "holds no state dict"),
        ({1: torch.ones(1)}, "holds no state dict"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors"),
        ({"a": torch.ones(1), "epoch": 3}, "epoch is of type int, not a tensor"),
        (
            {"net": STATE},
            "net is of type dict, .* bare and under model, state_dict, model_ema, ema",
        ),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is a sparse_coo float32 tensor"),
    ],
)
def test_says_what_is_no_state_dict(save, content, message):
    path = save(content)
    with pytest.raises(UserError, match=message) as caught:
        read_source(path)
    assert str(path) in str(caught.value)


def test_lists_without_end_are_refused(save):
    endless = []
    endless.append(endless)
    path = save({"model": STATE, "optimizer": endless})
    with pytest.raises(UserError, match="without end"):
        read_source(path)


def test_without_torch_safetensors_still_read(tmp_path, save, monkeypatch):
    path = save(STATE)
    safetensors.torch.save_file(STATE, tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_source(tmp_path / "x.safetensors").tensors.keys() == STATE.keys()
    with pytest.raises(UserError, match=r"pip install torch, or use a \.safetensors file"):
        read_source(path)


def test_a_torch_that_can_be_tricked_is_refused(save, monkeypatch):
    path = save(STATE)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    with pytest.raises(UserError, match=r"need PyTorch 2\.6 or newer, not 2\.5\.1"):
        read_source(path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_in_one_line(save, is_zip, fraction):
    state = {"a": torch.randn(100, 100)}
    path = save(state, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(UserError, match=r"cannot read .*source.pth: it .*cut short") as caught:
        read_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"import os\nprint(1)\n", b"{}", b"\x80\x02}q\x00.", b"\0" * 99]
)
def test_other_files_are_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read {path}") as caught:
        read_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_empty_and_directory(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(UserError, match="does not exist"):
        read_source(path)
    path.touch()
    with pytest.raises(UserError, match="is empty"):
        read_source(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a directory"):
        read_source(path)
