"""RetinaNet and Mask R-CNN on Twins in plain PyTorch, written from MMDetection 2.8.0's definition.

It shares no code with `mindtwins.detection`: maps are (N, C, H, W), one picture is tested at a
time, regions are aligned one after the other. State-dict keys are the official ones, to the letter,
without the classifier's norm and head, which are never used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindtwins.reference.segmentation import OfficialBackbone
from mindtwins.reference.twins import _TABLE

# Regions that parity compares, in parts of the image's width and height; they are of all levels.
_EXAMPLES = (
    (0.05, 0.1, 0.25, 0.2),
    (0.6, 0.3, 0.65, 0.9),
    (0.1, 0.2, 0.8, 0.9),
    (0.4, 0.01, 0.99, 0.7),
    (0.0, 0.0, 1.0, 1.0),
    (-1.0, -1.0, 2.0, 2.0),
)


class ConvModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(nn.Module):
    """Five levels: by convolutions of the last map, or by pooling the last level."""

    def __init__(self, dims: Sequence[int], channels: int, on_input: bool) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1) for dim in dims)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in dims)
        self.on_input = on_input
        if on_input:
            self.fpn_convs.append(ConvModule(dims[-1], channels, 3, 2))
            self.fpn_convs.append(ConvModule(channels, channels, 3, 2))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            up = F.interpolate(merged[i], merged[i - 1].shape[-2:], mode="nearest")
            merged[i - 1] = merged[i - 1] + up
        levels = [self.fpn_convs[i](x) for i, x in enumerate(merged)]
        if self.on_input:
            levels.append(self.fpn_convs[len(merged)](maps[-1]))
            levels.append(self.fpn_convs[len(merged) + 1](levels[-1]))
        else:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return levels


def _flatten(x: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


class RetinaHead(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(4))
        self.reg_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(4))
        self.retina_cls = nn.Conv2d(channels, 9 * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, 9 * 4, 3, padding=1)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        classified = moved = level
        for conv in self.cls_convs:
            classified = F.relu(conv(classified))
        for conv in self.reg_convs:
            moved = F.relu(conv(moved))
        logits = _flatten(self.retina_cls(classified), self.num_classes)
        return logits, _flatten(self.retina_reg(moved), 4)


class RPNHead(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, 3, 1)
        self.rpn_reg = nn.Conv2d(channels, 12, 1)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.rpn_conv(level))
        return _flatten(self.rpn_cls(x), 1)[:, :, 0], _flatten(self.rpn_reg(x), 4)


class BoxHead(nn.Module):
    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(channels * 49, hidden), nn.Linear(hidden, hidden)]
        )
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = features.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_logits(F.relu(self.upsample(x)))


class RoIHead(nn.Module):
    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.bbox_head = BoxHead(channels, hidden, num_classes)
        self.mask_head = MaskHead(channels, num_classes)


def roi_align(image: Tensor, box: Tensor, bins: int) -> Tensor:
    """A map (C, H, W) and a box (4,) in its pixels -> (C, bins, bins), by the definition.

    Half a pixel is subtracted from all corners; every bin has ceil(its side) samples to a side.
    """
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = (box - 0.5).unbind()
    axes = []
    for start, end, length in ((y1, y2, height), (x1, x2, width)):
        bin_size = (end - start) / bins
        grid = max(int(torch.ceil(bin_size)), 0)
        if grid == 0:
            return image.new_zeros(image.shape[0], bins, bins)
        offsets = (torch.arange(grid).to(box) + 0.5) * bin_size / grid
        points = (start + torch.arange(bins).to(box)[:, None] * bin_size + offsets).flatten()
        inside = (points >= -1) & (points <= length)
        points = points.clamp(min=0)
        low = points.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        upper = torch.where(low == length - 1, torch.zeros_like(points), points - low)
        axes.append((low, high, (1 - upper) * inside, upper * inside, grid))
    (y_low, y_high, y_less, y_more, grid_y), (x_low, x_high, x_less, x_more, grid_x) = axes
    rows = image[:, y_low] * y_less[:, None] + image[:, y_high] * y_more[:, None]
    samples = rows[:, :, x_low] * x_less + rows[:, :, x_high] * x_more
    return samples.unflatten(2, (bins, grid_x)).unflatten(1, (bins, grid_y)).mean((2, 4))


def levels_of(boxes: Tensor) -> Tensor:
    """Which of the levels of strides 4, 8, 16 and 32 boxes (n, 4) are taken from, int64 (n,)."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.floor(torch.log2(sides / 56 + 1e-6)).clamp(0, 3).long()


