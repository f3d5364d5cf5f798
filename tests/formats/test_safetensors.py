"""Files that the safetensors package wrote, and files that nobody should write."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from mindtwins.formats import BFLOAT16, FormatError
from mindtwins.formats import safetensors as own


def test_reads_what_the_safetensors_package_wrote(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight": torch.randn(3, 5, generator=generator),
        "half": torch.randn(4, generator=generator).half(),
        "brain": torch.randn(2, 3, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found, metadata = own.read((tmp_path / "a.safetensors").read_bytes())
    assert metadata is None
    assert found.keys() == tensors.keys()
    assert found["brain"].dtype == BFLOAT16
    brain = found.pop("brain").view(np.uint16)
    np.testing.assert_array_equal(brain, tensors.pop("brain").view(torch.uint16).numpy())
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


def test_the_safetensors_package_reads_what_we_write_for_torch(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with open(tmp_path / "a.safetensors", "wb") as file:
        own.write(file, {"a": array}, metadata=None)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("a").numpy(), array)


def build(header, content=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(start=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        build(b"{"),
        build([1]),
        build(b"[" * 100_000),
        build(b'{"a": ' + b"9" * 5000 + b"}"),
        build({"a": entry(dtype="F8_E4M3")}),
        build({"a": entry(dtype=["F32"])}),
        build({"a": entry(shape=(5,))}),
        build({"a": entry(shape=(-4,))}),
        build({"a": entry(shape=(4.0,))}),
        build({"a": entry(0, 12, (3,))}),
        build({"a": entry(4, 16, (3,))}),
        build({"a": entry(), "b": entry()}),
        build({"a": entry(16, 0)}),
        build({"a": entry(0, 32, (8,))}),
        build({"a": entry(), "z": entry(16, 16, (0, 2**62, 2**62))}),
        build({"a": {"dtype": "F32"}}),
        build({"__metadata__": 3, "a": entry()}),
        build(
            json.dumps({"a": entry()})[:-1].encode()
            + b","
            + json.dumps({"a": entry()})[1:].encode()
        ),
        (2**63).to_bytes(8, "little") + b"{}",
        b"\x05\0\0",
    ],
)
def test_unsound_files_are_refused(data):
    with pytest.raises(FormatError):
        own.read(data)
