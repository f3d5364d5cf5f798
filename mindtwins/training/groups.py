"""Which parameter is trained how: weight decay, learning-rate factor, frozen or not."""

from __future__ import annotations

from dataclasses import dataclass

from mindspore import Parameter, nn


@dataclass(frozen=True)
class Group:
    """How one parameter is trained."""

    parameter: Parameter
    weight_decay: float
    lr_factor: float


def parameter_groups(
    model: nn.Cell, weight_decay: float, layer_decay: float = 1.0, freeze_backbone: bool = False
) -> list[Group]:
    """The parameters to train, in the model's order, as timm's optimizer factory groups them.

    Args:
        weight_decay: of all parameters but biases, 1-d ones and the position encodings.
        layer_decay: factor of the learning rate from each block to the one before it; the head
            has factor 1.
        freeze_backbone: train `head.*` only.
    """
    parameters = list(model.get_parameters())
    depths = _depths(parameters)
    last = max(depths.values())
    return [
        Group(
            parameter,
            0.0 if _is_not_decayed(parameter) else weight_decay,
            layer_decay ** (last - depths[parameter.name]),
        )
        for parameter in parameters
        if not freeze_backbone or parameter.name.startswith("head.")
    ]


def _is_not_decayed(parameter: Parameter) -> bool:
    return parameter.ndim <= 1 or parameter.name.startswith("pos_block.")


def _depths(parameters: list[Parameter]) -> dict[str, int]:
    """Depth of each parameter: the first patch embedding 0, the blocks 1, 2, …, the head last.

    As in timm, patch embedding and position encoding of a stage go with its first block, and the
    final norm with the last block.
    """
    blocks = sorted({key for p in parameters if (key := _block(p.name)) is not None})
    depth_of_block = {key: depth for depth, key in enumerate(blocks, start=1)}
    depths = {}
    for parameter in parameters:
        name = parameter.name
        if name.startswith("patch_embeds.0."):
            depths[name] = 0
        elif name.startswith("norm."):
            depths[name] = len(blocks)
        else:
            depths[name] = depth_of_block.get(_block(name), len(blocks) + 1)
    return depths


def _block(name: str) -> tuple[int, int] | None:
    """(stage, index) of the block that a parameter belongs to; None for the norm and the head."""
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]), int(rest[1])
    if part in ("patch_embeds", "pos_block"):
        return int(rest[0]), 0
    return None
