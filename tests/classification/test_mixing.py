from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from mindtwins.classification.mixing import Mixing
from mindtwins.data.sampler import batch_positions
from mindtwins.errors import UserError

CLASSES = 10
SIZE = 32


def flat_images(count: int) -> np.ndarray:
    """Return one-colored images, row i full of i, whose mixtures can be read off the pixels."""
    images = np.arange(count, dtype=np.float32)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(images, (count, 3, SIZE, SIZE)))


def mix(mixing: Mixing, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    images = flat_images(count)
    targets = mixing(
        images,
        np.arange(count) % CLASSES,
        seed=5,
        step=step,
        positions=np.arange(count),
        global_batch=count,
    )
    return images, targets


def read_off(image: np.ndarray, own: int, partner: int) -> tuple[str, float]:
    """Tell from the pixels how an image was mixed, and what share of it is its own.

    Asserts that the pixels are a possible result of one of the kinds.
    """
    assert (image == image[:1]).all()
    plane = image[0]
    if (plane == own).all():
        return "none", 1.0
    if np.isin(plane, (own, partner)).all():
        rows, columns = (np.flatnonzero((plane == partner).any(axis=axis)) for axis in (1, 0))
        assert (plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == partner).all()
        return "cutmix", float((plane == own).mean())
    assert (plane == plane[0, 0]).all()
    return "mixup", float((plane[0, 0] - partner) / (own - partner))


def observe(mixing: Mixing, count: int, steps: int) -> Iterator[list[tuple[str, float]]]:
    """Yield per step how each row was mixed."""
    for step in range(steps):
        images, _ = mix(mixing, count, step)
        yield [read_off(images[i], i, count - 1 - i) for i in range(count)]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_follow_the_pixels(mode: str, kind: tuple[float, float]) -> None:
    smoothed = np.full((12, CLASSES), 0.1 / CLASSES)
    smoothed[np.arange(12), np.arange(12) % CLASSES] += 0.9
    mixing = Mixing(CLASSES, 0.1, *kind, mode=mode)
    for step in range(15):
        images, targets = mix(mixing, 12, step)
        kept = np.array([[read_off(images[i], i, 11 - i)[1]] for i in range(12)])
        expected = kept * smoothed + (1 - kept) * smoothed[::-1]
        assert targets.dtype == np.float32
        np.testing.assert_allclose(targets, expected, atol=2e-6)
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_targets_without_mixing() -> None:
    images, targets = mix(Mixing(CLASSES, 0.1, 0.0, 0.0), 7, 0)
    np.testing.assert_array_equal(images, flat_images(7))
    expected = np.full((7, CLASSES), 0.01)
    expected[np.arange(7), np.arange(7)] = 0.91
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


def test_who_shares_a_draw() -> None:
    for rows in observe(Mixing(CLASSES, mode="batch"), 8, 20):
        assert len({kind for kind, _ in rows}) == 1
        assert np.ptp([kept for _, kept in rows]) < 1e-5
    distinct = {"pair": set(), "elem": set()}
    for mode, seen in distinct.items():
        for rows in observe(Mixing(CLASSES, cutmix_alpha=0.0, mode=mode), 8, 20):
            seen.add(len({round(kept, 4) for _, kept in rows}))
            if mode == "pair":
                np.testing.assert_allclose(
                    [k for _, k in rows], [k for _, k in rows[::-1]], atol=1e-5
                )
    assert max(distinct["pair"]) == 4
    assert max(distinct["elem"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_probabilities(mode: str) -> None:
    mixing = Mixing(CLASSES, prob=0.6, switch_prob=0.3, mode=mode)
    count, steps = (2, 4000) if mode == "batch" else (100, 80)
    kinds = np.array([rows[i][0] for rows in observe(mixing, count, steps) for i in range(count)])
    # A box of no pixel or a lambda of 1 looks like "none"; both are rare.
    assert np.mean(kinds == "none") == pytest.approx(0.4, abs=0.035)
    assert np.mean(kinds == "mixup") == pytest.approx(0.6 * 0.7, abs=0.035)
    assert np.mean(kinds == "cutmix") == pytest.approx(0.6 * 0.3, abs=0.035)


def kept_shares(mixing: Mixing) -> np.ndarray:
    return np.array([kept for rows in observe(mixing, 100, 50) for _, kept in rows])


def test_mixup_lambda_is_beta() -> None:
    shares = kept_shares(Mixing(CLASSES, cutmix_alpha=0.0, mode="elem"))
    assert stats.kstest(shares, stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(shares, stats.beta(1.2, 1.2).cdf).pvalue < 1e-4  # the test can tell


def test_cutmix_area_is_timms(timm_module: Callable[[str], ModuleType]) -> None:
    timm = timm_module("mixup")
    shares = kept_shares(Mixing(CLASSES, mixup_alpha=0.0, mode="elem"))
    np.random.seed(0)
    expected = [
        timm.cutmix_bbox_and_lam((3, SIZE, SIZE), np.random.beta(1.0, 1.0))[1] for _ in range(5000)
    ]
    assert stats.ks_2samp(shares, expected).pvalue > 0.01
    uncorrected = stats.beta(1.0, 1.0).rvs(5000, random_state=0)
    assert stats.ks_2samp(shares, uncorrected).pvalue < 1e-4  # clipping matters


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("shards", "batch_size"), [(2, 8), (4, 4), (8, 2)])
def test_shards_give_what_the_whole_batch_gives(mode: str, shards: int, batch_size: int) -> None:
    mixing = Mixing(CLASSES, mode=mode)
    for step in range(6):
        images, targets = mix(mixing, 16, step)
        for shard in range(shards):
            positions = batch_positions(batch_size, shard, shards)
            own_images = flat_images(16)[positions]
            own_targets = mixing(
                own_images,
                positions % CLASSES,
                seed=5,
                step=step,
                positions=positions,
                global_batch=16,
            )
            np.testing.assert_array_equal(own_images, images[positions])
            np.testing.assert_array_equal(own_targets, targets[positions])


def mix_shards(
    mixing: Mixing, ranks: int, step: int, accumulation: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images and positions of each rank's first micro-batch of a global batch of 32."""
    shards = []
    for rank in range(ranks):
        for micro in range(accumulation):
            count = ranks * accumulation
            positions = batch_positions(32 // count, micro * ranks + rank, count)
            images = flat_images(32)[positions]
            mixing(
                images,
                positions % CLASSES,
                seed=5,
                step=step,
                positions=positions,
                global_batch=32,
                rank=rank,
            )
            shards.append((images, positions))
    return shards


def shard_kinds(shards: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, float]]:
    """How each shard was mixed; asserts that all of it was mixed alike."""
    kinds = []
    for images, positions in shards:
        found = [
            read_off(image, position, 31 - position)
            for image, position in zip(images, positions, strict=True)
        ]
        assert len({kind for kind, _ in found}) == 1
        assert np.ptp([kept for _, kept in found]) < 1e-4
        kinds.append(found[0])
    return kinds


@pytest.mark.slow
def test_each_rank_draws_its_own_as_the_authors_processes_did() -> None:
    """A step of 8 ranks has both kinds, and its mean lambda varies an eighth as much."""
    means = {}
    for draws in ("rank", "global"):
        steps = [shard_kinds(mix_shards(Mixing(CLASSES, draws=draws), 8, s)) for s in range(150)]
        mixed = np.mean([len({kind for kind, _ in step}) > 1 for step in steps])
        means[draws] = np.var([np.mean([kept for _, kept in step]) for step in steps])
        assert mixed > 0.95 if draws == "rank" else mixed == 0
    assert means["rank"] / means["global"] == pytest.approx(1 / 8, rel=0.5)


def test_a_rank_s_micro_batches_share_its_draw() -> None:
    for step in range(5):
        shards = mix_shards(Mixing(CLASSES, draws="rank"), 2, step, accumulation=2)
        first, again, second, once_more = shard_kinds(shards)
        assert first[0] == again[0] and first[1] == pytest.approx(again[1], abs=1e-4)
        assert second[0] == once_more[0] and second[1] == pytest.approx(once_more[1], abs=1e-4)
        assert first[1] != pytest.approx(second[1], abs=1e-6)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_lone_rank_draws_for_all(mode: str) -> None:
    for step in range(5):
        ours, theirs = (
            mix(Mixing(CLASSES, mode=mode, draws=draws), 12, step) for draws in ("rank", "global")
        )
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_other_modes_do_not_depend_on_the_ranks(mode: str) -> None:
    whole, _ = mix(Mixing(CLASSES, mode=mode, draws="rank"), 32, 3)
    for images, positions in mix_shards(Mixing(CLASSES, mode=mode, draws="rank"), 4, 3):
        np.testing.assert_array_equal(images, whole[positions])


def test_same_step_same_mixture_other_step_another() -> None:
    mixing = Mixing(CLASSES)
    np.testing.assert_array_equal(mix(mixing, 8, 3)[0], mix(mixing, 8, 3)[0])
    assert (mix(mixing, 8, 3)[0] != mix(mixing, 8, 4)[0]).any()


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "half"},
        {"draws": "host"},
        {"mixup_alpha": -1.0},
        {"prob": 1.5},
        {"label_smoothing": -0.1},
    ],
)
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match=str(next(iter(bad.values())))):
        Mixing(CLASSES, **bad)
