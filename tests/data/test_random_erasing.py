from __future__ import annotations

import numpy as np
import pytest

from mindtwins.data.random_erasing import RandomErasing
from mindtwins.errors import UserError


def erased(erasing: RandomErasing, seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Erase a picture of sevens (a value no draw produces)."""
    image = np.full((3, *size), 7.0, dtype=np.float32)
    erasing(image, np.random.default_rng(seed))
    return image


def rectangle(image: np.ndarray) -> np.ndarray:
    """Return the erased (3, rows, columns), asserting that it is one full rectangle."""
    rows = np.flatnonzero((image != 7).any(axis=(0, 2)))
    columns = np.flatnonzero((image != 7).any(axis=(0, 1)))
    inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (inside != 7).all()
    return inside


def test_probability() -> None:
    changed = [(erased(RandomErasing(prob=0.25), seed) != 7).any() for seed in range(4000)]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.02)


def test_probability_zero_and_one() -> None:
    assert not any((erased(RandomErasing(prob=0.0), seed) != 7).any() for seed in range(50))
    assert all((erased(RandomErasing(prob=1.0), seed) != 7).any() for seed in range(50))


def test_area_and_aspect() -> None:
    shapes = np.array(
        [rectangle(erased(RandomErasing(prob=1.0), seed)).shape[1:] for seed in range(3000)]
    )
    areas = shapes.prod(axis=1) / 64**2
    log_aspects = np.log(shapes[:, 0] / shapes[:, 1])
    # Rounding to whole pixels blurs the limits a little. The largest, longest rectangles do not
    # fit and are drawn again, which lowers the mean area a little below (0.02 + 1/3) / 2 = 0.177.
    assert 0.015 < areas.min() < 0.025
    assert 0.32 < areas.max() < 0.34
    assert areas.mean() == pytest.approx(0.176, abs=0.008)
    np.testing.assert_allclose(np.abs(log_aspects).max(), np.log(1 / 0.3), atol=0.15)
    assert log_aspects.mean() == pytest.approx(0.0, abs=0.05)
    assert log_aspects.std() == pytest.approx(2 * np.log(1 / 0.3) / np.sqrt(12), abs=0.04)


def test_place_is_uniform() -> None:
    hits = np.zeros((64, 64))
    for seed in range(3000):
        hits += (erased(RandomErasing(prob=1.0, mode="const"), seed) != 7)[0]
    assert hits[0, 0] > 0 and hits[-1, -1] > 0
    np.testing.assert_allclose(hits, hits[::-1, ::-1], atol=140)


def test_const_fills_zero() -> None:
    assert (rectangle(erased(RandomErasing(1.0, "const"), 0)) == 0).all()


def test_rand_fills_one_normal_color() -> None:
    colors = []
    for seed in range(1000):
        inside = rectangle(erased(RandomErasing(1.0, "rand"), seed))
        assert (inside == inside[:, :1, :1]).all()
        colors.append(inside[:, 0, 0])
    assert np.mean(colors) == pytest.approx(0.0, abs=0.06)
    assert np.std(colors) == pytest.approx(1.0, abs=0.05)


def test_pixel_fills_normal_noise() -> None:
    pixels = np.concatenate(
        [rectangle(erased(RandomErasing(1.0, "pixel"), seed)).ravel() for seed in range(50)]
    )
    assert pixels.mean() == pytest.approx(0.0, abs=0.02)
    assert pixels.std() == pytest.approx(1.0, abs=0.02)
    assert len(np.unique(pixels)) > 0.9 * len(pixels)


def test_count_shares_the_area() -> None:
    one = [(erased(RandomErasing(1.0, "const"), seed) != 7).mean() for seed in range(1500)]
    three = [(erased(RandomErasing(1.0, "const", 3), seed) != 7).mean() for seed in range(1500)]
    # Up to three rectangles of area / count: the same area in all, less where they overlap.
    assert 0.85 * np.mean(one) < np.mean(three) < np.mean(one)
    assert np.std(three) < np.std(one)


def test_picture_that_is_too_small_stays() -> None:
    image = erased(RandomErasing(1.0, "const"), 0, size=(1, 1))
    assert (image == 7).all()


@pytest.mark.parametrize("bad", [{"mode": "noise"}, {"prob": 1.5}, {"count": 0}])
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match=str(next(iter(bad.values())))):
        RandomErasing(**bad)
