"""From a PyTorch state dict to this project's checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import FORMAT_VERSION, TRAINING_STATE, Checkpoint
from mindtwins.config.options import show
from mindtwins.conversion.accounting import Account, AccountError, match_parameters
from mindtwins.conversion.kinds import Kinds, ModelKind, find_layout, task_of
from mindtwins.conversion.layouts import Layout
from mindtwins.conversion.openmmlab import read_test_recipe
from mindtwins.conversion.readers import Source
from mindtwins.conversion.selection import Selection, select
from mindtwins.errors import UserError
from mindtwins.models.twins import Dialect

# To be raised when the same source gives other tensors or other metadata: conversions are kept by
# it.
CONVERTER_VERSION = 2


@dataclass(frozen=True)
class Conversion:
    """A converted model: what `save_checkpoint` writes, and the account of its tensors.

    Attributes:
        selection: where in the file it was; the account has the file's full names.
        assumptions: what was chosen or taken for granted, a sentence each.
        taken_classes: the same of the classes' names; empty where the source has them.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict
    account: Account
    selection: Selection
    assumptions: tuple[str, ...]
    taken_classes: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """All that is to be told, a sentence each."""
        last = (self.taken_classes,) if self.taken_classes else ()
        return (*self.assumptions, _takes(self.metadata), *last)


def from_torch(
    source: Source,
    kinds: Kinds,
    model: str | None = None,
    num_classes: int | None = None,
    drop_head: bool = False,
    state_dict: str | None = None,
    prefix: str | None = None,
) -> Conversion:
    """Convert a state dict, whosever names it has.

    Args:
        source: what `read_source` returned.
        kinds: the kinds of models that it may hold, by task.
        model: the variant that it has to be; None recognizes it.
        num_classes: width of the head, 0 for none; None takes the source's.
        drop_head: leave the source's head out, and give the new one zeros.
        state_dict: the key of the state dict in the file; None finds it.
        prefix: of the names in it; None finds it.

    Raises:
        UserError: something does not add up; the message names it.
    """
    selection = select(source, kinds, state_dict, prefix)
    layout = selection.layout
    kind = kinds[layout.task]
    names, ignored = {}, dict(selection.left_out)
    for theirs, full in selection.names.items():
        names[full] = layout.to_ours(theirs)
        if not names[full] and (reason := layout.reason_to_ignore(theirs)):
            ignored[full] = reason
            del names[full]
    tensors = {full: source.array(selection.places[full]) for full in names if names[full]}

    classes = _resolve_num_classes(source.path, kind, tensors, names, num_classes, drop_head)
    if drop_head:
        dropped = [theirs for theirs, parts in names.items() if set(parts) & set(kind.head)]
        ignored |= dict.fromkeys(dropped, "the head was dropped on request")
        names = {theirs: parts for theirs, parts in names.items() if theirs not in dropped}

    fit = _fit(kind, source.path, tensors, names, model, classes, drop_head, selection)

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
        "dialect": _stated(layout.dialect_of(fit.variant)),
        "source": {"file": source.path.name, "sha256": source.sha256, "layout": layout.project},
        "widened_from": sorted(set(fit.account.widened.values())),
        "filled": fit.account.filled,
    }
    taken_classes = ""
    if drop_head:
        metadata["classes"] = None  # a new head knows none
    elif source.classes and len(source.classes) == classes:
        metadata["classes"] = list(source.classes)
    elif metadata["classes"]:
        taken_classes = (
            f"{source.path.name} does not name its {classes} classes: by their number they are"
            f" taken for {kind.published_on}'s (--class_names gives mindtwins infer others)"
        )
    assumptions = [*selection.notes, *layout.remarks]
    if source.recipe:
        stated, unlike = kind.as_tested(read_test_recipe(source.recipe))
        metadata["preprocessing"] |= stated
        if stated:
            listing = ", ".join(f"{name} {show(value)}" for name, value in stated.items())
            assumptions.append(f"tested as the file's own recipe says: {listing}")
        assumptions += [f"not done here, though the file's recipe says so: {it}" for it in unlike]
    return Conversion(
        fit.tensors, metadata, fit.account, selection, tuple(assumptions), taken_classes
    )


def _stated(dialect: Dialect) -> dict:
    return {field: value for field, value in asdict(dialect).items() if value is not None}


def _takes(architecture: Mapping) -> str:
    """What the model is for, in a sentence."""
    channels, classes = architecture["in_channels"], architecture["num_classes"]
    images = {1: "pictures of 1 channel (gray)", 3: "RGB pictures"}.get(
        channels, f"pictures of {channels} channels"
    )
    gives = f"gives {classes} classes" if classes else "has no head: it gives pooled features"
    return f"the model takes {images} and {gives}"


@dataclass(frozen=True)
class Export:
    """A model under another project's names.

    Attributes:
        layout: whose names.
        tensors: the state dict, counters of batch norms among it.
        meta: what that project keeps beside it; empty if its files are a bare state dict.
        left_out: our names of what the target has no place for, to the reason.
        notes: what to tell, a sentence each.
    """

    layout: Layout
    tensors: dict[str, np.ndarray]
    meta: dict
    left_out: dict[str, str]
    notes: tuple[str, ...]

    @property
    def content(self) -> dict:
        """What torch.save is given: the state dict where the project's code looks for it."""
        if not self.layout.container:
            return self.tensors
        return {self.layout.container: self.tensors} | ({"meta": self.meta} if self.meta else {})