def pool(levels: Sequence[Tensor], image: int, boxes: Tensor, bins: int) -> Tensor:
    """One image's boxes (n, 4) from the levels of strides 4, 8, 16 and 32: (n, C, bins, bins)."""
    found = [
        roi_align(levels[level][image], box / (4 * 2**level), bins)
        for level, box in zip(levels_of(boxes).tolist(), boxes, strict=True)
    ]
    return torch.stack(found) if found else levels[0].new_zeros(0, levels[0].shape[1], bins, bins)


def anchors_of(size: Sequence[int], stride: int, scales: Sequence[float]) -> Tensor:
    """Anchors of a map of (height, width): by row, column, ratio and scale, float32 (n, 4)."""
    height, width = size
    ratios = torch.sqrt(torch.tensor([0.5, 1.0, 2.0]))
    factors = torch.tensor(scales, dtype=torch.float32)
    w = (stride * (1 / ratios)[:, None] * factors).flatten()
    h = (stride * ratios[:, None] * factors).flatten()
    base = torch.stack([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h], 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shifts = stride * torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (base + shifts).reshape(-1, 4)


def decode(anchors: Tensor, deltas: Tensor, stds: Sequence[float], size: Sequence[int]) -> Tensor:
    """Deltas (..., 4) of anchors (..., 4) as boxes within a picture of (height, width)."""
    dx, dy, dw, dh = (deltas * torch.tensor(stds).to(deltas)).unbind(-1)
    limit = abs(math.log(16 / 1000))
    dw, dh = dw.clamp(-limit, limit), dh.clamp(-limit, limit)
    px, py = (anchors[..., 0] + anchors[..., 2]) * 0.5, (anchors[..., 1] + anchors[..., 3]) * 0.5
    pw, ph = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    gw, gh = pw * dw.exp(), ph * dh.exp()
    gx, gy = px + pw * dx, py + ph * dy
    height, width = size
    return torch.stack(
        [
            (gx - gw * 0.5).clamp(0, width),
            (gy - gh * 0.5).clamp(0, height),
            (gx + gw * 0.5).clamp(0, width),
            (gy + gh * 0.5).clamp(0, height),
        ],
        -1,
    )


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the kept boxes, best first; strictly more overlap than the threshold goes."""
    order = scores.sort(descending=True, stable=True).indices
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        sides = torch.minimum(boxes[first, 2:], boxes[order, 2:])
        sides = (sides - torch.maximum(boxes[first, :2], boxes[order, :2])).clamp(min=0)
        both = sides.prod(1)
        order = order[both <= threshold * (areas[first] + areas[order] - both)]
    return torch.stack(kept) if kept else order


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    nms: Callable[[Tensor, Tensor, float], Tensor] = nms,
) -> Tensor:
    """`nms` among the boxes of each group, all at once: groups are moved apart."""
    if not len(boxes):
        return groups
    return nms(boxes + (groups * (boxes.max() + 1))[:, None], scores, threshold)


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """A mask (side, side) of probabilities in its box -> bool (height, width)."""
    x0, y0, x1, y1 = box.unbind()
    ys = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    xs = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    xs, ys = (torch.where(v.isinf(), torch.zeros_like(v), v) for v in (xs, ys))
    grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5


class Operators(NamedTuple):
    """What detectors are tested with: what is here, or something faster that does the same."""

    pool: Callable[[Sequence[Tensor], int, Tensor, int], Tensor] = pool
    nms: Callable[[Tensor, Tensor, float], Tensor] = nms
    paste: Callable[[Tensor, Tensor, int, int], Tensor] = paste


def retinanet_losses(
    outputs: Sequence[tuple[Tensor, Tensor]], labels: Tensor, expected: Tensor
) -> dict[str, Tensor]:
    """Focal loss and distances of the boxes, level by level, as MMDetection has them on a CPU.

    Args:
        outputs: logits (N, n_i, classes) and deltas (N, n_i, 4) of each level.
        labels: of all anchors, (N, n): a class, the number of classes for none, -1 undecided.
        expected: the objects' deltas, (N, n, 4).
    """
    counts = [logits.shape[1] for logits, _ in outputs]
    num_classes = outputs[0][0].shape[-1]
    classes = distance = torch.zeros(())
    for (logits, deltas), own, wanted in zip(
        outputs, labels.split(counts, 1), expected.split(counts, 1), strict=True
    ):
        is_decided = (own >= 0)[..., None]
        has_object = is_decided & (own < num_classes)[..., None]
        is_class = F.one_hot(own.long().clamp(min=0), num_classes + 1)[..., :num_classes].to(logits)
        likely = logits.sigmoid()
        missing = likely + is_class - 2 * likely * is_class  # to certainty of what is right
        weight = (0.75 - 0.5 * is_class) * missing**2 * is_decided
        entropy = F.binary_cross_entropy_with_logits(logits, is_class, reduction="none")
        classes = classes + (entropy * weight).sum()
        distance = distance + ((deltas - wanted).abs() * has_object).sum()
    has_object = (labels >= 0) & (labels < num_classes)
    positives = has_object.sum(1).clamp(min=1).sum()
    return {"cls": classes / positives, "bbox": distance / positives}


class RetinaNetReference(nn.Module):
    """See `create_detection_reference`."""

    operators = Operators()

    def __init__(
        self, backbone: nn.Module, dims: Sequence[int], channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FPN(dims[1:], channels, on_input=True)
        self.bbox_head = RetinaHead(channels, num_classes)

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """All that parity compares: "stage1" to "stage4", "neck1" to "neck5", and of each of these
        "class1" .. and "box1" .."""
        maps = self.backbone(image)
        levels = self.neck(maps[1:])
        heads = [self.bbox_head(level) for level in levels]
        outputs = {f"stage{i}": x for i, x in enumerate(maps, 1)}
        outputs |= {f"neck{i}": x for i, x in enumerate(levels, 1)}
        outputs |= {f"class{i}": logits for i, (logits, _) in enumerate(heads, 1)}
        return outputs | {f"box{i}": deltas for i, (_, deltas) in enumerate(heads, 1)}

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits and deltas of each level."""
        return [self.bbox_head(level) for level in self.neck(self.backbone(image)[1:])]

    def losses(self, images: Tensor, labels: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """The two losses of a training step, whose sum is its loss.

        Args:
            images: (N, C, H, W).
            labels: of the anchors, (N, n): a class, the number of classes for none, -1 undecided.
            deltas: to the objects, (N, n, 4).
        """
        return retinanet_losses(self(images), labels, deltas)

    def detect(
        self, image: Tensor, size: Sequence[int], scale: Tensor, original: Sequence[int]
    ) -> dict[str, Tensor]:
        """What is in an image (1, C, H, W): "boxes", "scores" and "labels".

        Args:
            size: height and width before padding.
            scale: the four scale factors.
            original: height and width of the picture.
        """
        levels = self.neck(self.backbone(image)[1:])
        boxes, scores = [], []
        for level, stride in zip(levels, (8, 16, 32, 64, 128), strict=True):
            logits, deltas = self.bbox_head(level)
            anchors = anchors_of(level.shape[-2:], stride, [4 * 2 ** (i / 3) for i in range(3)])
            likely, moves = logits[0].sigmoid(), deltas[0]
            if len(likely) > 1000:
                chosen = likely.max(1).values.topk(1000).indices
                likely, moves, anchors = likely[chosen], moves[chosen], anchors[chosen]
            boxes.append(decode(anchors.to(moves), moves, (1, 1, 1, 1), size))
            scores.append(likely)
        candidates = torch.cat(boxes)[:, None] / scale
        return _select(candidates, torch.cat(scores), self.operators)


def _select(boxes: Tensor, scores: Tensor, operators: Operators) -> dict[str, Tensor]:
    """Boxes (n, 1 or classes, 4) and scores (n, classes) -> the 100 that are left."""
    rows, labels = (scores > 0.05).nonzero(as_tuple=True)
    boxes = boxes.expand(-1, scores.shape[1], 4)[rows, labels]
    scores = scores[rows, labels]
    kept = batched_nms(boxes, scores, labels, 0.5, operators.nms)[:100]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


class MaskRCNNReference(nn.Module):
    """See `create_detection_reference`."""

    operators = Operators()

    def __init__(
        self,
        backbone: nn.Module,
        dims: Sequence[int],
        channels: int,
        hidden: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.neck = FPN(dims, channels, on_input=False)
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(channels, hidden, num_classes)

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """All that parity compares: "stage1" to "stage4", "neck1" to "neck5", of each of these
        "object1" .. and "box1" .., and of example regions "regions", "classes", "boxes", "masks".
        """
        maps = self.backbone(image)
        levels = self.neck(maps)
        heads = [self.rpn_head(level) for level in levels]
        outputs = {f"stage{i}": x for i, x in enumerate(maps, 1)}
        outputs |= {f"neck{i}": x for i, x in enumerate(levels, 1)}
        outputs |= {f"object{i}": logits for i, (logits, _) in enumerate(heads, 1)}
        outputs |= {f"box{i}": deltas for i, (_, deltas) in enumerate(heads, 1)}
        height, width = image.shape[-2:]
        boxes = torch.tensor(_EXAMPLES).to(image) * torch.tensor([width, height] * 2).to(image)
        numbers = range(len(image))
        features = torch.cat([pool(levels, i, boxes, 7) for i in numbers])
        classes, moves = self.roi_head.bbox_head(features)
        masks = self.roi_head.mask_head(torch.cat([pool(levels, i, boxes, 14) for i in numbers]))
        named = {"regions": features, "classes": classes, "boxes": moves, "masks": masks}
        return outputs | named

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """The levels of the pyramid, and of each the proposals' logits and deltas."""
        levels = self.neck(self.backbone(images))
        return levels, [self.rpn_head(level) for level in levels]

    def losses(
        self,
        outputs: tuple[Sequence[Tensor], Sequence[tuple[Tensor, Tensor]]],
        anchor_labels: Tensor,
        anchor_deltas: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        deltas: Sequence[Tensor],
        masks: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The five losses of a training step, whose sum is its loss.

        Args:
            outputs: for the images, see `forward`.
            anchor_labels: (N, n): 0 for an object, 1 for none, -1 for what is not sampled.
            anchor_deltas: (N, n, 4), to the objects.
            boxes: the sampled regions (r, 4) of each image.
            labels: their classes (r,), or the number of classes for none.
            deltas: to the objects, (r, 4).
            masks: 0 or 1, (p, 28, 28), of the regions that are of an object.
        """
        levels, heads = outputs
        pool = self.operators.pool
        logits, moves = (torch.cat(parts, 1) for parts in zip(*heads, strict=True))
        has_object, counts = anchor_labels == 0, anchor_labels >= 0
        sampled = sum(
            max(int((own == label).sum()), 1) for own in anchor_labels for label in (0, 1)
        )
        wanted = has_object[counts].to(logits)
        entropy = F.binary_cross_entropy_with_logits(logits[counts], wanted, reduction="sum")
        distance = (moves[has_object] - anchor_deltas[has_object]).abs().sum()
        features = torch.cat([pool(levels, i, own, 7) for i, own in enumerate(boxes)])
        classes, shifts = self.roi_head.bbox_head(features)
        joined = torch.cat(list(labels))
        rows = (joined < self.num_classes).nonzero()[:, 0]
        own_shifts = shifts.unflatten(1, (self.num_classes, 4))[rows, joined[rows]]
        drawn = torch.cat(
            [
                pool(levels, i, own[of < self.num_classes], 14)
                for i, (own, of) in enumerate(zip(boxes, labels, strict=True))
            ]
        )
        own_masks = self.roi_head.mask_head(drawn)[range(len(rows)), joined[rows]]
        pixels = F.binary_cross_entropy_with_logits(
            own_masks, torch.cat(list(masks)).to(own_masks), reduction="sum"
        )
        return {
            "rpn_cls": entropy / sampled,
            "rpn_bbox": distance / sampled,
            "cls": F.cross_entropy(classes, joined),
            "bbox": (own_shifts - torch.cat(list(deltas))[rows]).abs().sum() / len(joined),
            "mask": pixels / max(own_masks.numel(), 1),
        }

    def propose(
        self,
        levels: Sequence[Tensor],
        heads: Sequence[tuple[Tensor, Tensor]],
        size: Sequence[int],
        image: int = 0,
        per_level: int = 1000,
    ) -> Tensor:
        """What `forward` gives -> the at most 1000 proposals (n, 4) of an image, best first."""
        boxes, scores, groups = [], [], []
        strides = (4, 8, 16, 32, 64)
        for number, (level, head, stride) in enumerate(zip(levels, heads, strides, strict=True)):
            logits, deltas = (output[image] for output in head)
            likely, order = logits.sigmoid().sort(descending=True)
            order = order[:per_level]
            anchors = anchors_of(level.shape[-2:], stride, [8])
            boxes.append(decode(anchors[order].to(level), deltas[order], (1, 1, 1, 1), size))
            scores.append(likely[:per_level])
            groups.append(torch.full((len(order),), number))
        joined, nms = torch.cat(boxes), self.operators.nms
        kept = batched_nms(joined, torch.cat(scores), torch.cat(groups), 0.7, nms)
        return joined[kept[:1000]]

    def detect(
        self, image: Tensor, size: Sequence[int], scale: Tensor, original: Sequence[int]
    ) -> dict[str, Tensor]:
        """As `RetinaNetReference.detect`, with "masks" and, before all, "proposals"."""
        levels, heads = self(image)
        regions = self.propose(levels, heads, size)
        pool, _, paste = self.operators
        logits, deltas = self.roi_head.bbox_head(pool(levels, 0, regions, 7))
        deltas = deltas.unflatten(1, (self.num_classes, 4))
        boxes = decode(regions[:, None], deltas, (0.1, 0.1, 0.2, 0.2), size) / scale
        found = _select(boxes, logits.softmax(1)[:, :-1], self.operators)
        scaled = found["boxes"] * scale
        masks = self.roi_head.mask_head(pool(levels, 0, scaled, 14)).sigmoid()
        pasted = [
            paste(mask[label], box, *original)
            for mask, label, box in zip(masks, found["labels"], scaled / scale, strict=True)
        ]
        empty = torch.zeros(0, *original, dtype=torch.bool)
        found["masks"] = torch.stack(pasted) if pasted else empty
        return found | {"proposals": regions}


def create_detection_reference(
    name: str,
    num_classes: int = 80,
    in_channels: int = 3,
    window_padding: str = "zeros",
    patch_rounding: str = "floor",
    block_epsilon: float = 1e-6,
    embed_epsilon: float = 1e-5,
) -> RetinaNetReference | MaskRCNNReference:
    """The PyTorch reference of a detector, in evaluation mode; arguments as `create_detector`."""
    head, variant = name.split("_", 1)
    channels, hidden = (64, 256) if variant == "svt_tiny" else (256, 1024)
    backbone = OfficialBackbone(
        variant, in_channels, window_padding, patch_rounding, block_epsilon, embed_epsilon
    )
    dims = _TABLE[variant][1]
    if head == "retinanet":
        return RetinaNetReference(backbone, dims, channels, num_classes).eval()
    return MaskRCNNReference(backbone, dims, channels, hidden, num_classes).eval()
