"""Files are what their content says, and sound ones are never called damaged."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.conversion.readers import read_source
from mindtwins.errors import UserError
from mindtwins.formats import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, identify
from mindtwins.tensor_files import write_ckpt


def saved(save, *arguments, **options):
    buffer = io.BytesIO()
    save(*arguments, buffer, **options)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


def onnx():
    """The start of a model as torch's exporter writes it."""
    return b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:" + bytes(range(200))


FILES = {
    "a TorchScript archive": saved(torch.jit.save, torch.jit.script(torch.nn.Linear(2, 2))),
    "a Keras or HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a Keras model": zipped(config__json="{}", model__weights__h5="x"),
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(500),
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(500),
    "an ONNX model": onnx(),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><title>Sign in</title>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON text": json.dumps({"error": "Repository not found"}).encode(),
    "a text": "Not Found: naïve\n".encode(),
    "a pickle, but not of torch.save": pickle.dumps({"weights": [1.0, 2.0]}),
    "a NumPy array": saved(lambda array, file: np.save(file, array), np.ones(3)),
    "a NumPy archive": saved(lambda array, file: np.savez(file, a=array), np.ones(3)),
    "a zip archive": zipped(readme__md="x"),
    "a gzip archive": gzip.compress(b"x" * 500),
    "a tar archive": tarred(),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt", ".bin"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named(tmp_path, name, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(FILES[name])
    uses = (read_source, load_checkpoint) if suffix in (".ckpt", ".safetensors") else (read_source,)
    for use in uses:
        with pytest.raises(UserError) as caught:
            use(path)
        message = str(caught.value)
        assert f"{path}: it is {name}" in message
        assert "damaged" not in message and "\n" not in message


def test_weights_are_known_by_their_content():
    weights = {"a": torch.ones(3)}
    legacy = saved(torch.save, weights, _use_new_zipfile_serialization=False)
    assert identify(io.BytesIO(saved(torch.save, weights))) is TORCH_ZIP
    assert identify(io.BytesIO(legacy)) is TORCH_LEGACY
    assert identify(io.BytesIO(safetensors.numpy.save({"a": np.ones(3)}))) is SAFETENSORS


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"\xff" * 500, bytes(range(256)) * 9])
def test_what_has_no_format_is_not_named(content):
    assert identify(io.BytesIO(content)) is None


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_was_cut_short_may_be_damaged(tmp_path, is_zip):
    data = saved(torch.save, {"a": torch.ones(999)}, _use_new_zipfile_serialization=is_zip)
    path = tmp_path / "x.pth"
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="cut short, or is damaged"):
        read_source(path)


def test_a_checkpoint_of_this_project_needs_no_conversion(tmp_path):
    arrays = {"blocks.0.0.norm1.gamma": np.ones(3, np.float32)}
    write_ckpt(tmp_path / "unsealed.ckpt", arrays)
    save_checkpoint(tmp_path / "sealed.ckpt", arrays, {})
    for path in (tmp_path / "unsealed.ckpt", tmp_path / "sealed.ckpt"):
        with pytest.raises(UserError, match="it is a MindSpore checkpoint: it needs no conversion"):
            read_source(path)
        assert load_checkpoint(path).tensors.keys() == arrays.keys()


@pytest.mark.parametrize(
    ("suffix", "other"), [(".ckpt", ".safetensors"), (".safetensors", ".ckpt")]
)
def test_a_checkpoint_of_the_other_suffix_is_to_be_renamed(tmp_path, suffix, other):
    save_checkpoint(tmp_path / f"x{suffix}", {"a": np.ones(3, np.float32)}, {})
    path = (tmp_path / f"x{suffix}").rename(tmp_path / f"x{other}")
    with pytest.raises(UserError, match=rf"rename it to end in \{suffix}$"):
        load_checkpoint(path)