def to_torch(checkpoint: Checkpoint, kinds: Kinds, layout: Layout) -> Export:
    """A checkpoint in another project's names; the values are the same bits.

    Raises:
        UserError: the checkpoint is not a complete Twins model that the layout has names for.
    """
    kind = kinds[layout.task]
    state = [name for name in checkpoint.tensors if name.startswith(TRAINING_STATE)]
    left_out = dict.fromkeys(state, "the state of a training, not weights")
    tensors = {name: a for name, a in checkpoint.tensors.items() if name not in left_out}
    names = {name: (name,) for name in tensors}
    classes = _count_classes(kind, tensors, names)
    fit = _fit(kind, checkpoint.path, tensors, names, None, classes, without_head=False)
    came_with = _recorded_layout(checkpoint) == layout.project
    theirs: dict[str, str | None] = {}
    for name in fit.tensors:
        theirs[name] = layout.to_theirs(name, fit.tensors)
        reasons = [why for start, why in layout.optional if name.startswith(start)]
        if reasons and not (came_with and theirs[name]):
            left_out[name] = reasons[0]
            del theirs[name]
    if nameless := [name for name in theirs if theirs[name] is None]:
        raise UserError(
            f"{checkpoint.path} holds what {layout.project} has no name for: {', '.join(nameless)}"
        )
    found = {}
    for name in dict.fromkeys(name for name in theirs.values() if name is not None):
        found[name] = np.concatenate([fit.tensors[part] for part in layout.to_ours(name)])
        if name.endswith(".running_var"):
            # How many steps they average is not kept: torch's default average does not ask.
            found[f"{name.removesuffix('running_var')}num_batches_tracked"] = np.zeros((), np.int64)
    meta: dict = {}
    notes: list[str] = []
    if layout.container == "state_dict":
        meta, notes = _meta(kind, checkpoint, classes)
    return Export(layout, found, meta, left_out, tuple(notes))


def _meta(kind: ModelKind, checkpoint: Checkpoint, classes: int) -> tuple[dict, list[str]]:
    """What OpenMMLab's projects keep beside a state dict, as in their versions 0.x and 1.x."""
    names = checkpoint.stated.get("classes")
    notes = []
    if not names:
        names = [f"class {number}" for number in range(classes)]
        if classes:
            notes.append("the checkpoint has no class names: wrote 'class 0' and so on")
    names = tuple(names)
    meta: dict[str, object] = {"CLASSES": names}
    described: dict[str, object] = {"classes": names}
    if palette := kind.palette(classes):
        meta["PALETTE"] = described["palette"] = palette
    return {**meta, "dataset_meta": described}, notes


def choose_layout(checkpoint: Checkpoint, kinds: Kinds, project: str | None) -> Layout:
    """The names that a project has for a checkpoint's model; None means those it came with.

    Weights that came without names of their own get those of a checkpoint without a history.

    Raises:
        UserError: the project has no names for such models.
    """
    task = task_of(kinds, checkpoint)
    recorded = _recorded_layout(checkpoint)
    usual = kinds[task].layouts[0]
    layout = find_layout(kinds, project or recorded or usual.project, task)
    return layout if layout.by_order is None else usual


def _recorded_layout(checkpoint: Checkpoint) -> str | None:
    """Whose names the weights of a checkpoint came with."""
    return checkpoint.stated.get("source", {}).get("layout")


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
    selection: Selection | None = None,
) -> _Fit:
    """Recognize the variant, and match its parameters, which a selection says how to spell."""
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

    def spell(name: str) -> str:
        if selection is None:
            return name
        theirs = selection.layout.to_theirs(name, shapes)
        return f"{selection.prefix}{theirs}" if theirs else name

    try:
        filled, account = match_parameters(tensors, names, shapes, spell)
    except AccountError as error:
        others = "" if recognized.exact else f" or any other model ({recognized.seen})"
        raise UserError(f"{path} does not fit {variant}{others}: it {error}") from error
    architecture = kind.architecture(variant, num_classes, in_channels, seen)
    return _Fit(variant, architecture, filled, account, unfilled)


def _resolve_num_classes(
    path: Path,
    kind: ModelKind,
    tensors: Mapping[str, np.ndarray],
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
    found = _count_classes(kind, tensors, names)
    if wanted is None:
        # A kind that cannot do without a head lacks it then.
        return found or (kind.default_classes if kind.fewest_classes else 0)
    if found not in (wanted, 0) and not drop_head:
        raise UserError(
            f"{path} has a head of {found} classes, not {wanted}: pass --drop_head to leave it out"
        )
    return wanted


def _count_classes(
    kind: ModelKind, tensors: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]]
) -> int:
    """The classes of the head among these tensors, 0 if there is none."""
    return kind.count_classes(
        {part: tensors[theirs].shape for theirs, parts in names.items() for part in parts}
    )
