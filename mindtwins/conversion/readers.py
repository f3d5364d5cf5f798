"""A PyTorch checkpoint, whatever it is wrapped in, as named arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindtwins.conversion import torch_files
from mindtwins.errors import UserError
from mindtwins.files import check_readable
from mindtwins.tensor_files import FormatError, read_safetensors

# Where training scripts keep a state dict beside other things, in the order of preference: the
# weights themselves before their moving average.
CONTAINERS = ("model", "state_dict", "model_ema", "ema")

# The prefix that torch's (Distributed)DataParallel puts before every name.
PARALLEL_PREFIX = "module."

_CHUNK = 1 << 22  # bytes hashed at a time


@dataclass(frozen=True)
class Source:
    """What a checkpoint file holds.

    Attributes:
        path: where it was read from.
        sha256: of the file's bytes.
        tensors: the state dict: name without `module.` to array.
        ignored: tensors outside of the state dict: where they lie to the reason.
        container: the key under which the state dict was found; None if it lay bare.
        prefix: what was taken off every name.
    """

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray]
    ignored: dict[str, str] = field(default_factory=dict)
    container: str | None = None
    prefix: str = ""


def read_source(path: str | Path) -> Source:
    """Read a torch file (zip or legacy format) or a .safetensors file, running none of its code.

    Raises:
        UserError: missing, a directory, empty, damaged, another format, or not a state dict.
    """
    path = Path(path)
    check_readable(path)
    try:
        with ThreadPoolExecutor(1) as executor:
            digest = executor.submit(_sha256, path)
            container, state, ignored = _unwrap(_load(path))
            tensors = {name: _as_array(name, value) for name, value in state.items()}
            sha256 = digest.result()
    except FormatError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path}: its lists hold one another without end") from error
    prefix = PARALLEL_PREFIX if all(name.startswith(PARALLEL_PREFIX) for name in tensors) else ""
    tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return Source(path, sha256, tensors, ignored, container, prefix)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
        return tensors
    with path.open("rb") as file:
        return torch_files.load(file)


def _unwrap(content: object) -> tuple[str | None, dict[str, object], dict[str, str]]:
    """The container's name, the state dict in it, and why each tensor beside it is ignored."""
    _require_mapping(content, "it")
    found = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    container = found[0] if found else None
    state = content[container] if found else content
    _require_mapping(state, repr(container))
    for name, value in state.items():
        if not _is_array(value):
            raise FormatError(
                f"its {name} is of type {type(value).__name__}, not a tensor; a state dict is"
                f" looked for bare and under {', '.join(CONTAINERS)}"
            )
    if not state:
        raise FormatError("it holds no tensors")
    ignored = {
        path: f"not in {container!r}, whose weights are used"
        for name, value in content.items()
        if found and name != container
        for path in _tensors_under(name, value)
    }
    return container, state, ignored


def _require_mapping(value: object, what: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise FormatError(f"{what} holds no state dict (names to tensors)")


def _tensors_under(path: str, value: object) -> Iterator[str]:
    """Dotted paths of all tensors in nested dictionaries and lists."""
    if _is_array(value):
        yield path
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tensors_under(f"{path}.{name}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors_under(f"{path}.{index}", inner)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or torch_files.is_tensor(value)


def _as_array(name: str, value: object) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else torch_files.as_array(name, value)
