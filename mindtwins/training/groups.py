"""Which parameter is trained how: weight decay, learning-rate factor, frozen or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspore import Parameter, nn

# What the names in `no_decay` mean.
EXEMPT: dict[str, Callable[[Parameter], bool]] = {
    "1d": lambda parameter: parameter.ndim <= 1,
    # As MMSegmentation's recipes do, by the word: their heads' batch norms are called bn.
    "norm": lambda parameter: (
        parameter.name.endswith((".gamma", ".beta")) and ".bn." not in parameter.name
    ),
    "pos_block": lambda parameter: "pos_block." in parameter.name,
}


@dataclass(frozen=True)
class Group:
    """How one parameter is trained."""

    parameter: Parameter
    weight_decay: float
    lr_factor: float


def parameter_groups(
    model: nn.Cell,
    weight_decay: float,
    no_decay: Sequence[str] = ("1d", "pos_block"),
    layer_decay: float = 1.0,
    freeze_backbone: bool = False,
) -> list[Group]:
    """The parameters to train, in the model's order.

    Args:
        weight_decay: of all parameters but those that `no_decay` exempts.
        no_decay: keys of `EXEMPT`: "1d" biases, norms and other vectors, "norm" weights and biases
            of layer norms, "pos_block" the position encodings. The default is what timm's optimizer
            factory does.
        layer_decay: factor of the learning rate from each block to the one before it; the heads
            have factor 1.
        freeze_backbone: train the heads only.
    """
    parameters = model.trainable_params()
    depths = _depths(parameters)
    last = max(depths.values())
    return [
        Group(
            parameter,
            0.0 if any(EXEMPT[kind](parameter) for kind in no_decay) else weight_decay,
            layer_decay ** (last - depths[parameter.name]),
        )
        for parameter in parameters
        if not freeze_backbone or _is_head(parameter.name)
    ]


def _is_head(name: str) -> bool:
    """Whether a parameter is none of the backbone's, nor of the classifier's last norm."""
    return not name.startswith(("backbone.", "patch_embeds.", "blocks.", "pos_block.", "norm."))


def _depths(parameters: list[Parameter]) -> dict[str, int]:
    """Depth of each parameter: the first patch embedding 0, the blocks 1, 2, …, the heads last.

    As in timm, patch embedding and position encoding of a stage go with its first block, and the
    final norms with the last block.
    """
    blocks = sorted({key for p in parameters if (key := _block(p.name)) is not None})
    depth_of_block: dict[tuple[int, int] | None, int] = {
        key: depth for depth, key in enumerate(blocks, start=1)
    }
    depths = {}
    for parameter in parameters:
        name = parameter.name.removeprefix("backbone.")
        if name.startswith("patch_embeds.0."):
            depth = 0
        elif name.startswith(("norm.", "norm_list.")):
            depth = len(blocks)
        else:
            depth = depth_of_block.get(_block(name), len(blocks) + 1)
        depths[parameter.name] = depth
    return depths


def _block(name: str) -> tuple[int, int] | None:
    """(stage, index) of the block that a parameter belongs to; None for final norms and heads."""
    part, *rest = name.removeprefix("backbone.").split(".")
    if part == "blocks":
        return int(rest[0]), int(rest[1])
    if part in ("patch_embeds", "pos_block"):
        return int(rest[0]), 0
    return None
