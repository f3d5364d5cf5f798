"""Files that MindSpore wrote: its writer is the reference for our reader."""

import mindspore as ms
import numpy as np
import pytest
from mindspore.train.checkpoint_pb2 import Checkpoint

from mindtwins.formats import BFLOAT16, FormatError, ckpt


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "weight": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal(4).astype(np.float16),
        "count": np.array(7, np.int64),
    }


def save_with_mindspore(path, arrays, **options):
    tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(tensors, str(path), append_dict={"epoch": 3, "note": "text"}, **options)
    return path.read_bytes()


@pytest.mark.parametrize("crc_check", [False, True])
def test_reads_what_mindspore_wrote(tmp_path, arrays, crc_check):
    data = save_with_mindspore(tmp_path / "ms.ckpt", arrays, crc_check=crc_check)
    found, metadata = ckpt.read(data)
    assert metadata is None
    assert list(found) == [*arrays, "epoch"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
    assert found["epoch"] == 3


def test_checks_mindspores_crc(tmp_path, arrays):
    data = bytearray(save_with_mindspore(tmp_path / "ms.ckpt", arrays, crc_check=True))
    data[60] ^= 4
    with pytest.raises(FormatError, match="checksum"):
        ckpt.read(bytes(data))


def test_writes_the_same_records_as_mindspore(tmp_path, arrays):
    tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(tensors, str(tmp_path / "ms.ckpt"))
    with open(tmp_path / "own.ckpt", "wb") as file:
        ckpt.write(file, arrays, "{}")
    assert (tmp_path / "ms.ckpt").read_bytes() in (tmp_path / "own.ckpt").read_bytes()


def record(tag, content, dims=(4,), type_name="Float32"):
    message = Checkpoint()
    value = message.value.add()
    value.tag = tag
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type = type_name
    value.tensor.tensor_content = content
    return message.SerializeToString()


def test_joins_the_slices_of_a_large_tensor():
    array = np.arange(4, dtype=np.float32)
    data = record("a", array[:3].tobytes()) + record("a", array[3:].tobytes())
    found, _ = ckpt.read(data)
    np.testing.assert_array_equal(found["a"], array)


def test_reads_bfloat16_as_its_bits():
    found, _ = ckpt.read(record("a", b"\x80\x3f" * 4, type_name="BFloat16"))
    assert found["a"].dtype == BFLOAT16
    np.testing.assert_array_equal(found["a"].view(np.uint16), [0x3F80] * 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record("a", bytes(16)) + record("b", bytes(16)) + record("a", bytes(16)), "a twice"),
        (record("a", bytes(12)), "size of a"),
        (record("a", bytes(16), type_name="Complex64"), "unknown type Complex64"),
        (record("a", b"", dims=(0, 2**62, 2**62)), "impossible shape"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(FormatError, match=message):
        ckpt.read(data)
