"""Mixup, CutMix and label smoothing, defined over the global batch.

Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.
CutMix: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers", arXiv 1905.04899.

Each image is mixed with its mirror in the global batch (position g with B - 1 - g), as timm does
within a process. The draws belong to the step and the position, not to the process, and
`sampler.batch_positions` keeps both partners on one rank, so the result does not depend on how a
global batch is spread over ranks and micro-batches.

One mode depends on the ranks, and is the recipes' default: mode "batch" with draws by "rank", a
kind and a lambda for each rank's part of a step. So did the authors' 8 processes. One draw for all
of a step would let a step's mean lambda vary sqrt(8) times as much, and make a step all mixup or
all CutMix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindtwins.data.randomness import Purpose, generator_at
from mindtwins.errors import UserError

# Who shares one draw (lambda, kind and box), as a map from positions in a global batch of the given
# size to the index of the draw.
_SHARED_BY: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "batch": lambda positions, size: np.zeros_like(positions),
    "pair": lambda positions, size: np.minimum(positions, size - 1 - positions),
    "elem": lambda positions, size: positions,
}


@dataclass(frozen=True)
class Mixing:
    """Mixes a batch in place and gives its soft targets; the options have timm's meaning.

    Args:
        num_classes: width of the targets.
        label_smoothing: the targets' off value is label_smoothing / num_classes.
        mixup_alpha: lambda ~ Beta(alpha, alpha) for mixup; 0 turns mixup off.
        cutmix_alpha: the same for CutMix; 0 turns CutMix off.
        prob: probability that a batch, pair or element is mixed at all.
        switch_prob: probability of CutMix where both are on.
        mode: "batch", "pair" or "elem": what shares one draw.
        draws: whether with mode "batch" that is a rank's part of the global batch ("rank") or all
            of it ("global"). For a lone rank they are the same.

    Raises:
        UserError: a value is outside its range.
    """

    num_classes: int
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    draws: str = "global"

    def __post_init__(self) -> None:
        if self.mode not in _SHARED_BY:
            raise UserError(f"unknown mixing mode {self.mode!r}: use {', '.join(_SHARED_BY)}")
        if self.draws not in ("rank", "global"):
            raise UserError(f"unknown mixing draws {self.draws!r}: use rank, global")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0")
        for name in ("label_smoothing", "prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie in 0 to 1")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all (otherwise only the labels are smoothed)."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.prob > 0

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int,
        step: int,
        positions: np.ndarray,
        global_batch: int,
        rank: int = 0,
    ) -> np.ndarray:
        """Mix a micro-batch.

        Args:
            images: float32 (b, c, h, w), changed in place; row i's partner is row b - 1 - i.
            labels: integers (b,).
            seed: of the run.
            step: the optimizer step.
            positions: int64 (b,), the rows' positions in the global batch.
            global_batch: images in the global batch.
            rank: whose micro-batch it is.

        Returns:
            float32 (b, num_classes): the soft targets.
        """
        targets = self._smooth(labels)
        if not self.mixes:
            return targets
        stream = rank if self.mode == "batch" and self.draws == "rank" else 0
        rng = generator_at(seed, Purpose.MIXING, step, stream)
        _, _, height, width = images.shape
        kept, boxes = self._draw(rng, positions, global_batch, (height, width))
        _mix_images(images, kept, boxes)
        weight = kept[:, None]
        return targets * weight + targets[::-1] * (np.float32(1) - weight)

    def _smooth(self, labels: np.ndarray) -> np.ndarray:
        off = self.label_smoothing / self.num_classes
        targets = np.full((len(labels), self.num_classes), off, dtype=np.float32)
        targets[np.arange(len(labels)), labels] = 1 - self.label_smoothing + off
        return targets

    def _draw(
        self,
        rng: np.random.Generator,
        positions: np.ndarray,
        global_batch: int,
        size: tuple[int, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw each row's share of its own image, float32 (b,), and CutMix box, int64 (b, 4).

        Rows that are not cut have an empty box. Every draw is made for the whole global batch, so
        that a row finds its own wherever it is processed.
        """
        height, width = size
        cut_prob = self.switch_prob if self.mixup_alpha > 0 else 1.0
        cut = (rng.random(global_batch) < cut_prob) & (self.cutmix_alpha > 0)
        # Beta needs alpha > 0; where a kind is off, its draws are not used.
        mixup_alpha, cutmix_alpha = self.mixup_alpha or 1.0, self.cutmix_alpha or 1.0
        mixup_kept = rng.beta(mixup_alpha, mixup_alpha, size=global_batch)
        cutmix_kept = rng.beta(cutmix_alpha, cutmix_alpha, size=global_batch)
        applied = rng.random(global_batch) < self.prob
        center_y = rng.integers(0, height, size=global_batch)
        center_x = rng.integers(0, width, size=global_batch)

        kept = np.where(applied, np.where(cut, cutmix_kept, mixup_kept), 1.0)
        side = np.sqrt(1.0 - kept)
        boxes = np.stack(
            [*_interval(center_y, side, height), *_interval(center_x, side, width)], axis=1
        )
        boxes[~(cut & applied)] = 0
        # The border clips boxes, so what counts is the area that was really replaced.
        area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        kept = np.where(cut & applied, 1.0 - area / (height * width), kept)

        draw = _SHARED_BY[self.mode](positions, global_batch)
        return kept[draw].astype(np.float32), boxes[draw]


def _interval(center: np.ndarray, side: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop, clipped to [0, length], of intervals of `side` times `length`."""
    extent = (length * side).astype(np.int64)
    start = np.clip(center - extent // 2, 0, length)
    return start, np.clip(center + (extent + 1) // 2, 0, length)


def _mix_images(images: np.ndarray, kept: np.ndarray, boxes: np.ndarray) -> None:
    """Mix every row with its partner: by its box where that is not empty, by its share otherwise.

    Partners are handled together, so only one image at a time has to be copied.
    """
    last = len(images) - 1
    for i in range(len(images) // 2):
        original = images[i].copy()
        _mix_one(images[i], images[last - i], kept[i], boxes[i])
        _mix_one(images[last - i], original, kept[last - i], boxes[last - i])


def _mix_one(image: np.ndarray, partner: np.ndarray, kept: np.float32, box: np.ndarray) -> None:
    top, bottom, left, right = box
    if bottom > top and right > left:
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    elif kept != 1:
        image *= kept
        image += partner * (np.float32(1) - kept)
