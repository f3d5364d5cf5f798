"""Files of torch.save: read without PyTorch and without running anything of theirs, and written.

Such a file is a pickle, a program that builds objects, and beside it the bytes of the tensors. Here
the program may name only what is in a table: functions of this module that note what a tensor is.
Whatever else it names, a framework's own classes as well as os.system, is an `Inert` that takes
everything and does nothing.

Writing, the reference and the verification are the only places that need torch.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO, TypeGuard, cast

import numpy as np

from mindtwins.errors import UserError
from mindtwins.formats import TORCH_LEGACY, TORCH_ZIP, identify
from mindtwins.tensor_files import BFLOAT16, FormatError

_DAMAGED = "it is no PyTorch checkpoint, was cut short, or is damaged"

# Element types by the names of torch's storages and dtypes.
_STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
    "UntypedStorage": np.dtype("u1"),
}
_DTYPES: dict[str, np.dtype] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}


def load(file: BinaryIO) -> tuple[object, list[str]]:
    """What torch.save put into a file: tensors in dictionaries and lists.

    Reads the zip format and the one before torch 1.6. The tensors are `TensorRecord`s, whose
    values `as_array` gives; unknown objects are `Inert`.

    Returns:
        The content, and the names of the classes and functions that the file asks for and does not
        get.

    Raises:
        FormatError: damaged, or another format.
    """
    form = identify(file)
    file.seek(0)
    readers = {TORCH_ZIP: _load_zip, TORCH_LEGACY: _load_legacy}
    if form not in readers:
        raise FormatError(f"it is {form}" if form else _DAMAGED)
    foreign: dict[str, None] = {}
    try:
        return readers[form](file, foreign), list(foreign)
    except (FormatError, MemoryError):
        raise
    # A damaged file surfaces as whatever its program meets first: EOFError, KeyError, TypeError,
    # UnicodeDecodeError, UnpicklingError ... all of them mean the same here.
    except Exception as error:
        raise FormatError(_DAMAGED) from error


@dataclass
class _Storage:
    """The elements that tensors are views of.

    Attributes:
        dtype: None for one that NumPy has no type for.
        size: how many elements it has.
        data: their bytes; None until they are reached in the file.
        start: of a view of another storage, where it begins in that one's bytes.
    """

    dtype: np.dtype | None
    size: int
    data: memoryview | None = None
    base: _Storage | None = None
    start: int = 0

    def bytes(self) -> memoryview:
        if self.base is not None:
            return self.base.bytes()[self.start :]
        if self.data is None:
            raise FormatError(_DAMAGED)
        return self.data


@dataclass(frozen=True, eq=False)  # optimizers were once pickled with tensors as keys
class TensorRecord:
    """A tensor as a file describes it.

    Attributes:
        shape: its size on each axis.
        kind: in torch's words, if it is no dense array of numbers: "sparse_coo", "quantized" ...
    """

    storage: _Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    kind: str = ""


class Inert(dict):
    """Takes whatever a file wants to make of it, and does nothing with it.

    What a file puts into it, as items or as attributes, can be looked up.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return Inert()

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    add = append
    # A file may use it as a key, which a dictionary's type rules out.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def is_tensor(value: object) -> TypeGuard[TensorRecord]:
    """Whether a value that `load` returned is a tensor."""
    return isinstance(value, TensorRecord)


def as_array(name: str, tensor: TensorRecord) -> np.ndarray:
    """A tensor's memory as a read-only array; bfloat16 as `mindtwins.tensor_files.BFLOAT16`.

    Raises:
        FormatError: a sparse, quantized or otherwise foreign tensor, or one that goes beyond the
            file's bytes.
    """
    if tensor.kind:
        raise FormatError(f"{name} is a {tensor.kind} tensor, not a plain float32 one")
    # Only tensors of a kind have none.
    assert tensor.storage is not None and tensor.dtype is not None
    dtype, data = tensor.dtype, tensor.storage.bytes()
    sizes = (*tensor.shape, *tensor.strides, tensor.offset)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    if min(sizes) < 0 or (last + 1) * dtype.itemsize > len(data):
        raise FormatError(f"{name} goes beyond the end of its bytes: the file is damaged")
    elements = np.frombuffer(data, dtype, last + 1 - tensor.offset, tensor.offset * dtype.itemsize)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    array = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


