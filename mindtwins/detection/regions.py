"""The regions that a Mask R-CNN learns from: chosen anew in every step, among what it proposes.

As in MMDetection 2.8.0 the proposals are constants to the gradient. How many there are is known
only when they have been computed, so a first graph gives the proposals' numbers, the choice is made
on arrays, and the graph that is differentiated takes the regions as its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from mindspore import Tensor, nn

from mindtwins.detection.assignment import (
    MASK_SIDE,
    SECOND_STAGE_SAMPLING,
    UNDECIDED,
    Permute,
    Sampling,
    mask_targets,
    sample_regions,
)
from mindtwins.detection.mask_rcnn import STDS, MaskRCNN, as_rois
from mindtwins.training.step import MicroBatch

TRAINING_CANDIDATES = 2000  # of a level, before suppression


class RegionChoice:
    """Completes a batch of `build_detection_training_loader` for `MaskRCNNLoss`.

    Args:
        model: which proposes the regions, with the stochastic depth that the step has.
        sampling: how many regions of a picture are learned from.
    """

    def __init__(self, model: MaskRCNN, sampling: Sampling = SECOND_STAGE_SAMPLING) -> None:
        self._model = model
        self._sampling = sampling
        self._graph = _Proposals(model).set_train()

    def __call__(self, batch: MicroBatch) -> MicroBatch:
        """The batch whose targets are those of anchors and regions."""
        *anchors, boxes, labels, sizes, masks, seeds = batch.targets
        real = [own >= 0 for own in labels]
        proposed = self._propose(batch, sizes)
        if proposed is None:
            # Neither is the loss to be finite, which it could be by what is not learned from.
            labels_of_anchors, deltas = anchors
            anchors = [labels_of_anchors, np.full_like(deltas, np.nan)]
            proposed = [np.zeros((0, 4), np.float32)] * len(sizes)
        regions = stack_regions(
            proposed,
            [own[rows] for own, rows in zip(boxes, real, strict=True)],
            [own[rows] for own, rows in zip(labels, real, strict=True)],
            list(masks),
            self._model.num_classes,
            self._sampling,
            [np.random.Generator(np.random.Philox(int(seed))).permutation for seed in seeds],
        )
        return replace(batch, targets=(*anchors, *regions))

    def _propose(self, batch: MicroBatch, sizes: np.ndarray) -> list[np.ndarray] | None:
        """The proposals (n, 4) of each picture; None if their numbers are not finite."""
        mask = batch.drop_path_mask
        outputs = self._graph(Tensor(batch.images), None if mask is None else Tensor(mask))
        logits, deltas = (
            [level.asnumpy().astype(np.float32, copy=False) for level in levels]
            for levels in outputs
        )
        if not all(np.isfinite(level).all() for level in (*logits, *deltas)):
            return None
        extents = [(int(height), int(width)) for height, width in sizes]
        return self._model.propose(
            logits, deltas, batch.images.shape[2:], extents, TRAINING_CANDIDATES
        )


def stack_regions(
    proposals: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    num_classes: int,
    sampling: Sampling,
    permutes: Sequence[Permute],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose regions of b pictures, and what is to be said of them.

    Args:
        proposals: (n, 4) of each picture.
        boxes: of its objects, (m, 4).
        labels: their classes, (m,).
        masks: uint8 (m or more, H, W), padded as the images are.
        num_classes: without the background.
        sampling: how many regions r are chosen, and which part of them may be of objects.
        permutes: draws them, see `sample`.

    Returns:
        The regions, float32 (b, r, 5), image -1 where there are fewer; their labels, int32 (b, r),
        and -1; their deltas, float32 (b, r, 4); and the masks of the most that may be of objects,
        uint8 (b, p, 28, 28).
    """
    pictures, count = len(proposals), sampling.count
    chosen = [
        sample_regions(found, own, classes, num_classes, STDS, permute, sampling)
        for found, own, classes, permute in zip(proposals, boxes, labels, permutes, strict=True)
    ]
    of_regions = np.full((pictures, count), UNDECIDED, dtype=np.int32)
    deltas = np.zeros((pictures, count, 4), dtype=np.float32)
    drawn = np.zeros((pictures, sampling.most_positive, MASK_SIDE, MASK_SIDE), dtype=np.uint8)
    for row, (regions, own) in enumerate(zip(chosen, masks, strict=True)):
        of_regions[row, : len(regions.labels)] = regions.labels
        deltas[row, : len(regions.deltas)] = regions.deltas
        positive = len(regions.numbers)
        drawn[row, :positive] = mask_targets(regions.boxes[:positive], regions.numbers, own)
    rois = as_rois([regions.boxes for regions in chosen], count)
    return rois.reshape(pictures, count, 5), of_regions, deltas, drawn


class _Proposals(nn.Cell):
    """The logits and deltas of a model's proposals, as a graph of its own."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(
        self, images: Tensor, drop_path_mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        _, logits, deltas = self.model(images, drop_path_mask)
        return logits, deltas
