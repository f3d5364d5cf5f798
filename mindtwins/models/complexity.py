"""Parameters and multiply-adds of backbones and classifiers, counted layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mindtwins.layers import kernels
from mindtwins.models.twins import PATCH_SIZES, WINDOW
from mindtwins.models.variants import VARIANTS, Variant, parameter_shapes, resolve_name


@dataclass(frozen=True)
class Part:
    """A stage, a neck or a head, for one image.

    Attributes:
        name: what it is.
        output: shape of its map (C, H, W), or (num_classes,).
        parameters: number of trained parameters.
        layer_products: multiply-adds of linear layers and convolutions.
        attention_products: multiply-adds of q k^T and of the weights with v.
        kept: numbers that a training step keeps for the gradients, an estimate.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    layer_products: int
    attention_products: int
    kept: int = 0


# Numbers that a block keeps, per token and channel: of its maps, and of each of the MLP's
# `mlp_ratio` hidden maps. Fitted to the memory that an image more takes on a CPU, where the MLP is
# one kernel, for all six classifiers at 224 pixels and two at 512: within 8 %.
KEPT, KEPT_HIDDEN = 8.4, 0.88


def count(
    name: str, image_size: int = 224, num_classes: int = 1000, in_channels: int = 3
) -> list[Part]:
    """Count each stage and the head of a classifier for one square image.

    The published GFLOPs are the layers' products alone: counters that hook layers do not see the
    two products inside attention, which add 2 to 4 %. Norms, softmax, GELU and additions are left
    out, as there. Windows are padded to whole ones, patches are floored.
    """
    variant = VARIANTS[resolve_name(name)]
    shapes = parameter_shapes(name, num_classes, in_channels)
    parts = count_stages(variant, shapes, image_size, in_channels, "floor")
    head = count_parameters(shapes, ("norm.", "head."))
    dim = variant.embed_dims[-1]
    parts.append(Part("head", (num_classes or dim,), head, dim * num_classes, 0))
    return parts


def count_stages(
    variant: Variant,
    shapes: dict[str, tuple[int, ...]],
    image_size: int,
    in_channels: int,
    rounding: str,
) -> list[Part]:
    """The four stages of a backbone; `shapes` under a classifier's names."""
    parts = []
    side, channels_in = image_size, in_channels
    for stage in range(4):
        dim, patch, sr = variant.embed_dims[stage], PATCH_SIZES[stage], variant.sr_ratios[stage]
        side = math.ceil(side / patch) if rounding == "ceil" else side // patch
        tokens, summary = side * side, (side // sr) ** 2
        windowed = (math.ceil(side / WINDOW) * WINDOW) ** 2
        layers = tokens * patch * patch * channels_in * dim + tokens * 9 * dim
        attention = 0
        for index in range(variant.depths[stage]):
            if variant.family == "svt" and index % 2 == 0:
                layers += (3 * windowed + tokens) * dim * dim
                attention += 2 * windowed * WINDOW * WINDOW * dim
            else:
                subsampling = summary * sr * sr if sr > 1 else 0
                layers += (2 * tokens + 2 * summary + subsampling) * dim * dim
                attention += 2 * tokens * summary * dim
            layers += 2 * tokens * dim * dim * variant.mlp_ratios[stage]
        prefixes = (f"patch_embeds.{stage}.", f"blocks.{stage}.", f"pos_block.{stage}.")
        parameters = count_parameters(shapes, (*prefixes, f"norm_list.{stage}."))
        per_block = tokens * dim * (KEPT + KEPT_HIDDEN * variant.mlp_ratios[stage])
        kept = round(variant.depths[stage] * per_block)
        output = (dim, side, side)
        parts.append(Part(f"stage {stage + 1}", output, parameters, layers, attention, kept))
        channels_in = dim
    return parts


def count_parameters(shapes: dict[str, tuple[int, ...]], prefixes: tuple[str, ...]) -> int:
    """How many numbers are in the parameters whose names begin so."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefixes))


def format_summary(
    name: str, image_size: int = 224, num_classes: int = 1000, in_channels: int = 3
) -> str:
    """The counts as a table for people, with their totals."""
    parts = count(name, image_size, num_classes, in_channels)
    variant = VARIANTS[resolve_name(name)]
    title = f"{resolve_name(name)} ({variant.family.upper()})"
    return format_parts(title, image_size, parts)


def format_parts(title: str, image_size: int, parts: list[Part]) -> str:
    """Parts as a table for people, with their totals."""
    lines = [
        f"{title}, one {image_size} x {image_size} image",
        kernels.status(),
        f"{'':<15}{'output':>16}{'parameters':>14}{'multiply-adds':>18}{'in attention':>16}",
    ]
    for part in parts:
        shape = " x ".join(map(str, part.output))
        lines.append(
            f"{part.name:<15}{shape:>16}{part.parameters:>14,}"
            f"{part.layer_products:>18,}{part.attention_products:>16,}"
        )
    parameters = sum(part.parameters for part in parts)
    layers = sum(part.layer_products for part in parts)
    attention = sum(part.attention_products for part in parts)
    lines += [
        f"{'total':<15}{'':>16}{parameters:>14,}{layers:>18,}{attention:>16,}",
        f"{parameters / 1e6:.1f} M parameters; {layers / 1e9:.1f} GFLOPs as papers count them"
        f" (multiply-adds of layers), {(layers + attention) / 1e9:.1f} with those in attention",
    ]
    return "\n".join(lines)
