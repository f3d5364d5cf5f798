"""Top-1, top-5 and loss, from scores per image: exact however the images are batched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mindtwins.errors import UserError


@dataclass(frozen=True)
class Metrics:
    """Result of an evaluation.

    Attributes:
        top1: percentage of images whose label has the highest logit.
        top5: percentage whose label is among the five highest (among all, if there are fewer).
        loss: mean cross entropy.
        images: number of images that counted.
    """

    top1: float
    top5: float
    loss: float
    images: int

    @property
    def score(self) -> float:
        """What the best weights are chosen by."""
        return self.top1

    def record(self) -> dict[str, float]:
        """The keys of the authors' logs."""
        return {"loss": self.loss, "acc1": self.top1, "acc5": self.top5}

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %"


class ImageScores:
    """Place of the label and cross entropy of every image of a set, added batch by batch.

    Attributes:
        label_rank: int64 (images,): how many classes come before the label; -1 for images not seen.
        loss: float64 (images,).
    """

    def __init__(self, images: int) -> None:
        self.label_rank = np.full(images, -1)
        self.loss = np.zeros(images)

    def add(self, index: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
        """Take in logits (n, classes) and labels (n,) of the images `index` (n,).

        Among equal logits the lower class comes first.
        """
        logits = logits.astype(np.float64)
        of_label = np.take_along_axis(logits, labels[:, None], 1)
        before = np.arange(logits.shape[1]) < labels[:, None]
        # Written so that a NaN counts as before the label: it is never right.
        ahead = ~((logits < of_label) | ((logits == of_label) & ~before))
        self.label_rank[index] = ahead.sum(1)
        highest = logits.max(1)
        normalizer = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
        self.loss[index] = normalizer - of_label[:, 0]

    def to_bytes(self) -> bytes:
        """The images seen so far, for `add_bytes` of another process."""
        seen = np.flatnonzero(self.label_rank >= 0)
        return b"".join(a.tobytes() for a in (seen, self.label_rank[seen], self.loss[seen]))

    def add_bytes(self, data: bytes) -> None:
        """Take in what another process has seen."""
        index, label_rank, loss = np.split(np.frombuffer(data, np.int64), 3)
        self.label_rank[index] = label_rank
        self.loss[index] = loss.view(np.float64)

    def metrics(self) -> Metrics:
        """Metrics over the images seen so far; sums are exact, so their order does not matter.

        Raises:
            UserError: there are none.
        """
        seen = self.label_rank >= 0
        images = int(seen.sum())
        if not images:
            raise UserError("no image was evaluated: none of them could be read")
        top1, top5 = (100 * int((self.label_rank[seen] < k).sum()) / images for k in (1, 5))
        return Metrics(top1, top5, math.fsum(self.loss[seen]) / images, images)