class _Unpickler(pickle._Unpickler):
    """Python's own reader of pickles, written in Python, which builds what `_BUILDERS` names.

    Args:
        file: at the start of a pickle.
        foreign: takes the names that it asks for and does not get.
        find_storage: (key, dtype, number of elements, view) -> the storage.
    """

    stack: list[Any]  # what is being built, Python's own

    def __init__(
        self,
        file: BinaryIO,
        foreign: dict[str, None],
        find_storage: Callable[..., _Storage] | None = None,
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._foreign = foreign
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> object:
        path = f"{module}.{name}"
        if path in _BUILDERS:
            return _BUILDERS[path]
        if module == "torch" or (module.startswith("torch.") and name in _STORAGES):
            return _Named(name)
        self._foreign[path] = None
        return type(name, (Inert,), {"__module__": module})

    def persistent_load(self, identifier: Any) -> object:
        kind, *rest = identifier
        if kind == "module":  # of the old format: (class, its source file, its source)
            return rest[0]
        if kind != "storage" or self._find_storage is None:
            raise pickle.UnpicklingError(f"an unknown reference ({kind})")
        storage_type, key, _, size, *view = rest
        return self._find_storage(key, _STORAGES.get(storage_type.name), size, *view)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("a reference to Python's own registry")

    def load_build(self) -> None:
        """An object's attributes; all but an `Inert` have none."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert) and isinstance(state, dict):
            target.update(state)

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: cast(Callable[[Any], None], load_build)
    }


@dataclass(frozen=True)
class _Named:
    """A constant of torch's (a type of storage, a dtype), or another of its names."""

    name: str

    def __call__(self, *args: object) -> Inert:
        return Inert()


@dataclass(frozen=True)
class _Builder:
    """A function that a pickle may call."""

    function: Callable[..., object]

    def __call__(self, *args: object) -> object:
        return self.function(*args)


def _tensor(
    storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: object
) -> TensorRecord:
    kind = "" if storage.dtype is not None else "quantized"
    return TensorRecord(storage, offset, tuple(shape), tuple(strides), storage.dtype, kind)


def _tensor_of_dtype(
    storage: _Storage, offset: int, shape: tuple, strides: tuple, _: bool, __: object, dtype: _Named
) -> TensorRecord:
    """A tensor of one of the types that came after torch's storages had types."""
    found = _DTYPES.get(dtype.name)
    kind = "" if found is not None else dtype.name
    return TensorRecord(storage, offset, tuple(shape), tuple(strides), found, kind)


def _sparse(layout: object, data: tuple) -> TensorRecord:
    values = next((item for item in data[1:2] if isinstance(item, TensorRecord)), None)
    dtype = f" {values.dtype}" if values is not None and values.dtype is not None else ""
    return TensorRecord(kind=f"{str(layout).removeprefix('torch.')}{dtype}")


def _foreign(kind: str) -> Callable[..., TensorRecord]:
    return lambda *args: TensorRecord(kind=kind)


# What a pickle may name, and what it gets for it.
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type": lambda build, _, args, __: build(*args),
    "torch._tensor._rebuild_from_type_v2": lambda build, _, args, __: build(*args),
    "torch.serialization._get_layout": lambda name: name,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _foreign("quantized"),
    "torch._utils._rebuild_nested_tensor": _foreign("nested"),
    "torch._utils._rebuild_wrapper_subclass": _foreign("wrapped"),
    "torch._utils._rebuild_meta_tensor_no_storage": _foreign("meta"),
    "torch._utils._rebuild_device_tensor_from_numpy": _foreign("device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _foreign("device"),
    "torch.Size": tuple,
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda *_: {},
}
_BUILDERS = {path: _Builder(function) for path, function in _FUNCTIONS.items()}


def _load_zip(file: BinaryIO, foreign: dict[str, None]) -> object:
    data = memoryview(file.read())
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickled = next(name for name in members if name.endswith("data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        swapped = order is not None and archive.read(order) == b"big"

        def find_storage(key: str, dtype: np.dtype | None, size: int) -> _Storage:
            member = members[f"{folder}data/{key}"]
            if member.compress_type != zipfile.ZIP_STORED:
                content = memoryview(archive.read(member))
            else:
                # In front of the bytes: a header of 30 bytes, the name, and padding.
                lengths = struct.unpack_from("<HH", data, member.header_offset + 26)
                start = member.header_offset + 30 + sum(lengths)
                content = data[start : start + member.file_size]
            if len(content) != member.file_size:
                raise FormatError(_DAMAGED)
            return _Storage(_ordered(dtype, swapped), size, content)

        with archive.open(pickled) as program:
            return _Unpickler(io.BytesIO(program.read()), foreign, find_storage).load()


def _load_legacy(file: BinaryIO, foreign: dict[str, None]) -> object:
    """Five pickles (two numbers, the writer's system, the object, keys), then the storages."""
    data = memoryview(file.read())
    file.seek(0)
    storages: dict[str, _Storage] = {}
    _, _, system = (_Unpickler(file, foreign).load() for _ in range(3))
    swapped = isinstance(system, Mapping) and system.get("little_endian") is False

    def find_storage(
        key: str, dtype: np.dtype | None, size: int, view: tuple | None = None
    ) -> _Storage:
        dtype = _ordered(dtype, swapped)
        root = storages.setdefault(key, _Storage(dtype, size))
        if view is None:
            return root
        _, start, length = view
        return _Storage(dtype, length, base=root, start=start * (dtype.itemsize if dtype else 1))

    content = _Unpickler(file, foreign, find_storage).load()
    keys = _Unpickler(file, foreign).load()
    position = file.tell()
    for key in keys:
        (size,) = struct.unpack_from("<q", data, position)
        storage = storages[key]
        if storage.dtype is None:
            raise FormatError("it holds quantized tensors, whose extent is not known here")
        start, position = position + 8, position + 8 + size * storage.dtype.itemsize
        storage.data = data[start:position]
        if len(storage.data) != position - start:
            raise FormatError(_DAMAGED)
    return content


def _ordered(dtype: np.dtype | None, swapped: bool) -> np.dtype | None:
    return dtype.newbyteorder() if swapped and dtype is not None else dtype


class _Watched(io.RawIOBase):
    """An open file that remembers what the system said when it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def writable(self) -> bool:
        return True


def save(file: BinaryIO, content: Mapping) -> None:
    """Write arrays, also in nested dictionaries, in torch's zip format; same input, same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    torch = _import_torch()
    watched = _Watched(file)

    def as_torch(value: object) -> object:
        if isinstance(value, Mapping):
            return {name: as_torch(inner) for name, inner in value.items()}
        # Copied since torch warns about arrays that it may not write to.
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    try:
        torch.save(as_torch(content), watched)
    except RuntimeError as error:  # torch's words for whatever the system said
        if watched.error is not None:
            raise watched.error from error
        raise


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch files are written by PyTorch: pip install torch, or use a .safetensors file"
        ) from error
    return torch
