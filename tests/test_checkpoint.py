import json
import os
import resource
import stat

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from mindspore import nn

from mindtwins.checkpoint import expect_metadata, load_checkpoint, load_into, save_checkpoint
from mindtwins.errors import UserError
from mindtwins.tensor_files import write_ckpt, write_safetensors

SUFFIXES = [".ckpt", ".safetensors"]
METADATA = {"variant": "svt_small", "rate": 0.1, "names": ["ä", "b"], "nothing": None}


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        "block.weight": random.standard_normal((3, 4)).astype(np.float32),
        "scalar": np.array(2.5, np.float32),
        "half": random.standard_normal(7).astype(np.float16),
        "step": np.array(2**40, np.int64),
        "flags": np.array([True, False]),
        "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)


def is_refused_or_same(path, tensors, metadata):
    """Whether loading raises a UserError of one line; anything but that or the values fails."""
    try:
        checkpoint = load_checkpoint(path)
    except UserError as error:
        assert "\n" not in str(error)
        return True
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.metadata == metadata
    return False


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestFile:
    def test_round_trip(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        checkpoint = load_checkpoint(path)
        assert_same(checkpoint.tensors, tensors)
        assert list(checkpoint.tensors) == (list if suffix == ".ckpt" else sorted)(tensors)
        assert checkpoint.metadata == METADATA
        assert checkpoint.path == path

    def test_same_input_same_bytes(self, tmp_path, tensors, suffix):
        paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
        for path, metadata in zip(paths, (METADATA, dict(reversed(METADATA.items()))), strict=True):
            save_checkpoint(path, tensors, metadata)
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_mindspore_reads_it(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        found = ms.load_checkpoint(str(path), format=suffix[1:])
        texts = {name for name, value in found.items() if isinstance(value, str)}
        assert len(texts) == (2 if suffix == ".ckpt" else 0)
        assert_same({name: found[name].asnumpy() for name in found.keys() - texts}, tensors)

    def test_usual_permissions(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        for umask in (0o022, 0o027):
            before = os.umask(umask)
            try:
                save_checkpoint(path, tensors, METADATA)
            finally:
                os.umask(before)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    @pytest.mark.slow
    def test_every_flipped_bit_is_found_or_harmless(self, tmp_path, suffix, capfd):
        """Harmless: in the dimensions of a text, which MindSpore ignores, for one."""
        path = tmp_path / f"model{suffix}"
        tensors = {"a.weight": np.arange(4, dtype=np.float32).reshape(2, 2), "b": np.array(7)}
        save_checkpoint(path, tensors, {"variant": "x"})
        data = path.read_bytes()
        found = 0
        for position in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            found += is_refused_or_same(path, tensors, {"variant": "x"})
        assert found > 0.99 * 8 * len(data)
        assert capfd.readouterr() == ("", "")

    def test_every_cut_is_found(self, tmp_path, tensors, suffix):
        """At any length, so between two records too, where MindSpore's loader sees nothing."""
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(UserError):
                load_checkpoint(path)

    def test_anything_appended_is_found_or_harmless(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        data = path.read_bytes()
        save_checkpoint(path, {"extra": np.ones(1, np.float32)}, METADATA)
        for extra in (b"\0", data, path.read_bytes(), b"crc_num" + bytes(10)):
            path.write_bytes(data + extra)
            is_refused_or_same(path, tensors, METADATA)

    @pytest.mark.parametrize(
        "content", [b"just a text\n" * 9, b"PK\3\4" * 9, bytes(99), b"\x80" * 9]
    )
    def test_other_files_are_refused_in_one_line(self, tmp_path, suffix, content):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot load") as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    def test_random_bytes_are_refused(self, tmp_path, suffix):
        random, path = np.random.default_rng(0), tmp_path / f"model{suffix}"
        for size in random.integers(1, 400, 300):
            path.write_bytes(random.bytes(size))
            with pytest.raises(UserError):
                load_checkpoint(path)

    def test_a_seal_that_lacks_a_part_is_found(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        for part in ("mindtwins.metadata", "mindtwins.sha256"):
            if suffix == ".ckpt":
                write_ckpt(path, {**tensors, part: "{}"})
            else:
                write_safetensors(path, tensors, {"mindtwins.seal": json.dumps({part: "{}"})})
            with pytest.raises(UserError, match="does not match its checksum"):
                load_checkpoint(path)

    def test_somebody_elses_file_has_no_metadata(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        if suffix == ".ckpt":
            write_ckpt(path, {**tensors, "note": "text"})
        else:
            write_safetensors(path, tensors, {"format": "pt"})
        checkpoint = load_checkpoint(path)
        assert checkpoint.metadata is None
        assert_same(checkpoint.tensors, tensors)

    def test_tensors_are_read_only(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        assert not any(array.flags.writeable for array in load_checkpoint(path).tensors.values())

    def test_a_dtype_that_cannot_be_held_leaves_the_old_file(self, tmp_path, tensors, suffix):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        with pytest.raises(UserError, match=r"cannot hold z \(complex64\)"):
            save_checkpoint(path, tensors | {"z": np.zeros(3, np.complex64)}, METADATA)
        assert_same(load_checkpoint(path).tensors, tensors)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_a_full_disk_leaves_the_old_file_and_says_so(self, tmp_path, tensors, suffix, capfd):
        path = tmp_path / f"model{suffix}"
        save_checkpoint(path, tensors, METADATA)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(UserError, match=f"cannot write {path}: .*File too large"):
                save_checkpoint(path, {"a": np.zeros(10_000)}, METADATA)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert_same(load_checkpoint(path).tensors, tensors)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert capfd.readouterr() == ("", "")

    def test_missing_directory_and_empty(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        with pytest.raises(UserError, match="does not exist"):
            load_checkpoint(path)
        path.touch()
        with pytest.raises(UserError, match="is empty"):
            load_checkpoint(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(UserError, match="is a directory"):
            load_checkpoint(path)


def test_safetensors_reads_it(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tensors, METADATA)
    found = safetensors.numpy.load_file(path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    with safetensors.safe_open(path, "np") as file:
        seal = json.loads(file.metadata()["mindtwins.seal"])
    assert json.loads(seal["mindtwins.metadata"]) == METADATA


@pytest.mark.parametrize("name", ["model.pth", "model", "model.CKPT"])
def test_other_suffixes_are_refused(tmp_path, name):
    for use in (load_checkpoint, lambda path: save_checkpoint(path, {}, {})):
        with pytest.raises(UserError, match=r"has to end in \.ckpt or \.safetensors"):
            use(tmp_path / name)


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.body = nn.Dense(3, 2)
        self.head = nn.Dense(2, 5)


@pytest.fixture
def fitting():
    random = np.random.default_rng(1)
    shapes = {"body.weight": (2, 3), "body.bias": (2,), "head.weight": (5, 2), "head.bias": (5,)}
    return {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def saved(tmp_path, tensors, metadata=METADATA):
    save_checkpoint(tmp_path / "net.ckpt", tensors, metadata)
    return load_checkpoint(tmp_path / "net.ckpt")


def values(net):
    return {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}


class TestLoadInto:
    def test_sets_every_parameter(self, tmp_path, fitting):
        net = Net()
        load_into(net, saved(tmp_path, dict(reversed(fitting.items()))))
        assert_same(values(net), fitting)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"head.bias": None}, "it lacks head.bias"),
            ({"tail.bias": np.zeros(5, "f4")}, "it has no use for tail.bias"),
            ({"body.bias": np.zeros(4, "f4")}, "body.bias 4 float32 instead of 2 float32"),
            ({"body.bias": np.zeros(2, "f2")}, "body.bias 2 float16 instead of 2 float32"),
            # MindSpore's own loader would put these into body.*.
            ({"body.weight": None, "old.body.weight": np.zeros((2, 3), "f4")}, "lacks body.weight"),
        ],
    )
    def test_says_what_does_not_fit_and_sets_nothing(self, tmp_path, fitting, change, message):
        tensors = {k: v for k, v in (fitting | change).items() if v is not None}
        net = Net()
        before = values(net)
        with pytest.raises(UserError, match=message) as caught:
            load_into(net, saved(tmp_path, tensors))
        assert "net.ckpt does not fit the model" in str(caught.value)
        assert_same(values(net), before)

    def test_lists_a_few_names_and_counts_the_rest(self, tmp_path):
        tensors = {f"extra{i}": np.zeros(1, "f4") for i in range(9)}
        with pytest.raises(UserError) as caught:
            load_into(Net(), saved(tmp_path, tensors))
        assert "extra0, extra1, extra2, extra3 and 5 more" in str(caught.value)

    def test_allowed_prefixes_may_stay_unused(self, tmp_path, fitting):
        net = Net()
        tensors = fitting | {"norm.gamma": np.ones(2, "f4")}
        load_into(net, saved(tmp_path, tensors), allow_unused=("norm.",))
        assert_same(values(net), fitting)


def test_expect_metadata_names_what_differs(tmp_path, fitting):
    checkpoint = saved(tmp_path, fitting, {"variant": "svt_small", "num_classes": 10})
    expect_metadata(checkpoint, variant="svt_small", num_classes=10, unstated=3)
    with pytest.raises(UserError, match=r"net.ckpt .* num_classes 10 \(asked for: 1000\)"):
        expect_metadata(checkpoint, variant="svt_small", num_classes=1000)
