"""Two-way accounting: every tensor of a source is used or ignored for a reason, every parameter
of the model is filled, and what does not add up is an error that names the tensor."""

from __future__ import annotations

from collections.abc import Mapping
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
        used: source name to parameter name.
        ignored: source name to reason.
        widened: source name to its dtype, for tensors that were not float32.
        filled: parameter name to how it was filled, for those that the source did not fill.
    """

    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)


def settle(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str | None],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], Account]:
    """Match a source's tensors with a model's parameters, one to one.

    Args:
        tensors: source name to array.
        names: source name to parameter name; None for a tensor without a place.
        shapes: parameter name to shape: what has to be filled.

    Returns:
        The model's parameters in its order, float32 and contiguous, and the account.

    Raises:
        AccountError: a missing, extra or misshapen tensor, an unexpected dtype, a value that is
            not finite.
    """
    sources = {ours: theirs for theirs, ours in names.items() if ours is not None}
    problems = list_names("lacks", [name for name in shapes if name not in sources])
    problems += list_names(
        "has no use for", [theirs for theirs, ours in names.items() if ours not in shapes]
    )
    matched = {ours: tensors[sources[ours]] for ours in shapes if ours in sources}
    problems += list_names(
        "has another shape than the model for",
        [
            f"{sources[ours]} {array.shape} instead of {shapes[ours]}"
            for ours, array in matched.items()
            if array.shape != shapes[ours]
        ],
    )
    problems += list_names(
        "has an unexpected dtype for",
        [
            f"{sources[ours]} ({array.dtype}, not float32, float16 or bfloat16)"
            for ours, array in matched.items()
            if array.dtype != np.float32 and array.dtype not in WIDENED
        ],
    )
    if problems:
        raise AccountError("; it ".join(problems))

    filled = {ours: widen(array) for ours, array in matched.items()}
    problems = list_names(
        "has infinite or NaN values in",
        [sources[ours] for ours, array in filled.items() if not is_finite(array)],
    )
    if problems:
        raise AccountError(*problems)
    account = Account(
        used={sources[ours]: ours for ours in shapes},
        widened={
            sources[ours]: WIDENED[array.dtype]
            for ours, array in matched.items()
            if array.dtype in WIDENED
        },
    )
    return filled, account


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
