"""Files of the formats' own writers, and files that nobody should write."""

import errno
import json

import mindspore as ms
import numpy as np
import pytest
import safetensors.torch
import torch
from mindspore.train.checkpoint_pb2 import Checkpoint

from mindtwins.errors import UserError
from mindtwins.tensor_files import (
    BFLOAT16,
    FormatError,
    read_ckpt,
    read_safetensors,
    write_ckpt,
    write_safetensors,
)


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "weight": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal(4).astype(np.float16),
        "count": np.array(7, np.int64),
    }


class TestCkpt:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "x.ckpt"

    @pytest.mark.parametrize("crc_check", [False, True])
    def test_reads_what_mindspore_saved(self, path, arrays, crc_check):
        tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
        more = {"epoch": 3, "note": "text"}
        ms.save_checkpoint(tensors, str(path), append_dict=more, crc_check=crc_check)
        found, texts = read_ckpt(path)
        assert texts == {"note": "text"}
        assert list(found) == [*arrays, "epoch"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found["epoch"] == 3

    def test_checks_mindspores_crc(self, path, arrays, capfd):
        tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
        ms.save_checkpoint(tensors, str(path), crc_check=True)
        data = bytearray(path.read_bytes())
        data[60] ^= 4
        path.chmod(0o600)
        path.write_bytes(data)
        with pytest.raises(FormatError, match="damaged"):
            read_ckpt(path)
        assert capfd.readouterr() == ("", "")

    def test_reads_bfloat16_as_its_bits(self, path):
        message = Checkpoint()
        value = message.value.add()
        value.tag = "a"
        value.tensor.dims.extend([4])
        value.tensor.tensor_type = "BFloat16"
        value.tensor.tensor_content = b"\x80\x3f" * 4
        path.write_bytes(message.SerializeToString())
        found, _ = read_ckpt(path)
        assert found["a"].dtype == BFLOAT16
        np.testing.assert_array_equal(found["a"].view(np.uint16), [0x3F80] * 4)

    def test_keeps_the_order_of_arrays_and_texts(self, path, arrays):
        write_ckpt(path, {"first": "x", **arrays, "last": "y"})
        assert list(ms.load_checkpoint(str(path))) == ["first", *arrays, "last"]

    def test_an_empty_array_is_refused(self, path):
        with pytest.raises(FormatError, match="cannot hold a, which is empty"):
            write_ckpt(path, {"a": np.zeros((0, 3), np.float32)})

    def test_too_little_memory_is_not_called_damage(self, path, arrays, monkeypatch):
        write_ckpt(path, arrays)
        monkeypatch.setattr("mindspore.train.serialization._get_available_memory", lambda: 100)
        with pytest.raises(UserError, match="does not fit into the free memory"):
            read_ckpt(path)

    @pytest.mark.parametrize("place", ["Checkpoint", "Parameter"])
    @pytest.mark.parametrize(
        ("met", "raised"),
        [
            (KeyboardInterrupt(), (KeyboardInterrupt, None)),
            (SystemExit(7), (SystemExit, "7")),
            (MemoryError(), (UserError, "the memory is full")),
            (OSError(errno.EIO, "Input/output error"), (UserError, "Input/output error")),
            (PermissionError(errno.EACCES, "Permission denied"), (UserError, "Permission denied")),
        ],
    )
    def test_what_is_no_fault_of_the_file_is_not_called_damage(
        self, path, arrays, monkeypatch, place, met, raised
    ):
        """In both halves of MindSpore's reading, which make a ValueError of everything."""
        write_ckpt(path, arrays)

        def fail(*args, **kwargs):
            raise met

        parser = type("Parser", (), {"ParseFromString": fail})
        replacement = parser if place == "Checkpoint" else fail
        monkeypatch.setattr(f"mindspore.train.serialization.{place}", replacement)
        with pytest.raises(raised[0], match=raised[1]):
            read_ckpt(path)


class TestSafetensors:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "x.safetensors"

    def test_reads_what_torch_users_save(self, path):
        generator = torch.Generator().manual_seed(0)
        tensors = {
            "weight": torch.randn(3, 5, generator=generator),
            "half": torch.randn(4, generator=generator).half(),
            "brain": torch.randn(2, 3, generator=generator).bfloat16(),
            "count": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
        }
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        found, metadata = read_safetensors(path)
        assert metadata == {"format": "pt"}
        assert list(found) == sorted(tensors)
        assert found["brain"].dtype == BFLOAT16
        brain = found.pop("brain").view(np.uint16)
        np.testing.assert_array_equal(brain, tensors.pop("brain").view(torch.uint16).numpy())
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
            assert found[name].dtype == tensor.numpy().dtype

    def test_torch_users_read_what_we_write(self, path, arrays):
        arrays["transposed"] = arrays["weight"].T
        write_safetensors(path, arrays, {"format": "pt"})
        found = safetensors.torch.load_file(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name].numpy(), array)

    def test_a_type_that_numpy_lacks_is_named(self, path):
        path.write_bytes(build({"a": entry(shape=(16,), dtype="F8_E4M3")}))
        with pytest.raises(FormatError, match="a in it has the type F8_E4M3"):
            read_safetensors(path)

    def test_unsound_files_are_refused(self, path):
        for data in UNSOUND:
            path.write_bytes(data)
            with pytest.raises(FormatError, match="damaged"):
                read_safetensors(path)


def build(header, content=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(start=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


UNSOUND = [
    build(b"{"),
    build([1]),
    build(b"[" * 100_000),
    build(b'{"a": ' + b"9" * 5000 + b"}"),
    build({"a": entry(dtype=["F32"])}),
    build({"a": entry(shape=(5,))}),
    build({"a": entry(shape=(-4,))}),
    build({"a": entry(0, 12, (3,))}),
    build({"a": entry(), "b": entry()}),
    build({"a": entry(16, 0)}),
    build({"a": entry(0, 32, (8,))}),
    build({"a": entry(), "z": entry(16, 16, (0, 2**62, 2**62))}),
    build({"__metadata__": 3, "a": entry()}),
    (2**63).to_bytes(8, "little") + b"{}",
    b"\x05\0\0",
]
