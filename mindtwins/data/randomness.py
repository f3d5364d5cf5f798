"""Every random draw of a run as a pure function of where it happens.

Philox is a counter-based generator: a key and a 256-bit counter name one block of its stream. The
seed and the purpose go into the key, the place (epoch and image, or step) into the upper half of
the counter, so two places can never share a stream, and no state has to be stored to resume.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The values are part of a run's identity: never renumber them."""

    SAMPLE = 0
    SHUFFLE = 1
    MIXING = 2
    DROP_PATH = 3
    INITIALIZATION = 4
    DROPOUT = 5


def generator_at(
    seed: int, purpose: Purpose, major: int = 0, minor: int = 0
) -> np.random.Generator:
    """Return the generator of one place of a run.

    Args:
        seed: the run's seed, 0 to 2**64 - 1.
        purpose: which of the run's independent streams.
        major: for example the epoch or the step, at least 0.
        minor: for example the image's index, at least 0.
    """
    bits = np.random.Philox(
        key=np.array([seed, purpose], dtype=np.uint64),
        counter=np.array([0, 0, minor, major], dtype=np.uint64),
    )
    return np.random.Generator(bits)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator behind the augmentation of image `index` in `epoch`."""
    return generator_at(seed, Purpose.SAMPLE, epoch, index)
