"""Parameters and multiply-adds of the detectors, counted layer by layer."""

from __future__ import annotations

import math

from mindtwins.detection.boxes import RATIOS
from mindtwins.detection.mask_rcnn import MASK_BINS, PROPOSALS, MaskRCNN
from mindtwins.detection.postprocessing import MOST_DETECTIONS
from mindtwins.detection.retinanet import RetinaNet
from mindtwins.detection.variants import DEFAULT_CLASSES, detector_shapes, split_name
from mindtwins.models.complexity import Part, count_parameters, count_stages, format_parts
from mindtwins.models.variants import VARIANTS

LEVELS = 5
# Numbers that the focal loss and its gradient take for each logit. Fitted to the memory of training
# RetinaNet SVT-S at 512 and 320 pixels on a CPU, one to six images: within 4 %.
KEPT_OF_LOGITS = 17
# Numbers that a step takes for each input and output of a layer on regions. Fitted to the memory of
# training Mask R-CNN SVT-S at 512 and 320 pixels on a CPU: within 4 %.
KEPT_OF_REGIONS = 1.9


def square_side(scale: tuple[int, int]) -> int:
    """The side of the square, in whole strides, that has as many pixels as such a picture."""
    return round(math.sqrt(math.prod(scale)) / 32) * 32 or 32


def count(
    name: str,
    scale: tuple[int, int] = (1333, 800),
    num_classes: int = DEFAULT_CLASSES,
    in_channels: int = 3,
    regions: int = PROPOSALS,
    masks: int = MOST_DETECTIONS,
) -> list[Part]:
    """Count each stage, the pyramid and the heads of a detector for one image.

    The image is a square of as many pixels as a picture of that scale. Counted are the products of
    linear layers, convolutions and attention. What a step keeps of the heads is the inputs and
    outputs of their layers, and what RetinaNet's loss makes of its logits.

    Args:
        name: of the detector.
        scale: long and short side of pictures.
        num_classes: without the background.
        in_channels: of the images.
        regions: that a Mask R-CNN classifies; as many as there may be in evaluation.
        masks: that it draws; likewise.
    """
    head, backbone = split_name(name)
    shapes = detector_shapes(name, num_classes, in_channels)
    of_backbone = {
        name.removeprefix("backbone."): shape
        for name, shape in shapes.items()
        if name.startswith("backbone.")
    }
    side = square_side(scale)
    parts = count_stages(VARIANTS[backbone], of_backbone, side, in_channels, "floor")
    sides = [part.output[-1] for part in parts]
    levels = sides[1:] if head == "retinanet" else sides
    while len(levels) < LEVELS:
        levels = [*levels, -(-levels[-1] // 2)]
    channels = shapes["neck.lateral_convs.0.conv.weight"][0]
    pixels = sum(level**2 for level in levels)
    pools = {
        "neck.": ("pyramid", channels, 0),
        "bbox_head.": ("heads", num_classes, pixels),
        "rpn_head.": ("proposals", 1, pixels),
        "roi_head.bbox_head.": ("box head", num_classes, regions),
        "roi_head.mask_head.": ("mask head", num_classes, masks * MASK_BINS**2),
    }
    for prefix, (title, depth, places) in pools.items():
        products = kept = 0
        for key, shape in shapes.items():
            if not key.startswith(prefix) or len(shape) < 2:
                continue
            at = places or _pixels_of_neck(key, levels)
            if key.endswith("conv_logits.weight"):  # it sees four pixels in the place of each
                at *= 4
            products += math.prod(shape) * at
            kept += (shape[0] + shape[1] * (4 if "upsample" in key else 1)) * at
            if key.endswith("retina_cls.weight"):
                kept += KEPT_OF_LOGITS * shape[0] * at
        if products:
            size = (MASK_BINS * 2,) * 2 if title == "mask head" else (levels[0],) * 2
            output = (depth,) if title == "box head" else (depth, *size)
            parameters = count_parameters(shapes, (prefix,))
            share = KEPT_OF_REGIONS if prefix.startswith("roi_head.") else 1
            parts.append(Part(title, output, parameters, products, 0, round(kept * share)))
    return parts


def count_anchors(name: str, scale: tuple[int, int]) -> int:
    """How many anchors a picture of that scale has."""
    kind = RetinaNet if split_name(name)[0] == "retinanet" else MaskRCNN
    pixels = sum(math.prod(-(-side // stride) for side in scale) for stride in kind.strides)
    return len(RATIOS) * len(kind.scales) * pixels


def _pixels_of_neck(name: str, levels: list[int]) -> int:
    """How many pixels a convolution of the pyramid computes, known by its weight's name."""
    return levels[int(name.split(".")[2])] ** 2


def format_summary(
    name: str, scale: tuple[int, int] = (1333, 800), num_classes: int = DEFAULT_CLASSES
) -> str:
    """The counts as a table for people, with their totals."""
    return format_parts(name, square_side(scale), count(name, scale, num_classes))
