"""Makes `fixtures/*.npz`: what MMDetection 2.8.0 computes of small, seeded inputs, on a CPU.

It was run once, with the versions that the published detectors were trained with; the tests read
the arrays and need none of this. Python 3.10 and, in this order (mmcv is compiled, 20 minutes):

    pip install torch==1.13.1 numpy==1.23.5 "setuptools<66" wheel ninja \
        "opencv-python-headless<4.9" addict pyyaml yapf==0.40.1 terminaltables six matplotlib \
        cython "pillow<10" packaging requests
    MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps mmcv-full==1.2.7
    pip install --no-deps mmdet==2.8.0 pycocotools==2.0.7
    python tests/detection/make_fixtures.py

Nothing of MMDetection is changed but this: RetinaNet's focal loss has no CPU operator, so its own
`py_sigmoid_focal_loss` is called in its place; and pycocotools is given the names and the version
that MMDetection looks for. Logits that are ranked are all different, because torch's order of equal
ones is arbitrary. mmcv 1.2.7's NMS on a CPU suppresses also at an IoU that equals the threshold,
unlike that on a GPU; none of these inputs has such a pair (see `steady`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools
import torch
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

pycocotools.__version__ = "12.0.3"
for old, new in (
    ("getCatIds", "get_cat_ids"),
    ("getImgIds", "get_img_ids"),
    ("getAnnIds", "get_ann_ids"),
    ("loadImgs", "load_imgs"),
    ("loadAnns", "load_anns"),
    ("loadCats", "load_cats"),
):

    def renamed(self: COCO, *args: Any, old: str = old, **options: Any) -> Any:
        words = {
            key.replace("_nms", "Nms").replace("cat_names", "catNms"): value
            for key, value in options.items()
        }
        words = {key.replace("img_ids", "imgIds"): value for key, value in words.items()}
        return getattr(self, old)(*args, **words)

    setattr(COCO, new, renamed)

import mmcv  # noqa: E402
from mmcv.ops import batched_nms  # noqa: E402
from mmdet.core import bbox2roi, build_assigner, build_sampler  # noqa: E402
from mmdet.core.mask.structures import BitmapMasks  # noqa: E402
from mmdet.datasets import coco as coco_module  # noqa: E402
from mmdet.datasets.pipelines import Compose  # noqa: E402
from mmdet.models import build_head, build_roi_extractor  # noqa: E402
from mmdet.models.losses import focal_loss  # noqa: E402

FOLDER = Path(__file__).parent / "fixtures"
CLASSES = 5
Sizes = list[tuple[int, int]]

RETINA_ASSIGNER = {
    "type": "MaxIoUAssigner",
    "pos_iou_thr": 0.5,
    "neg_iou_thr": 0.4,
    "min_pos_iou": 0,
    "ignore_iof_thr": -1,
}
RPN_ASSIGNER = {
    "type": "MaxIoUAssigner",
    "pos_iou_thr": 0.7,
    "neg_iou_thr": 0.3,
    "min_pos_iou": 0.3,
    "match_low_quality": True,
    "ignore_iof_thr": -1,
}
BOX_ASSIGNER = {
    "type": "MaxIoUAssigner",
    "pos_iou_thr": 0.5,
    "neg_iou_thr": 0.5,
    "min_pos_iou": 0.5,
    "match_low_quality": True,
    "ignore_iof_thr": -1,
}
RPN_SAMPLER = {
    "type": "RandomSampler",
    "num": 256,
    "pos_fraction": 0.5,
    "neg_pos_ub": -1,
    "add_gt_as_proposals": False,
}


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def distinct(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Any:
    """Numbers of a range in any order, all different."""
    values = np.linspace(low, high, int(np.prod(shape)))
    return rng.permutation(values).reshape(shape).astype(np.float32)


def coarse(values: np.ndarray) -> np.ndarray:
    """Rounded to what half precision holds: such inputs take half the room."""
    return values.astype(np.float16)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def save(name: str, **arrays: Any) -> None:
    arrays = {
        key: value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for key, value in arrays.items()
    }
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    print(f"{name}.npz, {(FOLDER / f'{name}.npz').stat().st_size // 1024} KiB")
    for key, value in arrays.items():
        print(f"    {key}: {value.dtype} {value.shape}")


def random_boxes(
    rng: np.random.Generator, count: int, size: tuple[int, int], longest: float
) -> np.ndarray:
    """Boxes around places in a picture of (height, width); some reach beyond it."""
    height, width = size
    centers = rng.uniform(0, (width, height), (count, 2))
    halves = np.exp(rng.uniform(np.log(3), np.log(longest), (count, 2))) / 2
    return np.concatenate([centers - halves, centers + halves], 1).astype(np.float32)


def flat(levels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([level.ravel() for level in levels])


def level_tensors(levels: list[np.ndarray]) -> list[torch.Tensor]:
    return [tensor(level).requires_grad_() for level in levels]


def gradients(levels: list[torch.Tensor]) -> np.ndarray:
    return flat([level.grad.numpy() for level in levels])


@contextmanager
def recorded(owner: Any, name: str, seen: list[Any]) -> Iterator[None]:
    """Record what a function gives while the block runs."""
    function = getattr(owner, name)

    def record(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        seen.append(result)
        return result

    setattr(owner, name, record)
    try:
        yield
    finally:
        setattr(owner, name, function)


def steady(run: Callable[[float], Any]) -> Any:
    """What a function of an IoU threshold's shift gives; a millionth must make no difference."""
    found = run(0.0)
    for shift in (-1e-6, 1e-6):
        for one, other in zip(found, run(shift), strict=True):
            assert torch.equal(one, other)
    return found


