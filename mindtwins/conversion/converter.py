"""From a PyTorch state dict to this project's checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import FORMAT_VERSION, Checkpoint
from mindtwins.conversion.accounting import Account, AccountError, match_parameters
from mindtwins.conversion.kinds import (
    Kinds,
    ModelKind,
    find_layout,
    projects,
    recognize_layout,
    task_of,
)
from mindtwins.conversion.layouts import Layout
from mindtwins.conversion.readers import Source
from mindtwins.errors import UserError


@dataclass(frozen=True)
class Conversion:
    """A converted model: what `save_checkpoint` writes, and the account of its tensors."""

    tensors: dict[str, np.ndarray]
    metadata: dict
    account: Account


def from_torch(
    source: Source,
    kinds: Kinds,
    model: str | None = None,
    num_classes: int | None = None,
    drop_head: bool = False,
) -> Conversion:
    """Convert a state dict, whosever names it has.

    Args:
        source: what `read_source` returned.
        kinds: the kinds of models that it may hold, by task.
        model: the variant that it has to be; None recognizes it.
        num_classes: width of the head, 0 for none; None takes the source's.
        drop_head: leave the source's head out, and give the new one zeros.

    Raises:
        UserError: something does not add up; the message names it.
    """
    layout = recognize_layout(kinds, source.tensors)
    kind = kinds[layout.task]
    names, ignored = {}, dict(source.ignored)
    for theirs in source.tensors:
        names[theirs] = layout.to_ours(theirs)
        if not names[theirs] and (reason := layout.reason_to_ignore(theirs)):
            ignored[theirs] = reason
            del names[theirs]

    if not any(names.values()):
        raise UserError(
            f"{source.path} is no Twins checkpoint: none of its tensors (the first is"
            f" {next(iter(names), None)}) has a name of these layouts: {', '.join(projects(kinds))}"
        )
    classes = _resolve_num_classes(source, kind, layout, names, num_classes, drop_head)
    if drop_head:
        dropped = [theirs for theirs, parts in names.items() if set(parts) & set(kind.head)]
        ignored |= dict.fromkeys(dropped, "the head was dropped on request")
        names = {theirs: parts for theirs, parts in names.items() if theirs not in dropped}
    fit = _fit(kind, source.path, source.tensors, names, model, classes, drop_head)

    fit.account.ignored = ignored
    for name, shape in fit.unfilled.items():
        fit.tensors[name] = np.zeros(shape, np.float32)
        fit.account.filled[name] = "zeros, since the head was dropped on request"
    metadata = {
        "format_version": FORMAT_VERSION,
        "task": layout.task,
        "variant": fit.variant,
        **fit.architecture,
        **kind.use(fit.architecture),
        "dialect": asdict(layout.dialect),
        "source": {"file": source.path.name, "sha256": source.sha256, "layout": layout.project},
        "widened_from": sorted(set(fit.account.widened.values())),
        "filled": fit.account.filled,
    }
    return Conversion(fit.tensors, metadata, fit.account)


def to_torch(checkpoint: Checkpoint, kinds: Kinds, layout: Layout) -> dict[str, np.ndarray]:
    """The state dict of a checkpoint in another project's names; the values are the same bits.

    Raises:
        UserError: the checkpoint is not a complete Twins model that the layout has names for.
    """
    kind = kinds[layout.task]
    names = {name: (name,) for name in checkpoint.tensors}
    classes = _count_classes(kind, checkpoint.tensors, names)
    fit = _fit(kind, checkpoint.path, checkpoint.tensors, names, None, classes, without_head=False)
    theirs = {name: layout.to_theirs(name, fit.tensors) for name in fit.tensors}
    if nameless := [name for name in theirs if theirs[name] is None]:
        raise UserError(
            f"{checkpoint.path} holds what {layout.project} has no name for: {', '.join(nameless)}"
        )
    return {
        name: np.concatenate([fit.tensors[part] for part in layout.to_ours(name)])
        for name in dict.fromkeys(theirs.values())
    }


def choose_layout(checkpoint: Checkpoint, kinds: Kinds, project: str | None) -> Layout:
    """The names that a project has for a checkpoint's model; None means those it came with.

    Raises:
        UserError: the project has no names for such models.
    """
    task = task_of(kinds, checkpoint)
    recorded = (checkpoint.metadata or {}).get("source", {}).get("layout")
    return find_layout(kinds, project or recorded or kinds[task].layouts[0].project, task)


@dataclass(frozen=True)
class _Fit:
    """A source matched with a model; `unfilled` are the shapes of the head left out."""

    variant: str
    architecture: dict
    tensors: dict[str, np.ndarray]
    account: Account
    unfilled: dict[str, tuple[int, ...]]


def _fit(
    kind: ModelKind,
    path: Path,
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, tuple[str, ...]],
    model: str | None,
    num_classes: int,
    without_head: bool,
) -> _Fit:
    """Recognize the variant, and match its parameters."""
    # Of parameters that share a tensor only the names are known; no shape that is asked for here
    # is one of theirs.
    seen = {ours: tensors[theirs].shape for theirs, parts in names.items() for ours in parts}
    recognized = kind.recognize(seen)
    variant = kind.resolve(model) if model else recognized.variant
    if recognized.exact and variant != recognized.variant:
        raise UserError(
            f"{path} holds {recognized.variant}, not {variant} ({recognized.seen}):"
            f" leave --model out or pass --model {recognized.variant}"
        )
    stem = seen.get(kind.stem, ())
    in_channels = stem[1] if len(stem) == 4 else 3
    shapes = dict(kind.shapes(variant, num_classes, in_channels, seen))
    unfilled = {name: shapes.pop(name) for name in kind.head if without_head and name in shapes}
    try:
        filled, account = match_parameters(tensors, names, shapes)
    except AccountError as error:
        others = "" if recognized.exact else f" or any other model ({recognized.seen})"
        raise UserError(f"{path} does not fit {variant}{others}: it {error}") from error
    architecture = kind.architecture(variant, num_classes, in_channels, seen)
    return _Fit(variant, architecture, filled, account, unfilled)


def _resolve_num_classes(
    source: Source,
    kind: ModelKind,
    layout: Layout,
    names: Mapping[str, tuple[str, ...]],
    wanted: int | None,
    drop_head: bool,
) -> int:
    """The number of classes of the converted model; differing from the source's is on request."""
    if wanted is not None and wanted < kind.fewest_classes:
        raise UserError(f"--num_classes must be at least {kind.fewest_classes}, not {wanted}")
    if drop_head and wanted is None:
        none = ", or 0 for none" if kind.fewest_classes == 0 else ""
        raise UserError(f"--drop_head needs --num_classes: the width of the new head{none}")
    found = _count_classes(kind, source.tensors, names)
    if wanted is None:
        # Only a request makes a model without head, or a layout that has none; elsewhere a missing
        # head is missing.
        has_head = any(layout.to_theirs(name, ()) for name in kind.head)
        return found or (kind.default_classes if has_head else 0)
    if found not in (wanted, 0) and not drop_head:
        raise UserError(
            f"{source.path} has a head of {found} classes, not {wanted}: pass --drop_head to"
            " leave it out"
        )
    return wanted


def _count_classes(
    kind: ModelKind, tensors: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]]
) -> int:
    """Width of the head among these tensors, 0 if there is none."""
    widths = (
        len(tensors[theirs])
        for part in kind.head
        for theirs, parts in names.items()
        if part in parts and tensors[theirs].ndim
    )
    return next(widths, 0)
