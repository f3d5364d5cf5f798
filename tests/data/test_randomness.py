from __future__ import annotations

import itertools

import numpy as np

from mindtwins.data.randomness import Purpose, generator_at, sample_generator


def test_same_place_same_draws() -> None:
    first, second = sample_generator(7, 3, 11), sample_generator(7, 3, 11)
    np.testing.assert_array_equal(first.random(100), second.random(100))


def test_every_place_has_its_own_stream() -> None:
    seeds, places = (0, 1, 2**63), (0, 1, 2, 300, 1_281_166)
    draws = {
        generator_at(seed, purpose, epoch, index).integers(2**63)
        for seed, purpose, epoch, index in itertools.product(seeds, Purpose, places, places)
    }
    assert len(draws) == len(seeds) * len(Purpose) * len(places) ** 2


def test_first_draws_of_neighbors_are_independent() -> None:
    draws = np.array([sample_generator(0, 0, index).random(2) for index in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.05
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.05


def test_streams_are_pinned() -> None:
    # A changed stream would make a resumed run silently see other pictures.
    assert sample_generator(1, 2, 3).integers(1000, size=4).tolist() == [942, 360, 239, 90]
