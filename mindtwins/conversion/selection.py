"""Where in a file a Twins model is: in which state dict, and under which prefix of its names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mindtwins.checkpoint import list_names
from mindtwins.conversion.kinds import Kinds, all_layouts, projects
from mindtwins.conversion.layouts import Layout
from mindtwins.conversion.readers import AVERAGE_PREFIX, Source
from mindtwins.errors import UserError

# Where training scripts keep a state dict beside other things, in the order of preference.
CONTAINERS = ("", "model", "state_dict", "module", "model_state_dict", "model_state", "net")
# Words in the name of a moving average, which comes after the weights themselves.
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)")

# Modules that wrap others where they stand, also within a model. No model has them as its own.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What every layout has, and no other architecture: the start of these names is where a model is.
_ANCHOR = re.compile(r"(?:patch_embeds|pos_block|position_encodings)\.\d+\.proj(?:ection)?\.")

# What stands beside a backbone and makes it another model: parts of names to what it is then.
_NEIGHBORS = (
    (
        "a detector",
        ("rpn_head", "roi_head", "bbox_head", "mask_head", "query_embed", "rpn", "roi_heads"),
    ),
    ("a segmentor of another project", ("decode_head", "auxiliary_head", "sem_seg_head")),
)


@dataclass(frozen=True)
class Selection:
    """A Twins model in a file.

    Attributes:
        layout: whose names it has.
        container: where its state dict lies; "" if that is the file itself.
        prefix: what the names there have before the layout's.
        names: what they are without it, to their full names.
        places: full names to where the tensors lie in `Source.tensors`.
        left_out: the file's other tensors, to the reason.
        notes: what to tell, a sentence each.
    """

    layout: Layout
    container: str
    prefix: str
    names: dict[str, str]
    places: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """A prefix under which names fit a layout.

    Attributes:
        home: where the backbone is: the prefix and what the layout has before the backbone's names.
        names: the layout's names to full names.
        matched: how many the layout has names of ours for.
    """

    layout: Layout
    prefix: str
    home: str
    names: dict[str, str]
    matched: int


def select(
    source: Source, kinds: Kinds, state_dict: str | None = None, prefix: str | None = None
) -> Selection:
    """Find the Twins model.

    Args:
        kinds: the kinds of models that it may be, by task.
        state_dict: the key under which the state dict lies; None finds it.
        prefix: of its names; None finds it.

    Raises:
        UserError: there is none, or there are several that only the user can tell apart.
    """
    if state_dict is None:
        states = source.states
    else:
        states = {key: source.states[key] for key in _keys_of(source, state_dict)}
    fitting = {key: found for key in states if (found := _find_places(kinds, states[key]))}
    if not fitting and (ordered := _by_order(source, kinds, states)) is not None:
        return ordered
    if not fitting:
        raise UserError(_no_model(source, kinds, state_dict))
    container, others = _choose(source, list(fitting))
    place = _choose_prefix(source, fitting[container], container, prefix)
    _check_neighbors(source, states[container], place)

    notes = []
    if others:
        listed = ", ".join(map(_quoted, others))
        notes.append(f"other state dicts of a Twins model: {listed} (--state_dict chooses)")
    if _AVERAGE.search(container):
        notes.append(f"the weights under {container!r} are a moving average")
    within = {wrapper for full in place.names.values() for wrapper in _WRAPPERS.findall(full)}
    if wrappers := sorted(wrapper for wrapper in within if wrapper not in place.prefix):
        notes.append(f"names are read without {', '.join(map(repr, wrappers))} in them")
    if passed_over := list_names("passed over", list(source.foreign)):
        notes.append(f"{passed_over[0]}, which the file asks for: none of its code ran")
    places = {full: states[container][full] for full in place.names.values()}
    left_out = _left_out(source, container, states[container], place, places.values())
    return Selection(
        place.layout, container, place.prefix, place.names, places, left_out, tuple(notes)
    )


def _by_order(
    source: Source, kinds: Kinds, states: Mapping[str, Mapping[str, str]]
) -> Selection | None:
    """The first state dict that a layout knows by the order of its tensors."""
    for layout in all_layouts(kinds):
        for container, places in states.items():
            if layout.by_order is None:
                continue
            shapes = {name: source.array(place).shape for name, place in places.items()}
            if found := layout.by_order(shapes):
                theirs = {name: layout.to_theirs(ours, ()) or ours for name, ours in found.items()}
                return Selection(
                    layout,
                    container,
                    "",
                    {spelled: name for name, spelled in theirs.items()},
                    dict(places),
                    notes=("which tensor is which was told by their order",),
                )
    return None


def _keys_of(source: Source, state_dict: str) -> list[str]:
    """The state dicts that a user's key means: the one that lies there, or whose last key it is."""
    found = [key for key in source.states if key == state_dict]
    found = found or [key for key in source.states if key.endswith(f".{state_dict}")]
    if not found:
        raise UserError(
            f"{source.path} holds no state dict under {state_dict!r}: --state_dict can be one of"
            f" {', '.join(map(_quoted, source.states))}"
        )
    return found


