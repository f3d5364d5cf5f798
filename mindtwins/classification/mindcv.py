"""MindCV's port of Twins to MindSpore, whose files are told by the order of their parameters.

What a parameter is called in them depends on how MindSpore named the cells of a list, so stage 0 is
"0.", as the list itself is, and "0.2." begins names of two stages. The order and the shapes are
those of the port's code (mindcv/models/pcpvt.py and svt.py), whichever version ran it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mindtwins.models.variants import VARIANTS, parameter_shapes

# What parameters are called here, in the order in which the port creates them: within a stage,
# block or layer the first comes first. The families differ within a block.
_BEFORE_BLOCKS = ("patch_embeds", "qkv", "q", "kv", "proj", "sr", "norm", "head", "pos_block")
_BLOCK = {
    "svt": ("norm1", "norm2", "mlp", "attn"),
    "pcpvt": ("norm1", "attn", "norm2", "mlp"),
}
_LEAVES = ("fc1", "fc2", "weight", "bias", "gamma", "beta")
_HEAD = 18  # how many parameters come before it: of the patch embeddings and the final norm
# Words of a name that say which parameter it is, wherever they stand.
_TELLING = {"qkv", "q", "kv", "sr", "norm1", "norm2", "fc1", "fc2", "head", *_LEAVES}


def our_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The names in a file of MindCV's to ours.

    Args:
        shapes: the file's parameters in its order.

    Returns:
        None of them if shapes or names are not those of a Twins model in the port's order.
    """
    found = list(shapes.values())
    widths = tuple(shape[0] for shape in found[:16:4] if shape)
    for variant, dimensions in VARIANTS.items():
        if widths != dimensions.embed_dims or len(found[0]) != 4:
            continue
        has_head = len(found) > _HEAD and len(found[_HEAD]) == 2
        expected = parameter_shapes(variant, found[_HEAD][0] if has_head else 0, found[0][1])
        names = sorted(expected, key=lambda name: _place(name, dimensions.family))
        if found == [expected[name] for name in names] and all(map(_agree, shapes, names)):
            return dict(zip(shapes, names, strict=True))
    return {}


def _place(name: str, family: str) -> list[int]:
    """Where a parameter of ours stands in the port's order."""
    order = (*_BEFORE_BLOCKS, "blocks", *_BLOCK[family], *_LEAVES)
    return [int(part) if part.isdigit() else order.index(part) for part in name.split(".")]


def _agree(theirs: str, ours: str) -> bool:
    """Whether a name there says nothing that the one here does not: shapes alone could mislead."""
    return _TELLING.intersection(re.split(r"\W+", theirs)) <= set(ours.split("."))