def retina_head() -> Any:
    return build_head(
        {
            "type": "RetinaHead",
            "num_classes": CLASSES,
            "in_channels": 1,
            "feat_channels": 1,
            "stacked_convs": 1,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 3,
                "ratios": [0.5, 1.0, 2.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0] * 4,
                "target_stds": [1.0] * 4,
            },
            "loss_cls": {
                "type": "FocalLoss",
                "use_sigmoid": True,
                "gamma": 2.0,
                "alpha": 0.25,
                "loss_weight": 1.0,
            },
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            "train_cfg": mmcv.Config(
                {
                    "assigner": RETINA_ASSIGNER,
                    "allowed_border": -1,
                    "pos_weight": -1,
                    "debug": False,
                }
            ),
            "test_cfg": mmcv.Config(
                {
                    "nms_pre": 1000,
                    "min_bbox_size": 0,
                    "score_thr": 0.05,
                    "nms": {"type": "nms", "iou_threshold": 0.5},
                    "max_per_img": 100,
                }
            ),
        }
    )


def rpn_head() -> Any:
    return build_head(
        {
            "type": "RPNHead",
            "in_channels": 1,
            "feat_channels": 1,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0] * 4,
                "target_stds": [1.0] * 4,
            },
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            "train_cfg": mmcv.Config(
                {
                    "assigner": RPN_ASSIGNER,
                    "sampler": RPN_SAMPLER,
                    "allowed_border": -1,
                    "pos_weight": -1,
                    "debug": False,
                }
            ),
            "test_cfg": mmcv.Config(
                {
                    "nms_across_levels": False,
                    "nms_pre": 1000,
                    "nms_post": 1000,
                    "max_num": 1000,
                    "nms_thr": 0.7,
                    "min_bbox_size": 0,
                }
            ),
        }
    )


def box_head() -> Any:
    return build_head(
        {
            "type": "Shared2FCBBoxHead",
            "in_channels": 1,
            "fc_out_channels": 1,
            "roi_feat_size": 7,
            "num_classes": CLASSES,
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0] * 4,
                "target_stds": [0.1, 0.1, 0.2, 0.2],
            },
            "reg_class_agnostic": False,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        }
    )


def mask_head() -> Any:
    return build_head(
        {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": 1,
            "conv_out_channels": 1,
            "num_classes": CLASSES,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        }
    )


def anchors() -> None:
    """All anchors of five small levels, and which of them lie within a smaller padded picture."""
    sizes = [(5, 4), (3, 2), (2, 1), (1, 1), (1, 1)]
    arrays: dict[str, Any] = {"sizes": sizes, "pad_shape": [20, 26]}
    for name, head in (("retina", retina_head()), ("rpn", rpn_head())):
        found = head.anchor_generator.grid_anchors(sizes, device="cpu")
        flags = head.anchor_generator.valid_flags(sizes, (20, 26, 3), device="cpu")
        arrays[f"{name}_anchors"] = torch.cat(found)
        arrays[f"{name}_valid"] = torch.cat(flags)
    save("anchors", **arrays)


