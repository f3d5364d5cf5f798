"""Learning-rate schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from mindtwins.config import TrainConfig
from mindtwins.training.schedule import (
    CosinePerEpochSchedule,
    CosineSchedule,
    create_schedule,
    peak_learning_rate,
)


def per_epoch(peak: float, warmup: int) -> CosinePerEpochSchedule:
    return CosinePerEpochSchedule(peak, 1e-5, 1e-6, warmup, 300, steps_per_epoch=10)


# As the authors' logs print them.
@pytest.mark.parametrize(
    ("peak", "warmup", "first_epoch", "logged"),
    [
        (
            2e-3,
            5,
            0,
            ["1e-6", "1e-6", "4.008e-4", "8.006e-4", "1.2004e-3", "1.6002e-3"],
        ),
        (2e-3, 5, 6, ["1.9986e-3", "1.9980e-3"]),
        (1e-3, 20, 0, ["1e-6", "1e-6", "5.1e-5", "1.009e-4", "1.509e-4"]),
        (1e-3, 5, 299, ["1.01086e-5"]),
    ],
)
def test_per_epoch_schedule_gives_the_rates_of_the_authors_logs(
    peak: float, warmup: int, first_epoch: int, logged: list[str]
):
    schedule = per_epoch(peak, warmup)
    for epoch, text in enumerate(logged, start=first_epoch):
        mantissa = text.split("e")[0]
        digits = len(mantissa.split(".")[1]) if "." in mantissa else 0
        half_a_digit = 0.5 * 10 ** (-digits + int(text.split("e")[1]))
        for step in (10 * epoch, 10 * epoch + 9):
            assert abs(schedule(step) - float(text)) <= 1.02 * half_a_digit


def test_per_step_cosine_is_continuous_and_hits_its_ends():
    schedule = CosineSchedule(1e-3, 1e-5, 1e-6, 2, 10, steps_per_epoch=100)
    assert schedule(0) == 1e-6
    assert schedule(100) == pytest.approx((1e-6 + 1e-3) / 2)
    assert schedule(200) == pytest.approx(1e-3)
    assert schedule(600) == pytest.approx((1e-3 + 1e-5) / 2)
    assert schedule(1000) == pytest.approx(1e-5)
    rates = [schedule(step) for step in range(1001)]
    largest_jump = max(abs(a - b) for a, b in pairwise(rates))
    assert largest_jump < 6e-6
    assert rates[:201] == sorted(rates[:201]) and rates[200:] == sorted(rates[200:], reverse=True)


def test_no_warmup():
    schedule = CosineSchedule(1.0, 0.0, 0.5, 0, 4, steps_per_epoch=1)
    expected = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [schedule(step) for step in range(4)] == pytest.approx(expected)


def test_the_recipe_picks_schedule_and_scales_the_rate():
    config = TrainConfig(lr=5e-4, lr_reference_batch=512, scheduler="cosine_per_epoch")
    assert peak_learning_rate(config, 2048) == 2e-3
    schedule = create_schedule(config, steps_per_epoch=626, global_batch=2048)
    assert isinstance(schedule, CosinePerEpochSchedule) and schedule.peak == 2e-3
    assert peak_learning_rate(TrainConfig(lr=5e-4), 2048) == 5e-4


def test_poly_of_the_segmentation_recipes():
    # UPerNet: 160k steps, power 1, warmup of 1500 steps from 1e-6 of the peak.
    config = TrainConfig(
        scheduler="poly",
        epoch_size=10,
        epoch_steps=16000,
        lr=6e-5,
        min_lr=0.0,
        poly_power=1.0,
        warmup_epochs=0,
        warmup_steps=1500,
        warmup_lr=6e-11,
    )
    schedule = create_schedule(config, 16000, 16)
    assert schedule(0) == pytest.approx(6e-11)
    # Halfway up the ramp: the curve there, times the ramp.
    assert schedule(750) == pytest.approx(6e-5 * (1 - 750 / 160000) * (1 - 0.5 * (1 - 1e-6)))
    assert schedule(1500) == pytest.approx(6e-5 * (1 - 1500 / 160000))
    assert schedule(80000) == pytest.approx(3e-5)
    assert schedule(159999) == pytest.approx(6e-5 / 160000)
    # FPN: 80k steps, power 0.9, floor 1e-6, no warmup.
    config = TrainConfig(
        scheduler="poly", epoch_size=10, lr=1e-4, min_lr=1e-6, poly_power=0.9, warmup_epochs=0
    )
    schedule = create_schedule(config, 8000, 32)
    assert schedule(0) == pytest.approx(1e-4)
    assert schedule(40000) == pytest.approx(1e-6 + 9.9e-5 * 0.5**0.9)
    assert schedule(80000) == pytest.approx(1e-6)


def test_steps_of_the_detection_recipes():
    # MMDetection's "step" policy: a tenth from epochs 8 and 11 on, warmup from a ratio of 0.001.
    config = TrainConfig(
        scheduler="step",
        lr_epochs=(8, 11),
        epoch_size=12,
        lr=1e-4,
        min_lr=0.0,
        warmup_epochs=0,
        warmup_steps=500,
        warmup_lr=1e-7,
    )
    schedule = create_schedule(config, 7330, 16)
    for step in (0, 1, 250, 499):
        assert schedule(step) == pytest.approx(1e-4 * (1 - (1 - step / 500) * 0.999))
    assert schedule(500) == schedule(8 * 7330 - 1) == 1e-4
    assert schedule(8 * 7330) == schedule(11 * 7330 - 1) == pytest.approx(1e-5)
    assert schedule(11 * 7330) == schedule(12 * 7330 - 1) == pytest.approx(1e-6)
