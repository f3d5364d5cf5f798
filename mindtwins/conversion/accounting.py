"""Two-way accounting: every tensor of a source is used or ignored for a reason, every parameter
of the model is filled, and what does not add up is an error that names the tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindtwins.checkpoint import list_names
from mindtwins.tensor_files import BFLOAT16

# What is widened to float32, which holds every one of their values exactly.
WIDENED = {np.dtype(np.float16): "float16", BFLOAT16: "bfloat16"}


class AccountError(Exception):
    """What does not add up, as the end of a sentence that starts with "it"."""


@dataclass
class Account:
    """Where every tensor went.

    Attributes:
        used: source name to the names of the parameters that it fills.
        ignored: source name to reason.
        widened: source name to its dtype, for tensors that were not float32.
        filled: parameter name to how it was filled, for those that the source did not fill.
    """

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)


def match_parameters(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    spell: Callable[[str], str] = str,
) -> tuple[dict[str, np.ndarray], Account]:
    """Match a source's tensors with a model's parameters.

    Args:
        tensors: source name to array.
        names: source name to the names of the parameters that its rows fill, one after the other;
            none for a tensor without a place.
        shapes: parameter name to shape: what has to be filled.
        spell: a parameter's name -> what the source would call it, for the error.

    Returns:
        The model's parameters in its order, float32 and contiguous, and the account.

    Raises:
        AccountError: a missing, extra or misshapen tensor, an unexpected dtype, a value that is
            not finite.
    """
    sources = {ours: theirs for theirs, parts in names.items() for ours in parts}
    missing = [spell(name) for name in shapes if name not in sources]
    problems = list_names("lacks", list(dict.fromkeys(missing)))
    problems += list_names(
        "has no use for",
        [theirs for theirs, parts in names.items() if not parts or not shapes.keys() >= {*parts}],
    )
    used = {sources[ours]: names[sources[ours]] for ours in shapes if ours in sources}
    used = {theirs: parts for theirs, parts in used.items() if shapes.keys() >= {*parts}}
    stacked = {theirs: _stacked([shapes[ours] for ours in parts]) for theirs, parts in used.items()}
    problems += list_names(
        "has another shape than the model for",
        [
            f"{theirs} {tensors[theirs].shape} instead of {shape}"
            for theirs, shape in stacked.items()
            if tensors[theirs].shape != shape
        ],
    )
    problems += list_names(
        "has an unexpected dtype for",
        [
            f"{theirs} ({tensors[theirs].dtype}, not float32, float16 or bfloat16)"
            for theirs in used
            if tensors[theirs].dtype != np.float32 and tensors[theirs].dtype not in WIDENED
        ],
    )
    if problems:
        raise AccountError("; it ".join(problems))

    widened = {theirs: widen(tensors[theirs]) for theirs in used}
    problems = list_names(
        "has infinite or NaN values in",
        [theirs for theirs, array in widened.items() if not is_finite(array)],
    )
    if problems:
        raise AccountError(*problems)
    filled: dict[str, np.ndarray] = {}
    for theirs, parts in used.items():
        ends = np.cumsum([shapes[ours][0] for ours in parts])
        filled |= zip(parts, np.split(widened[theirs], ends[:-1]), strict=True)
    account = Account(
        used=used,
        widened={
            theirs: WIDENED[tensors[theirs].dtype]
            for theirs in used
            if tensors[theirs].dtype in WIDENED
        },
    )
    return {ours: filled[ours] for ours in shapes}, account


def _stacked(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of arrays put one after the other along the first axis."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def widen(array: np.ndarray) -> np.ndarray:
    """A float32, float16 or bfloat16 array as contiguous float32, values unchanged."""
    if array.dtype == BFLOAT16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def is_finite(array: np.ndarray) -> bool:
    """Whether a contiguous float32 array has no infinity and no NaN."""
    flat = array.reshape(-1)
    # One such value makes the sum of squares non-finite, and that is ten times faster to take. It
    # can also overflow, so only a finite sum settles the question.
    return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())