def coder() -> None:
    """Boxes moved by deltas, and the deltas between boxes."""
    rng = generator(1)
    boxes = random_boxes(rng, 64, (96, 128), 80)
    moves = coarse(rng.normal(0, 1, (64, 4)))
    moves[:4, 2:] = [[4.2, -4.2], [9, -9], [4.125, 4.125], [-4.125, 0]]
    targets = random_boxes(rng, 64, (96, 128), 80)
    arrays: dict[str, Any] = {"boxes": boxes, "deltas": moves, "targets": targets}
    for name, head in (("unit", retina_head()), ("box_head", box_head())):
        decode = head.bbox_coder.decode
        arrays[f"decoded_{name}"] = decode(tensor(boxes), tensor(moves), max_shape=(90, 120, 3))
        arrays[f"encoded_{name}"] = head.bbox_coder.encode(tensor(boxes), tensor(targets))
    save("coder", max_shape=[90, 120], **arrays)


def level_outputs(
    rng: np.random.Generator,
    sizes: list[tuple[int, int]],
    channels: tuple[int, int],
    images: int,
    spread: float,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits, all different, and deltas of every level, (images, channels, height, width)."""
    shapes = [(images, channels[0], *size) for size in sizes]
    counts = [int(np.prod(shape)) for shape in shapes]
    values = np.split(distinct(rng, (sum(counts),), -7, 2), np.cumsum(counts)[:-1])
    logits = [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]
    deltas = [coarse(rng.normal(0, spread, (images, channels[1], *size))) for size in sizes]
    return logits, deltas


def retinanet_test() -> None:
    """Detections of one picture: from logits and deltas to boxes in the original picture."""
    head = retina_head()
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    logits, deltas = level_outputs(generator(2), sizes, (9 * CLASSES, 36), 1, 0.3)
    factor = np.array([1.8734375, 1.8735363, 1.8734375, 1.8735363], np.float32)
    meta = {"img_shape": (120, 150, 3), "scale_factor": factor}
    arrays: dict[str, Any] = {}
    # As they are, and so low that fewer than 100 boxes pass the threshold.
    for name, shift in (("", 0.0), ("low_", 4.9)):

        def run(shifted_by: float, shift: float = shift) -> Any:
            head.test_cfg.nms.iou_threshold = 0.5 + shifted_by
            shifted = [level - np.float32(shift) for level in logits]
            with torch.no_grad():
                return head.get_bboxes(
                    level_tensors(shifted), level_tensors(deltas), [meta], rescale=True
                )[0]

        boxes, labels = steady(run)
        arrays[f"{name}boxes"] = boxes[:, :4]
        arrays[f"{name}scores"] = boxes[:, 4]
        arrays[f"{name}labels"] = labels
    save(
        "retinanet_test",
        sizes=sizes,
        logits=flat(logits),
        deltas=flat(deltas),
        img_shape=[120, 150],
        scale_factor=factor,
        low_shift=np.float32(4.9),
        **arrays,
    )


def rpn_test() -> None:
    """Proposals of one picture."""
    head = rpn_head()
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    logits, deltas = level_outputs(generator(3), sizes, (3, 12), 1, 0.3)
    meta = {"img_shape": (90, 125, 3), "scale_factor": np.ones(4, np.float32)}

    def run(shifted_by: float) -> Any:
        head.test_cfg.nms_thr = 0.7 + shifted_by
        with torch.no_grad():
            return head.get_bboxes(level_tensors(logits), level_tensors(deltas), [meta])

    (found,) = steady(run)
    save(
        "rpn_test",
        sizes=sizes,
        logits=flat(logits),
        deltas=flat(deltas),
        img_shape=[90, 125],
        proposals=found[:, :4],
        scores=found[:, 4],
    )


def nms() -> None:
    """Which boxes are kept, class by class, in the order of their scores."""
    rng = generator(4)
    near = random_boxes(rng, 20, (200, 300), 120).repeat(15, 0)
    boxes = tensor(near + rng.normal(0, 4, near.shape))
    boxes[:, 2:] = torch.max(boxes[:, 2:], boxes[:, :2] + 1)
    scores = tensor(distinct(rng, (300,), 0.05, 0.95))
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    arrays: dict[str, Any] = {}
    for threshold in (0.5, 0.7):

        def run(shifted_by: float, threshold: float = threshold) -> Any:
            config = {"type": "nms", "iou_threshold": threshold + shifted_by}
            return [batched_nms(boxes, scores, labels, config)[1]]

        (arrays[f"keep_{round(100 * threshold)}"],) = steady(run)
    save("nms", boxes=boxes, scores=scores, labels=labels, **arrays)


def roi_align() -> None:
    """Features of RoIs from the level that suits their size, and gradients to the levels."""
    rng = generator(5)
    sizes = [(64, 80), (32, 40), (16, 20), (8, 10)]
    features = [coarse(rng.normal(0, 1, (2, 2, *size))) for size in sizes]
    boxes = random_boxes(rng, 24, (256, 320), 700)
    # Empty ones, one beyond the picture, and sizes at which the level changes.
    boxes[:6] = [
        [40, 40, 40, 40],
        [60, 50, 60, 58],
        [400, 300, 480, 390],
        [10, 20, 122, 132],
        [10, 20, 121.9, 132],
        [-100, -80, 348, 368],
    ]
    rois = np.concatenate([rng.integers(0, 2, (24, 1)), boxes], 1).astype(np.float32)
    arrays: dict[str, Any] = {"rois": rois, "sizes": sizes, "features": flat(features)}
    for side in (7, 14):
        extractor = build_roi_extractor(
            {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": side, "sampling_ratio": 0},
                "out_channels": 2,
                "featmap_strides": [4, 8, 16, 32],
            }
        )
        levels = level_tensors(features)
        found = extractor(levels, tensor(rois))
        arrays["levels"] = extractor.map_roi_levels(tensor(rois), 4)
        arrays[f"found_{side}"] = found
        if side == 7:
            weights = coarse(rng.normal(0, 1, found.shape))
            (found * tensor(weights)).sum().backward()
            arrays["weights"] = weights
            arrays["gradients"] = gradients(levels)
    save("roi_align", **arrays)


def boxes_and_masks_test() -> None:
    """Detections of one picture from the second stage's outputs, and their masks."""
    rng = generator(6)
    head = box_head()
    boxes = random_boxes(rng, 80, (150, 200), 120)
    np.clip(boxes, 0, [200, 150, 200, 150], out=boxes)
    rois = np.concatenate([np.zeros((80, 1)), boxes], 1).astype(np.float32)
    logits = distinct(rng, (80, CLASSES + 1), -3, 3)
    deltas = coarse(rng.normal(0, 0.7, (80, 4 * CLASSES)))
    factor = np.array([1.8734375, 1.8735363, 1.8734375, 1.8735363], np.float32)
    config = mmcv.Config(
        {
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 100,
            "mask_thr_binary": 0.5,
        }
    )

    def run(shifted_by: float) -> Any:
        config.nms.iou_threshold = 0.5 + shifted_by
        return head.get_bboxes(
            tensor(rois), tensor(logits), tensor(deltas), (150, 200, 3), factor, True, config
        )

    found, labels = steady(run)
    # As `simple_test_mask` does: the boxes in the resized picture, which are divided again.
    shown = found[:10]
    mask_boxes = shown[:, :4] * torch.from_numpy(factor)
    low = rng.normal(0, 2, (len(shown), CLASSES, 7, 7))
    mask_logits = coarse(
        low.repeat(4, 2).repeat(4, 3) + rng.normal(0, 0.5, (*low.shape[:2], 28, 28))
    )
    by_class = mask_head().get_seg_masks(
        tensor(mask_logits), mask_boxes, labels[:10], config, (80, 107, 3), factor, True
    )
    taken = [0] * CLASSES
    masks = []
    for label in labels[:10].tolist():  # back in the order of the detections
        masks.append(by_class[label][taken[label]])
        taken[label] += 1
    save(
        "boxes_and_masks_test",
        rois=rois,
        logits=logits,
        deltas=deltas,
        img_shape=[150, 200],
        ori_shape=[80, 107],
        scale_factor=factor,
        boxes=found[:, :4],
        scores=found[:, 4],
        labels=labels,
        mask_logits=mask_logits,
        mask_boxes=mask_boxes,
        masks=np.stack(masks),
    )


def scene(
    rng: np.random.Generator, count: int, size: tuple[int, int], longest: float = 0.6
) -> tuple[Any, Any]:
    """Boxes within a picture, up to a part of its sides, and labels."""
    limits = np.array(size[::-1])
    corners = rng.uniform(0, 0.4, (count, 2)) * limits
    spans = rng.uniform(0.15, longest, (count, 2)) * limits
    boxes = np.concatenate([corners, (corners + spans).clip(0, limits)], 1)
    return boxes.astype(np.float32), rng.integers(0, CLASSES, count)


def assign() -> None:
    """Which object each box belongs to (0: none, -1: undecided, else number + 1)."""
    rng = generator(7)
    truth, labels = scene(rng, 6, (96, 128))
    # One box is the best for two objects, and two boxes are equally good for one.
    truth[4] = truth[3] + np.float32([1, 0, 1, 0])
    near = np.repeat(truth, 8, axis=0) + rng.normal(0, 6, (48, 4)).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    boxes = np.concatenate([near, near[3:5], random_boxes(rng, 100, (96, 128), 60)])
    arrays: dict[str, Any] = {"boxes": boxes, "gt_boxes": truth, "gt_labels": labels}
    for name, config in (("retina", RETINA_ASSIGNER), ("rpn", RPN_ASSIGNER), ("box", BOX_ASSIGNER)):
        found = build_assigner(config).assign(
            tensor(boxes), tensor(truth), None, torch.from_numpy(labels)
        )
        arrays[f"{name}_gt_inds"] = found.gt_inds
        arrays[f"{name}_overlaps"] = found.max_overlaps
    nothing = build_assigner(BOX_ASSIGNER).assign(
        tensor(boxes), torch.zeros(0, 4), None, torch.zeros(0, dtype=torch.long)
    )
    save("assign", nothing_gt_inds=nothing.gt_inds, **arrays)


def images_of_two_sizes(rng: np.random.Generator) -> tuple[list[dict], list[Any], list[Any]]:
    """A picture with objects that fills the batch, and a smaller one without any."""
    metas = [
        {"img_shape": (60, 64, 3), "pad_shape": (64, 64, 3), "scale_factor": 1.0},
        {"img_shape": (32, 40, 3), "pad_shape": (32, 64, 3), "scale_factor": 1.0},
    ]
    boxes, labels = scene(rng, 5, (60, 64), 1)
    return (
        metas,
        [tensor(boxes), torch.zeros(0, 4)],
        [torch.from_numpy(labels), torch.zeros(0, dtype=torch.long)],
    )


def python_focal_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    classes = pred.size(1)
    hot = torch.nn.functional.one_hot(target, classes + 1)[:, :classes]
    weight = None if weight is None else weight.reshape(-1, 1)
    return focal_loss.py_sigmoid_focal_loss(
        pred, hot.float(), weight, gamma, alpha, reduction, avg_factor
    )


def dense_loss(
    name: str, head: Any, sizes: list[tuple[int, int]], channels: int, seed: int
) -> None:
    """Targets and losses of a head on anchors, in a batch of two pictures."""
    rng = generator(seed)
    metas, boxes, labels = images_of_two_sizes(rng)
    per_anchor = head.anchor_generator.num_base_anchors[0]
    logits = [coarse(rng.normal(-1, 1.5, (2, per_anchor * channels, *size))) for size in sizes]
    deltas = [coarse(rng.normal(0, 0.5, (2, per_anchor * 4, *size))) for size in sizes]
    logit_levels, delta_levels = level_tensors(logits), level_tensors(deltas)
    perms: list[Any] = []
    seen: list[Any] = []
    torch.manual_seed(seed)
    with recorded(torch, "randperm", perms), recorded(head, "get_targets", seen):
        if channels == 1:
            losses = head.loss(logit_levels, delta_levels, boxes, metas)
        else:
            losses = head.loss(logit_levels, delta_levels, boxes, labels, metas)
    losses = {key.replace("rpn_", ""): value for key, value in losses.items()}
    sum(sum(value) for value in losses.values()).backward()
    targets = [torch.cat(levels, 1) for levels in seen[0][:4]]
    save(
        name,
        sizes=sizes,
        img_shapes=[meta["img_shape"][:2] for meta in metas],
        pad_shapes=[meta["pad_shape"][:2] for meta in metas],
        gt_boxes=boxes[0],
        gt_labels=labels[0],
        logits=flat(logits),
        deltas=flat(deltas),
        labels=targets[0],
        label_weights=targets[1],
        box_targets=targets[2],
        box_weights=targets[3],
        positives=seen[0][4],
        negatives=seen[0][5],
        loss_cls=torch.stack(losses["loss_cls"]),
        loss_bbox=torch.stack(losses["loss_bbox"]),
        logit_gradients=gradients(logit_levels),
        delta_gradients=gradients(delta_levels),
        **{f"permutation_{number}": perm for number, perm in enumerate(perms)},
    )


def second_stage_loss() -> None:
    """Sampled RoIs, targets and losses of the box and the mask head, for two pictures."""
    rng = generator(10)
    metas, gt_boxes, gt_labels = images_of_two_sizes(rng)
    assigner = build_assigner(BOX_ASSIGNER)
    sampler = build_sampler(
        {
            "type": "RandomSampler",
            "num": 48,
            "pos_fraction": 0.25,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": True,
        }
    )
    config = mmcv.Config({"pos_weight": -1, "mask_size": 28})
    proposals, masks = [], []
    for meta, boxes in zip(metas, gt_boxes, strict=True):
        size = meta["img_shape"][:2]
        near = np.repeat(boxes.numpy(), 8, axis=0)
        near = near + rng.normal(0, 3, near.shape).astype(np.float32)
        found = np.concatenate([near, random_boxes(rng, 60, size, 60)])
        limits = np.array([size[1], size[0]] * 2, np.float32)
        proposals.append(found.clip(0, limits))
        pad = meta["pad_shape"][:2]
        bitmaps = np.zeros((len(boxes), *pad), np.uint8)
        rows, columns = np.mgrid[: pad[0], : pad[1]]
        for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.tolist(), strict=True):
            across = (columns + 0.5 - (x1 + x2) / 2) / max((x2 - x1) / 2, 1)
            down = (rows + 0.5 - (y1 + y2) / 2) / max((y2 - y1) / 2, 1)
            bitmap[across**2 + down**2 <= 1] = 1
        masks.append(BitmapMasks(bitmaps, *pad))
    perms: list[Any] = []
    torch.manual_seed(10)
    results = []
    with recorded(torch, "randperm", perms):
        for boxes, truth, labels in zip(proposals, gt_boxes, gt_labels, strict=True):
            assigned = assigner.assign(tensor(boxes), truth, None, labels)
            results.append(sampler.sample(assigned, tensor(boxes), truth, labels))
    head = box_head()
    rois = bbox2roi([result.bboxes for result in results])
    targets = head.get_targets(results, gt_boxes, gt_labels, config)
    logits = coarse(rng.normal(0, 1.5, (len(rois), CLASSES + 1)))
    deltas = coarse(rng.normal(0, 0.5, (len(rois), 4 * CLASSES)))
    cls_score, bbox_pred = level_tensors([logits, deltas])
    losses = head.loss(cls_score, bbox_pred, rois, *targets)
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    positive = torch.cat([result.pos_bboxes for result in results]).clone()
    mask_labels = torch.cat([result.pos_gt_labels for result in results])
    mask_targets = mask_head().get_targets(results, masks, config)
    mask_logits = coarse(rng.normal(0, 1.5, (len(positive), CLASSES, 28, 28)))
    (mask_pred,) = level_tensors([mask_logits])
    loss_mask = mask_head().loss(mask_pred, mask_targets, mask_labels)["loss_mask"]
    loss_mask.backward()
    gradient = mask_pred.grad[torch.arange(len(positive)), mask_labels]
    save(
        "second_stage_loss",
        pad_shapes=[meta["pad_shape"][:2] for meta in metas],
        gt_boxes=gt_boxes[0],
        gt_labels=gt_labels[0],
        gt_masks=masks[0].masks,
        proposals_0=proposals[0],
        proposals_1=proposals[1],
        **{f"permutation_{number}": perm for number, perm in enumerate(perms)},
        **{f"pos_inds_{number}": result.pos_inds for number, result in enumerate(results)},
        **{f"neg_inds_{number}": result.neg_inds for number, result in enumerate(results)},
        rois=rois,
        labels=targets[0],
        label_weights=targets[1],
        box_targets=targets[2],
        box_weights=targets[3],
        logits=logits,
        deltas=deltas,
        loss_cls=losses["loss_cls"],
        loss_bbox=losses["loss_bbox"],
        accuracy=losses["acc"],
        logit_gradients=cls_score.grad,
        delta_gradients=bbox_pred.grad,
        mask_boxes=positive,
        mask_labels=mask_labels,
        mask_targets=mask_targets.to(torch.uint8),
        mask_logits=mask_logits,
        loss_mask=loss_mask,
        mask_gradients=gradient,
    )


