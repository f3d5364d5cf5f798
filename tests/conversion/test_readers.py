import argparse
import collections
import datetime
import enum
import functools
import hashlib
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.tensor_files import BFLOAT16

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


def state_of(source, key=""):
    """The names and values of one of the state dicts in a source."""
    return {name: source.array(place) for name, place in source.states[key].items()}


def assert_is_state(found, expected=STATE):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "x.safetensors", "x"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_both_formats_of_torch_save(save, name, is_zip):
    path = save(STATE, name, _use_new_zipfile_serialization=is_zip)
    assert zipfile.is_zipfile(path) == is_zip
    source = read_source(path)
    assert_is_state(state_of(source))
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(source.states) == [""]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_every_protocol(save, protocol, is_zip):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    assert_is_state(state_of(read_source(save(STATE, **options))))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.bin"])
def test_reads_safetensors(tmp_path, name):
    safetensors.torch.save_file(STATE, tmp_path / name, {"format": "pt"})
    assert_is_state(state_of(read_source(tmp_path / name)), dict(sorted(STATE.items())))


def test_reads_a_repacked_zip(save, tmp_path):
    """With its members compressed."""
    path = save(STATE)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_is_state(state_of(read_source(tmp_path / "x.pth")))


@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_views_and_shared_storages(save, is_zip):
    base = torch.arange(24.0)
    state = {
        "rows": base.view(4, 6)[1:3],
        "columns": base.view(4, 6)[:, 2:4],
        "transposed": base.view(4, 6).T,
        "scalar": base[7],
        "expanded": base[3].expand(2, 5),
        "empty": base[:0],
    }
    assert_is_state(
        state_of(read_source(save(state, _use_new_zipfile_serialization=is_zip))), state
    )


def test_finds_every_state_dict_and_every_tensor(save):
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "moments": [torch.zeros(2)]}}, "lr": 0.1}
    arguments = argparse.Namespace(model="alt_gvt_small", batch_size=128)
    source = read_source(
        save({"ema": {"weights": average}, "optimizer": optimizer, "model": STATE, "a": arguments})
    )
    assert_is_state(state_of(source, "model"))
    assert_is_state(state_of(source, "ema.weights"), average)
    assert list(source.tensors) == [
        "ema.weights.a.weight",
        "ema.weights.a.bias",
        "optimizer.state.0.step",
        "optimizer.state.0.moments.0",
        "model.a.weight",
        "model.a.bias",
    ]


