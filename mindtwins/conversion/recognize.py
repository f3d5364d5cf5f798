"""Which variant a set of parameter shapes belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mindtwins.models.variants import VARIANTS

_STAGES = range(4)
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")

# What tells the variants apart.
_TRAITS = {
    name: {
        "attention": "local and global" if variant.family == "svt" else "global",
        **{f"channels of stage {i}": variant.embed_dims[i] for i in _STAGES},
        **{f"blocks of stage {i}": variant.depths[i] for i in _STAGES},
    }
    for name, variant in VARIANTS.items()
}


@dataclass(frozen=True)
class Recognition:
    """The variant whose traits agree best with those seen.

    Attributes:
        variant: its name.
        exact: whether all traits that were seen agree.
        seen: the traits in words.
    """

    variant: str
    exact: bool
    seen: str


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> Recognition:
    """Recognize a variant by attention, widths and depths; what is not there has no say.

    Args:
        shapes: our parameter names to shapes, complete or not.
    """
    seen = _seen_traits(shapes)
    distances = {name: _distance(seen, traits) for name, traits in _TRAITS.items()}
    variant = min(distances, key=distances.__getitem__)
    words = ", ".join(f"{trait}: {value}" for trait, value in seen.items())
    return Recognition(variant, distances[variant] == (0, 0), words)


def recognize_headed(head: str, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> Recognition:
    """Recognize `head_variant` by the backbone, whose parameters' names begin with the prefix."""
    backbone = recognize(
        {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
    )
    words = f"head: {head}, {backbone.seen}"
    return Recognition(f"{head}_{backbone.variant}", backbone.exact, words)


def _distance(seen: dict[str, str | int], traits: dict[str, str | int]) -> tuple[int, int]:
    """How many traits differ from those seen, and the numbers by how much in all."""
    pairs = [(seen[trait], traits[trait]) for trait in seen if seen[trait] != traits[trait]]
    numbers = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    return len(pairs), sum(abs(a - b) for a, b in numbers)


def _seen_traits(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | int]:
    """The traits that these parameters show."""
    is_local = any(".attn.qkv." in name for name in shapes)
    traits: dict[str, str | int] = {"attention": "local and global" if is_local else "global"}
    for i in _STAGES:
        if shape := shapes.get(f"patch_embeds.{i}.proj.weight"):
            traits[f"channels of stage {i}"] = shape[0]
    blocks = {match.groups() for name in shapes if (match := _BLOCK.match(name))}
    for stage, count in sorted(Counter(int(stage) for stage, _ in blocks).items()):
        if stage in _STAGES:
            traits[f"blocks of stage {stage}"] = count
    return traits
