"""Files of torch.save, read without running code from them, and written.

Outside of `mindtwins.reference` and the verification, this is the only place that needs torch.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import BinaryIO

import numpy as np

from mindtwins.errors import UserError
from mindtwins.tensor_files import BFLOAT16, FormatError

# CVE-2025-32434 was closed in this version.
OLDEST_SAFE_TORCH = "2.6"

# What training frameworks keep beside the weights: NumPy scalars and arrays in MMSegmentation's
# `meta`, the log of MMEngine (`message_hub`), whose buffers also hold functions. None of it is
# wanted, so these names stand for an `_Inert` when a file is read.
_BESIDE_THE_WEIGHTS = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
)

_OFFENDING_NAME = re.compile(r"(?:GLOBAL|class) ([\w.]+)")


def load(file: BinaryIO) -> object:
    """What torch.save put into a file: tensors in dictionaries and lists, on the CPU.

    Reads the zip format and the one before torch 1.6. Only tensors and plain Python values are
    accepted, so no code of the file's runs. The one class allowed besides is argparse.Namespace, a
    bag of attributes in which training scripts keep their arguments; a few others that frameworks
    write are known and left out.

    Raises:
        FormatError: damaged, another format, or objects that would need code to run.
    """
    torch = _import_torch()
    try:
        allowed = [argparse.Namespace, *map(_stand_in, _BESIDE_THE_WEIGHTS)]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are read all the same
            return torch.load(file, map_location="cpu", weights_only=True)
    # A damaged file surfaces as whatever the reader meets first: RuntimeError, EOFError, KeyError,
    # UnicodeDecodeError, UnpicklingError ... all of them mean the same here.
    except Exception as error:
        offending = _OFFENDING_NAME.search(str(error))
        if isinstance(error, pickle.UnpicklingError) and offending:
            raise FormatError(
                f"it holds more than tensors and plain values ({offending[1]}), and loading that"
                " could run code; save only the model's state_dict()"
            ) from error
        raise FormatError("it is no PyTorch checkpoint, was cut short, or is damaged") from error


class _Inert:
    """Takes whatever a file wants to make of it, and does nothing with it."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(path: str) -> type[_Inert]:
    """A class that torch takes for the one called `path`, since it goes by the name."""
    module, name = path.rsplit(".", 1)
    return type(name, (_Inert,), {"__module__": module})


def is_tensor(value: object) -> bool:
    """Whether a value that `load` returned is a tensor."""
    return isinstance(value, _import_torch().Tensor)


def as_array(name: str, tensor: object) -> np.ndarray:
    """A tensor's memory as an array; bfloat16 as `mindtwins.tensor_files.BFLOAT16`.

    Raises:
        FormatError: a sparse, quantized or otherwise foreign tensor.
    """
    torch = _import_torch()
    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(BFLOAT16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise FormatError(f"{name} is a {kind} tensor, not a plain float32 one") from error


def save(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict in torch's zip format; the same tensors give the same bytes."""
    torch = _import_torch()
    # Copied since torch warns about arrays that it may not write to.
    torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, file)


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch files need PyTorch: pip install torch, or use a .safetensors file"
        ) from error
    if torch.__version__ < OLDEST_SAFE_TORCH:
        raise UserError(
            f"PyTorch files need PyTorch {OLDEST_SAFE_TORCH} or newer, not {torch.__version__}:"
            " until then a file could run code in spite of weights_only=True"
        )
    return torch
