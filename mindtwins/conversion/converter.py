"""From a PyTorch state dict to this project's checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import Checkpoint
from mindtwins.conversion.accounting import Account, AccountError, settle
from mindtwins.conversion.layouts import LAYOUTS
from mindtwins.conversion.readers import Source
from mindtwins.conversion.recognise import recognise
from mindtwins.errors import UserError
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import parameter_shapes, resolve_name

FORMAT_VERSION = 1

DEFAULT_CLASSES = 1000
HEAD = ("head.weight", "head.bias")
_STEM = "patch_embeds.0.proj.weight"


@dataclass(frozen=True)
class Conversion:
    """A converted model: what `save_checkpoint` writes, and the account of its tensors."""

    tensors: dict[str, np.ndarray]
    metadata: dict
    account: Account


def from_torch(
    source: Source,
    model: str | None = None,
    num_classes: int | None = None,
    drop_head: bool = False,
) -> Conversion:
    """Convert a state dict of the official or timm classification code.

    Args:
        source: what `read_source` returned.
        model: the variant that it has to be; None recognises it.
        num_classes: width of the head, 0 for none; None takes the source's.
        drop_head: leave the source's head out, and give the new one zeros.

    Raises:
        UserError: something does not add up; the message names it.
    """
    layout = LAYOUTS["official"]
    names, ignored = {}, dict(source.ignored)
    for theirs in source.tensors:
        names[theirs] = layout.to_ours(theirs)
        if names[theirs] is None and (reason := layout.reason_to_ignore(theirs)):
            ignored[theirs] = reason
            del names[theirs]

    classes = _settle_classes(source, num_classes, drop_head)
    if drop_head:
        dropped = [theirs for theirs, ours in names.items() if ours in HEAD]
        ignored |= dict.fromkeys(dropped, "the head was dropped on request")
        names = {theirs: ours for theirs, ours in names.items() if ours not in HEAD}
    fit = _fit_to_variant(source.path, source.tensors, names, model, classes, drop_head)

    fit.account.ignored = ignored
    for name, shape in fit.unfilled.items():
        fit.tensors[name] = np.zeros(shape, np.float32)
        fit.account.filled[name] = "zeros, since the head was dropped on request"
    metadata = {
        "format_version": FORMAT_VERSION,
        "variant": fit.variant,
        "num_classes": classes,
        "in_channels": fit.tensors[_STEM].shape[1],
        "dialect": asdict(Dialect()),
        "source": {"file": source.path.name, "sha256": source.sha256, "layout": layout.name},
        "widened_from": sorted(set(fit.account.widened.values())),
        "filled": fit.account.filled,
    }
    return Conversion(fit.tensors, metadata, fit.account)


def to_torch(checkpoint: Checkpoint, layout: str = "official") -> dict[str, np.ndarray]:
    """The state dict of a checkpoint in another project's names; the values are the same bits.

    Raises:
        UserError: the checkpoint is not a complete Twins classifier.
    """
    tensors = checkpoint.tensors
    theirs = {name: LAYOUTS[layout].to_theirs(name) for name in tensors}
    names = {name: name if theirs[name] else None for name in tensors}
    classes = _count_classes(tensors)
    fit = _fit_to_variant(checkpoint.path, tensors, names, None, classes, without_head=False)
    return {theirs[name]: array for name, array in fit.tensors.items()}


@dataclass(frozen=True)
class _Fit:
    """A source matched with a variant; `unfilled` are the shapes of the head left out."""

    variant: str
    tensors: dict[str, np.ndarray]
    account: Account
    unfilled: dict[str, tuple[int, ...]]


def _fit_to_variant(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str | None],
    model: str | None,
    num_classes: int,
    without_head: bool,
) -> _Fit:
    """Recognise the variant and settle the account with it."""
    seen_shapes = {ours: tensors[theirs].shape for theirs, ours in names.items() if ours}
    if not seen_shapes:
        raise UserError(
            f"{path} is no Twins checkpoint: none of its tensors (the first is"
            f" {next(iter(tensors))}) has a name of these layouts: {', '.join(LAYOUTS)}"
        )
    recognised = recognise(seen_shapes)
    variant = resolve_name(model) if model else recognised.variant
    if recognised.exact and variant != recognised.variant:
        raise UserError(
            f"{path} holds {recognised.variant}, not {variant} ({recognised.seen}):"
            f" leave --model out or pass --model {recognised.variant}"
        )
    stem = seen_shapes.get(_STEM, ())
    shapes = parameter_shapes(variant, num_classes, stem[1] if len(stem) == 4 else 3)
    unfilled = {name: shapes.pop(name) for name in HEAD if without_head and name in shapes}
    try:
        filled, account = settle(tensors, names, shapes)
    except AccountError as error:
        others = "" if recognised.exact else f" or any other model ({recognised.seen})"
        raise UserError(f"{path} does not fit {variant}{others}: it {error}") from error
    return _Fit(variant, filled, account, unfilled)


def _settle_classes(source: Source, wanted: int | None, drop_head: bool) -> int:
    """The number of classes of the converted model; differing from the source's is on request."""
    if wanted is not None and wanted < 0:
        raise UserError(f"--num_classes must be at least 0, not {wanted}")
    if drop_head and wanted is None:
        raise UserError("--drop_head needs --num_classes: the width of the new head, or 0 for none")
    found = _count_classes(source.tensors)
    if wanted is None:
        # Only a request makes a model without head; here the missing head is missing.
        return found or DEFAULT_CLASSES
    if found not in (wanted, 0) and not drop_head:
        raise UserError(
            f"{source.path} has a head of {found} classes, not {wanted}: pass --drop_head to"
            " leave it out"
        )
    return wanted


def _count_classes(tensors: Mapping[str, np.ndarray]) -> int:
    """Width of the head among these tensors, 0 if there is none."""
    return next((len(tensors[name]) for name in HEAD if name in tensors and tensors[name].ndim), 0)