def _choose(source: Source, keys: list[str]) -> tuple[str, list[str]]:
    """The state dict that is used, and the others: weights before averages, known keys first."""
    weights = [key for key in keys if not _AVERAGE.search(key)] or keys
    known = [key for key in CONTAINERS if key in weights]
    if not known and len(weights) > 1:
        raise UserError(
            f"{source.path} holds several state dicts of a Twins model"
            f" ({', '.join(map(_quoted, keys))}): choose one with --state_dict"
        )
    chosen = (known or weights)[0]
    return chosen, [key for key in keys if key != chosen]


def _choose_prefix(
    source: Source, places: list[_Place], container: str, prefix: str | None
) -> _Place:
    if prefix is not None:
        asked = {prefix, f"{prefix}."}
        places = [p for p in places if asked & {p.prefix, p.home, _WRAPPERS.sub("", p.prefix)}]
        if not places:
            raise UserError(
                f"{source.path} holds no Twins model whose names begin with {prefix!r}: leave"
                " --prefix out to have it found"
            )
    if len(places) > 1:
        raise UserError(
            f"{source.path} holds several Twins models{_under(container)}, under the prefixes"
            f" {', '.join(repr(place.home) for place in places)}: choose one with --prefix"
        )
    return places[0]


def _find_places(kinds: Kinds, names: Iterable[str]) -> list[_Place]:
    """Every place where a backbone is, each with the layout that has most names for it."""
    plain = {_WRAPPERS.sub("", name): name for name in names}
    if len(plain) < len(list(names)):  # a model and its wrapper side by side
        plain = {name: name for name in names}
    homes = dict.fromkeys(name[: match.start()] for name in plain if (match := _anchor(name)))
    places = (_best_layout(kinds, plain, home) for home in homes)
    return [place for place in places if place is not None]


def _anchor(name: str) -> re.Match | None:
    return _ANCHOR.search(name) if name.endswith((".weight", ".bias")) else None


def _best_layout(kinds: Kinds, plain: Mapping[str, str], home: str) -> _Place | None:
    """The layout that has most names of what is around a backbone; None without its blocks."""
    best = None
    for layout in all_layouts(kinds):
        kind = kinds[layout.task]
        stem = layout.to_theirs(kind.stem, ()) or ""
        inner = stem[: stem.index("patch_embeds")]
        if not home.endswith(inner) or (inner and not f".{home}".endswith(f".{inner}")):
            continue
        prefix = home.removesuffix(inner)
        names = {name[len(prefix) :]: name for name in plain if name.startswith(prefix)}
        ours = [part for name in names for part in layout.to_ours(name)]
        if not any("blocks." in name for name in ours):
            continue
        if best is None or len(ours) > best.matched:
            full = {short: plain[name] for short, name in names.items()}
            best = _Place(layout, _spelled(prefix, full), home, full, len(ours))
    return best


def _spelled(prefix: str, names: Mapping[str, str]) -> str:
    """The prefix with the wrappers in it, where all names have the same."""
    whole = {full.removesuffix(short) for short, full in names.items() if full.endswith(short)}
    return whole.pop() if len(whole) == 1 else prefix


def _check_neighbors(source: Source, names: Iterable[str], place: _Place) -> None:
    """Raise a UserError if what stands beside the backbone makes it another model."""
    known: set[str] = set()
    foreign: set[str] = set()
    for name in names:
        if not name.startswith(place.home):
            (known if _has_name(place, name) else foreign).update(name.split("."))
    for what, parts in _NEIGHBORS:
        if found := [part for part in parts if part in foreign - known]:
            raise UserError(
                f"{source.path} holds {what} over a Twins backbone ({', '.join(found)}), which is"
                " not supported yet"
            )


def _has_name(place: _Place, full: str) -> bool:
    plain = _WRAPPERS.sub("", full)
    prefix = _WRAPPERS.sub("", place.prefix)
    short = plain.removeprefix(prefix)
    layout = place.layout
    return bool(layout.to_ours(short) or layout.reason_to_ignore(short))


def _left_out(
    source: Source,
    container: str,
    names: Mapping[str, str],
    place: _Place,
    used: Iterable[str],
) -> dict[str, str]:
    """Every tensor of the file outside the model, to the reason."""
    average = f"{container}.{AVERAGE_PREFIX}" if container else AVERAGE_PREFIX
    averaged = {*source.states.get(average, {}).values()}
    inside = {lies: name for name, lies in names.items()}

    def reason(lies: str) -> str:
        if lies in inside:
            return f"not under {place.prefix!r}, where the Twins model is"
        if lies in averaged:
            return f"of {average!r}, a moving average"
        return f"not in {container!r}, whose weights are used"

    rest = source.tensors.keys() - set(used)
    return {inside.get(lies, lies): reason(lies) for lies in source.tensors if lies in rest}


def _no_model(source: Source, kinds: Kinds, state_dict: str | None) -> str:
    keys = source.states if state_dict is None else _keys_of(source, state_dict)
    names = max((source.states[key] for key in keys), key=len)
    return (
        f"{source.path} is no Twins checkpoint: none of its tensors (the first is"
        f" {next(iter(names))}) has a name of these layouts: {', '.join(projects(kinds))}"
    )


def _under(container: str) -> str:
    return f" under {container!r}" if container else ""


def _quoted(key: str) -> str:
    return repr(key) if key else "'' (the file itself)"
