"""Learning-rate schedules: functions of the step, with no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mindtwins.config import Config


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warmup, then half a cosine, both continuous and per step.

    The first step runs at `warmup_lr`, the first after the warmup at `peak`, and the rate would
    reach `floor` at the step after the last.
    """

    peak: float
    floor: float
    warmup_lr: float
    warmup_epochs: float
    epochs: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """Learning rate of an optimizer step, counted from 0 over the whole run."""
        epoch = step / self.steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.peak - self.warmup_lr) * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2

    def _warmed_up(self, rate: float, step: int) -> float:
        """A rate in the warmup: times a ramp, from warmup_lr / peak up to 1."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        if step < warmup_steps:
            rate *= 1 - (1 - step / warmup_steps) * (1 - self.warmup_lr / self.peak)
        return rate


@dataclass(frozen=True)
class CosinePerEpochSchedule(CosineSchedule):
    """The authors' schedule, which produced the published accuracies.

    It is timm's cosine of 2021, stepped after each epoch with that epoch's number: epochs 0 and 1
    both run at `warmup_lr`, epoch e at the value for e - 1. The cosine runs over all epochs, so the
    rate jumps a little below the peak where the warmup ends.
    """

    def __call__(self, step: int) -> float:
        """Learning rate of an optimizer step, counted from 0 over the whole run."""
        epoch = max(step // self.steps_per_epoch - 1, 0)
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.peak - self.warmup_lr) * epoch / self.warmup_epochs
        return (
            self.floor
            + (self.peak - self.floor) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        )


@dataclass(frozen=True)
class PolySchedule(CosineSchedule):
    """From the peak to the floor as (1 - done) ** power, per step; MMSegmentation's "poly".

    During the warmup that same curve is multiplied by a ramp, from warmup_lr / peak up to 1.
    """

    power: float

    def __call__(self, step: int) -> float:
        """Learning rate of an optimizer step, counted from 0 over the whole run."""
        done = step / (self.epochs * self.steps_per_epoch)
        rate = self.floor + (self.peak - self.floor) * (1 - done) ** self.power
        return self._warmed_up(rate, step)


@dataclass(frozen=True)
class StepSchedule(CosineSchedule):
    """A tenth of what is above the floor from each of some epochs on; MMDetection's "step".

    During the warmup that is multiplied by a ramp, from warmup_lr / peak up to 1.
    """

    lr_epochs: tuple[int, ...]

    def __call__(self, step: int) -> float:
        """Learning rate of an optimizer step, counted from 0 over the whole run."""
        passed = sum(step // self.steps_per_epoch >= epoch for epoch in self.lr_epochs)
        rate = self.floor + (self.peak - self.floor) * 0.1**passed
        return self._warmed_up(rate, step)


SCHEDULES = {
    "cosine": CosineSchedule,
    "cosine_per_epoch": CosinePerEpochSchedule,
    "poly": PolySchedule,
    "step": StepSchedule,
}


# What only one of them takes, and the option that says it.
OWN = {"poly": {"power": "poly_power"}, "step": {"lr_epochs": "lr_epochs"}}


def peak_learning_rate(config: Config, global_batch: int) -> float:
    """The peak rate: `lr`, in proportion to the global batch if `lr_reference_batch` is set."""
    if not config.lr_reference_batch:
        return config.lr
    return config.lr * global_batch / config.lr_reference_batch


def create_schedule(config: Config, steps_per_epoch: int, global_batch: int) -> CosineSchedule:
    """The schedule that a recipe states."""
    own = OWN.get(config.scheduler, {})
    return SCHEDULES[config.scheduler](
        peak=peak_learning_rate(config, global_batch),
        floor=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=config.warmup_epochs + config.warmup_steps / steps_per_epoch,
        epochs=config.epoch_size,
        steps_per_epoch=steps_per_epoch,
        **{field: getattr(config, name) for field, name in own.items()},
    )