SHORT_SIDES = [(short, 1333) for short in range(480, 801, 32)]
POLICIES = [
    [{"type": "Resize", "img_scale": SHORT_SIDES, "multiscale_mode": "value", "keep_ratio": True}],
    [
        {
            "type": "Resize",
            "img_scale": [(400, 1333), (500, 1333), (600, 1333)],
            "multiscale_mode": "value",
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_type": "absolute_range",
            "crop_size": (384, 600),
            "allow_negative_crop": True,
        },
        {
            "type": "Resize",
            "img_scale": SHORT_SIDES,
            "multiscale_mode": "value",
            "override": True,
            "keep_ratio": True,
        },
    ],
]
FLIP = {"type": "RandomFlip", "flip_ratio": 0.5}
PIPELINES = {
    "single": [{"type": "Resize", "img_scale": (1333, 800), "keep_ratio": True}, FLIP],
    "multi": [FLIP, {"type": "AutoAugment", "policies": POLICIES}],
}


def transforms() -> None:
    """Pictures, boxes and masks after the pipelines' random steps, with the draws.

    `draws` has a row for each: the value, and the bounds (start, stop) that it was drawn from; the
    first is of the flip, and in "multi" the second of the policy. Of pixels and masks there is the
    SHA-256.
    """
    arrays: dict[str, Any] = {}
    rng = generator(11)
    smooth = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    picture = mmcv.imresize(smooth, (151, 113))
    boxes, labels = scene(rng, 6, (113, 151))
    boxes[0] += [-9, -5, 0, 0]
    masks = (rng.random((6, 113, 151)) < 0.5).astype(np.uint8)
    save_as = {
        "picture": picture,
        "boxes": boxes,
        "labels": labels,
        "masks": np.packbits(masks, -1),
    }
    for name, steps in PIPELINES.items():
        pipeline = Compose(steps)
        for seed in range(2 if name == "single" else 6):
            np.random.seed(seed)
            draws: list[list[int]] = []
            with drawing(draws):
                found = pipeline(
                    {
                        "img": picture.copy(),
                        "img_shape": picture.shape,
                        "ori_shape": picture.shape,
                        "img_fields": ["img"],
                        "bbox_fields": ["gt_bboxes"],
                        "mask_fields": ["gt_masks"],
                        "gt_bboxes": boxes.copy(),
                        "gt_labels": labels.copy(),
                        "gt_masks": BitmapMasks(masks.copy(), 113, 151),
                    }
                )
            key = f"{name}_{seed}"
            arrays[f"{key}_draws"] = draws
            arrays[f"{key}_shape"] = found["img"].shape
            arrays[f"{key}_boxes"] = found["gt_bboxes"]
            arrays[f"{key}_labels"] = found["gt_labels"]
            arrays[f"{key}_pixels_sha256"] = digest(found["img"])
            arrays[f"{key}_masks_sha256"] = digest(found["gt_masks"].masks)
            arrays[f"{key}_masks_shape"] = found["gt_masks"].masks.shape
    save("transforms", **save_as, **arrays)


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@contextmanager
def drawing(draws: list[list[int]]) -> Iterator[None]:
    """Record the draws of np.random's `choice` and `randint`."""
    choice, randint = np.random.choice, np.random.randint

    def choose(options: Any, **more: Any) -> Any:
        """The flip's directions (one or None), or the policies."""
        chosen = choice(len(options), **more)
        draws.append([int(chosen), 0, len(options)])
        return options[chosen]

    def draw(low: int, high: int | None = None, **more: Any) -> Any:
        value = randint(low, high, **more)
        draws.append([int(value), *((0, low) if high is None else (low, high))])
        return value

    np.random.choice, np.random.randint = choose, draw
    try:
        yield
    finally:
        np.random.choice, np.random.randint = choice, randint


