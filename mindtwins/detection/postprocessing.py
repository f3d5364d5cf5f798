"""From a detector's numbers to the boxes that are kept.

How many there are is known only when it has been computed, so this runs on arrays between the
graphs, whose shapes are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mindtwins.detection.boxes import decode
from mindtwins.errors import UserError
from mindtwins.layers import suppress

# As all of the published configurations test.
CANDIDATES = 1000  # per level, before suppression
SCORE_THRESHOLD = np.float32(0.05)
OVERLAP_THRESHOLD = 0.5
MOST_DETECTIONS = 100

_CHOICES = {
    "top_k": ("anchors", "pairs"),
    "suppression": ("picture", "network"),
    "scaling": ("division", "reciprocal"),
    "empty_boxes": ("kept", "dropped"),
}


@dataclass(frozen=True)
class PostProcessing:
    """In what MMDetection's versions differ after the network.

    The defaults are version 2.8.0's, with which the published numbers were made.

    Attributes:
        top_k: what a level's best 1000 are counted in, of RetinaNet: "anchors" by their likeliest
            class, or "pairs" of an anchor and a class that are above the threshold (later).
        suppression: whose pixels the boxes of Mask R-CNN are suppressed in: those of the original
            "picture" (2.8.0), or of the "network"'s input (3.x).
        scaling: how RetinaNet's boxes come back to the original picture: by "division" by the
            factors, or by multiplication with each one's "reciprocal" (3.x).
        empty_boxes: whether proposals and RetinaNet's boxes that clipping left no area are "kept"
            (2.8.0) or "dropped" (later).
    """

    top_k: str = "anchors"
    suppression: str = "picture"
    scaling: str = "division"
    empty_boxes: str = "kept"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), _CHOICES[field.name]
            if value not in choices:
                raise UserError(
                    f"{field.name} is {value!r}; it must be one of {', '.join(choices)}"
                )

    def rescale(self, boxes: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
        """RetinaNet's boxes in the original picture's pixels."""
        if self.scaling == "division":
            return boxes / scale_factor
        return boxes * (1 / scale_factor.astype(np.float64)).astype(np.float32)

    def not_empty(self, boxes: np.ndarray) -> np.ndarray:
        """Which boxes (n, 4) are not to be dropped for having no area, bool (n,)."""
        if self.empty_boxes == "kept":
            return np.ones(len(boxes), bool)
        return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


VERSIONS = {
    "2.8.0": PostProcessing(),
    "3.x": PostProcessing("pairs", "network", "reciprocal", "dropped"),
}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In float32, without overflow."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, e) / (1 + e)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of scores (n,), the highest first; of equals the first."""
    if count < len(scores):
        # All that could be among them, which are fewer to sort.
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
    return np.argsort(-scores, kind="stable")


def suppress_by_class(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float
) -> np.ndarray:
    """Indices of the boxes that are kept, best first; boxes of other classes do not count.

    As mmcv's batched_nms: each class is shifted away from the others by its number times the
    largest coordinate plus 1, in float32, which rounds the coordinates.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    shift = classes.astype(np.float32) * (boxes.max() + np.float32(1))
    shifted = boxes + shift[:, None]
    kept = []
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        kept.append(own[suppress(shifted[own], scores[own], threshold)])
    # By place and then by score: as if all had been sorted at once.
    found = np.sort(np.concatenate(kept))
    return found[np.argsort(-scores[found], kind="stable")]


def select(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes, scores and labels of the at most 100 detections among candidates of each class."""
    kept = suppress_by_class(boxes, scores, labels, OVERLAP_THRESHOLD)[:MOST_DETECTIONS]
    return boxes[kept], scores[kept], labels[kept].astype(np.int64)


def level_pairs(
    logits: np.ndarray, postprocessing: PostProcessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (anchors, classes) of a level -> anchor, class and score of its candidates."""
    if postprocessing.top_k == "anchors":
        anchors = np.arange(len(logits))
        if len(logits) > CANDIDATES:
            anchors = best(logits.max(1), CANDIDATES)
        scores = sigmoid(logits[anchors])
        rows, classes = np.nonzero(scores > SCORE_THRESHOLD)
        return anchors[rows], classes, scores[rows, classes]
    scores = sigmoid(logits)
    rows, classes = np.nonzero(scores > SCORE_THRESHOLD)
    found = scores[rows, classes]
    first = best(found, CANDIDATES)
    return rows[first], classes[first], found[first]


def proposals(
    objectness: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    height: int,
    width: int,
    postprocessing: PostProcessing,
    per_level: int,
    overlap: float,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A region proposal network's boxes (n, 4) and scores (n,), best first.

    Args:
        objectness: logits (anchors,) of each level.
        deltas: (anchors, 4) of each level.
        anchors: (anchors, 4) of each level.
        height, width: of the resized picture, which boxes are clipped to.
        per_level: how many candidates a level may have.
        overlap: above which a box suppresses another of its level.
        most: how many boxes there may be in all.
    """
    boxes, scores, levels = [], [], []
    for level, (logits, moves, places) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        chosen = np.arange(len(logits))
        if len(logits) > per_level:
            chosen = best(logits, per_level)
        boxes.append(decode(places[chosen], moves[chosen], (1, 1, 1, 1), height, width))
        scores.append(sigmoid(logits[chosen]))
        levels.append(np.full(len(chosen), level))
    candidates, likely = np.concatenate(boxes), np.concatenate(scores)
    whole = postprocessing.not_empty(candidates)
    candidates, likely, level_of = candidates[whole], likely[whole], np.concatenate(levels)[whole]
    kept = suppress_by_class(candidates, likely, level_of, overlap)[:most]
    return candidates[kept], likely[kept]