def test_averages_among_the_weights_are_a_state_dict_of_their_own(save):
    average = {f"ema_{n.replace('.', '_')}": tensor + 1 for n, tensor in STATE.items()}
    counter = {"bn.running_mean": torch.ones(2)}
    source = read_source(save({"state_dict": STATE | counter | average}))
    assert_is_state(state_of(source, "state_dict"), STATE | counter)
    expected = {name: tensor + 1 for name, tensor in STATE.items()} | counter
    assert_is_state(state_of(source, "state_dict.ema_"), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
class TestShards:
    def shards(self, tmp_path, suffix):
        write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
        files = [f"model-0000{number}-of-00002{suffix}" for number in (1, 2)]
        for file, name in zip(files, STATE, strict=True):
            write({name: STATE[name]}, tmp_path / file)
        index = {"metadata": {"total_size": 32}, "weight_map": dict(zip(STATE, files, strict=True))}
        path = tmp_path / f"model{suffix}.index.json"
        path.write_text(json.dumps(index))
        return path, [tmp_path / file for file in files]

    def test_are_read_whole(self, tmp_path, suffix):
        path, files = self.shards(tmp_path, suffix)
        source = read_source(path)
        assert_is_state(state_of(source))
        everything = b"".join(file.read_bytes() for file in (path, *files))
        assert source.sha256 == hashlib.sha256(everything).hexdigest()

    def test_a_missing_one_is_named(self, tmp_path, suffix):
        path, files = self.shards(tmp_path, suffix)
        files[1].unlink()
        with pytest.raises(UserError, match=f"index.json: it needs {files[1].name} beside it$"):
            read_source(path)

    def test_a_damaged_one_is_named(self, tmp_path, suffix):
        path, files = self.shards(tmp_path, suffix)
        files[0].write_bytes(files[0].read_bytes()[:-20])
        with pytest.raises(UserError, match=f"of its shard {files[0].name}: .*cut short"):
            read_source(path)

    def test_one_that_lacks_a_tensor_is_named(self, tmp_path, suffix):
        path, files = self.shards(tmp_path, suffix)
        path.write_text(path.read_text().replace("a.bias", "a.bios"))
        with pytest.raises(UserError, match=rf"its shard {files[1].name} lacks a\.bios$"):
            read_source(path)

    def test_one_alone_is_sent_to_its_index(self, tmp_path, suffix):
        path, files = self.shards(tmp_path, suffix)
        with pytest.raises(UserError, match=f"one of 2 shards: give their index, {path.name}"):
            read_source(files[0])


@pytest.mark.parametrize("map_", ['{"a": "../x.bin"}', '{"a": 3}', "3"])
def test_an_index_without_a_sound_map(tmp_path, map_):
    path = tmp_path / "x.index.json"
    path.write_text(f'{{"weight_map": {map_}}}')
    with pytest.raises(UserError, match=r"an index of shards .* weight_map"):
        read_source(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_keeps_dtypes_and_bits(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, generator=generator)
    state = {"half": values.half(), "brain": values.bfloat16(), "double": values.double()}
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    write(state, tmp_path / f"x{suffix}")
    tensors = state_of(read_source(tmp_path / f"x{suffix}"))
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
        array = read_source(save({"a": tensor})).array("a")
        assert array.shape == (3, 2)


class Payload:
    """Unpickling this would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(marker):
    """Ways to run code: by the system, by Python, by torch, by attributes of what was built."""
    code = f"open({str(marker)!r}, 'w')"
    return {
        "system": Payload(os.system, f"touch {marker}"),
        "process": Payload(subprocess.Popen, ["touch", str(marker)]),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "method": Payload(getattr, Payload(__import__, "os"), "system"),
        "touch": Payload(Path.touch, marker),
        "torch": Payload(torch.hub._import_module, "x", str(marker)),
        "partial": Payload(functools.partial(os.system, f"touch {marker}")),
    }


@pytest.mark.parametrize("writer", ["zip", "legacy"])
@pytest.mark.parametrize("kind", payloads("x"))
def test_code_beside_the_weights_does_not_run(tmp_path, writer, kind):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"model": STATE, "args": payloads(marker)[kind], payloads(marker)[kind]: 1}
    torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    source = read_source(path)
    assert_is_state(state_of(source, "model"))
    assert not marker.exists()
    assert source.foreign


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", payloads("x"))
def test_code_in_the_place_of_the_weights_does_not_run(tmp_path, writer, kind):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"model": payloads(marker)[kind]}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(UserError, match=r"cannot read .*evil\.pth: it ") as caught:
        read_source(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


class Attributes:
    """Unpickling this would set attributes of a function of the reader's."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (), (None, {"__code__": 1, "function": 2})


def test_a_file_cannot_change_what_reads_it(save):
    from mindtwins.conversion import torch_files

    before = dict(torch_files._BUILDERS)
    for content in ({"model": STATE, "args": Attributes()}, Attributes()):
        with pytest.raises(UserError):
            read_source(save(content))
    assert before == torch_files._BUILDERS
    assert_is_state(state_of(read_source(save(STATE))))


def test_a_tensor_beyond_its_bytes_is_refused(save):
    """Reading it would show other memory."""
    path = save({"a": torch.ones(5)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            # The size of the first axis, BININT1 in a tuple.
            data = data.replace(b"K\x05\x85", b"K\x7f\x85") if name.endswith("data.pkl") else data
            archive.writestr(name, data)
    with pytest.raises(UserError, match="a goes beyond the end of its bytes"):
        read_source(path).array("a")


@pytest.fixture
def foreign_classes(monkeypatch):
    """Classes that only the writer of the file has, as frameworks keep them beside the weights."""
    module = types.ModuleType("somewhere.config")

    class DictConfig(dict):
        pass

    class ListConfig(list):
        pass

    class Slots:
        __slots__ = ("value",)

    class Color(enum.Enum):
        RED = 1

    def function():
        raise AssertionError("code of the file's ran")

    names = {kind.__name__: kind for kind in (DictConfig, ListConfig, Slots, Color, function)}
    for name, kind in names.items():
        kind.__module__, kind.__qualname__ = module.__name__, name
        setattr(module, name, kind)
    slots = Slots()
    slots.value = 3
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "somewhere", types.ModuleType("somewhere"))
        patch.setitem(sys.modules, module.__name__, module)
        yield {
            "omegaconf": DictConfig(lr=0.1, inner=DictConfig(a=ListConfig([1, 2]))),
            "list": ListConfig([1, DictConfig()]),
            "slots": slots,
            "enum": Color.RED,
            "function": function,
            "class": DictConfig,
            "namespace": types.SimpleNamespace(lr=1e-3),
            "path": Path("/x"),
            "set": {1, frozenset({2})},
            "time": datetime.datetime(2026, 1, 1),
            "counter": collections.Counter("abc"),
            "partial": functools.partial(function, 3),
            "random": torch.Generator().get_state(),
            "numpy": np.random.default_rng(0).bit_generator.state,
            "dtype": torch.float16,
            "device": torch.device("cpu"),
            "bytes": b"abc",
            "complex": 1 + 2j,
            Color.RED: "as a key",
        }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_beside_the_weights_do_not_matter(save, foreign_classes, is_zip, protocol):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    path = save(foreign_classes | {"model": STATE}, **options)
    assert_is_state(state_of(read_source(path), "model"))


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
    assert_is_state(state_of(source, "state_dict"))
    assert list(source.states) == ["state_dict"]
    assert source.classes == ("wall", "building")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_model_that_was_pickled_whole_is_its_state_dict(save, is_zip):
    """None of its class is needed, or run."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    path = save({"model": model}, _use_new_zipfile_serialization=is_zip)
    assert_is_state(state_of(read_source(path), "model"), model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors"),
        ({"state_dict": {"a": np.ones(3, np.float32)}}, "holds no tensors"),
        (3, "holds no tensors"),
    ],
)
def test_says_what_holds_no_tensors(save, content, message):
    path = save(content)
    with pytest.raises(UserError, match=message) as caught:
        read_source(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 2).to_sparse(), "sparse_coo float32"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quantized"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, device="meta"), "meta"),
    ],
)
def test_names_a_tensor_that_is_no_plain_one_when_it_is_used(save, tensor, kind):
    source = read_source(save({"a": tensor, "b": torch.ones(1)}))
    with pytest.raises(UserError, match=f"a is a {kind} tensor, not a plain float32 one"):
        source.array("a")
    assert source.array("b") == 1


def test_keys_of_every_kind(save):
    """Tensors as keys, as whole optimizers once had them, and keys that look like places."""
    weight = torch.ones(2)
    content = {"state": {weight: {"step": torch.zeros(1)}, 3: weight}, "state.3": torch.zeros(3)}
    source = read_source(save(content))
    assert list(source.tensors) == ["state.0.step", "state.3", "state.3'"]
    assert [source.array(place).size for place in source.tensors] == [1, 2, 3]


def test_lists_without_end_are_passed_over(save):
    endless = []
    endless.append(endless)
    source = read_source(save({"model": STATE, "optimizer": endless}))
    assert_is_state(state_of(source, "model"))


def test_reads_without_torch(tmp_path, save, monkeypatch):
    paths = [save(STATE), save(STATE, "y.pth", _use_new_zipfile_serialization=False)]
    monkeypatch.setitem(sys.modules, "torch", None)
    for path in paths:
        assert list(state_of(read_source(path))) == list(STATE)


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