def coco_scores() -> None:
    """The summaries of `CocoDataset.evaluate`: crowds, equal scores, a class that is nowhere."""
    rng = generator(12)
    images, annotations, results = [], [], []
    names = [f"class {number}" for number in range(CLASSES)]
    for number in range(20):
        height, width = (int(side) for side in rng.integers(100, 260, 2))
        images.append(
            {"id": 900 - 7 * number, "file_name": f"{number}.jpg", "width": width, "height": height}
        )
        boxes, labels = scene(rng, int(rng.integers(1, 7)), (height, width))
        labels = labels % (CLASSES - 1)
        boxes = boxes.round(2).astype(float)
        for box, label in zip(boxes, labels, strict=True):
            left, top, right, bottom = box.tolist()
            span = [right - left, bottom - top]
            crowd = bool(rng.random() < 0.15)
            outline: Any = [[left, top, right, top, right, bottom, left, bottom]]
            if crowd:
                code = mask_tools.frPyObjects(outline, height, width)[0]
                outline = {"size": [height, width], "counts": code["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": 10 * (CLASSES - int(label)),
                    "bbox": [left, top, *span],
                    "area": 0.8 * span[0] * span[1],
                    "iscrowd": int(crowd),
                    "segmentation": outline,
                }
            )
        guesses = np.concatenate([boxes, boxes[: len(boxes) // 2]])
        guesses = guesses + rng.normal(0, 2.5, guesses.shape)
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 2)
        classes = np.concatenate([labels, labels[: len(boxes) // 2]])
        classes = np.where(rng.random(len(classes)) < 0.2, (classes + 1) % CLASSES, classes)
        scores = rng.integers(2, 16, len(classes)) / 16
        order = np.argsort(-scores, kind="stable")
        results.append((guesses[order].astype(np.float32), scores[order], classes[order]))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": 10 * (CLASSES - number), "name": name} for number, name in enumerate(names)
        ],
    }
    outputs = []
    for image, (boxes, scores, labels) in zip(images, results, strict=True):
        found = np.concatenate([boxes, scores[:, None]], 1).astype(np.float32)
        masks = [[] for _ in names]
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels, strict=True):
            outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            code = mask_tools.frPyObjects(outline, image["height"], image["width"])[0]
            masks[label].append(code)
        outputs.append(([found[labels == number] for number in range(CLASSES)], masks))
    seen: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(content))
        dataset = coco_module.CocoDataset(str(path), [], classes=names, test_mode=True)
        with recorded(coco_module, "COCOeval", seen):
            dataset.evaluate(outputs, ["bbox", "segm"])
    save(
        "coco_scores",
        annotations=np.frombuffer(json.dumps(content).encode(), np.uint8),
        image=np.concatenate([np.full(len(one[1]), n) for n, one in enumerate(results)]),
        boxes=np.concatenate([one[0] for one in results]),
        scores=np.concatenate([one[1] for one in results]).astype(np.float32),
        labels=np.concatenate([one[2] for one in results]),
        bbox=seen[0].stats,
        segm=seen[1].stats,
    )


STEPS: tuple[Callable[[], None], ...] = (
    anchors,
    coder,
    nms,
    retinanet_test,
    rpn_test,
    roi_align,
    boxes_and_masks_test,
    assign,
    second_stage_loss,
    transforms,
    coco_scores,
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for step in STEPS:
        step()
    focal_loss.sigmoid_focal_loss = python_focal_loss
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    dense_loss("retinanet_loss", retina_head(), sizes, CLASSES, 8)
    sizes = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    dense_loss("rpn_loss", rpn_head(), sizes, 1, 9)


if __name__ == "__main__":
    main()
