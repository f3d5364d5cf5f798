from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest

from mindtwins.classification.loader import build_evaluation_loader, build_training_loader
from mindtwins.classification.mixing import Mixing
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.data.decode import read_rgb
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import (
    EvaluationLoader,
    LoaderOptions,
    TrainingBatch,
    TrainingLoader,
)
from mindtwins.data.pipeline import worker_count
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.data.randomness import sample_generator
from mindtwins.data.sampler import epoch_order
from mindtwins.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINING = TrainingTransform(32, MEAN, STD, erasing=RandomErasing())
EVALUATION = EvaluationTransform(32, 0.875, MEAN, STD)
MIXING = Mixing(3)
SMOOTHING = Mixing(3, mixup_alpha=0.0, cutmix_alpha=0.0)


def training_loader(
    dataset: ImageFolder,
    mixing: Mixing = MIXING,
    batch_size: int = 8,
    seed: int = 5,
    accumulation: int = 1,
    **options: object,
) -> TrainingLoader:
    return build_training_loader(
        dataset,
        TRAINING,
        mixing,
        batch_size=batch_size,
        seed=seed,
        accumulation=accumulation,
        options=LoaderOptions(**{"num_parallel_workers": 1, **options}),
    )


def evaluation_loader(
    dataset: ImageFolder, batch_size: int = 8, **options: object
) -> EvaluationLoader:
    loading = LoaderOptions(**{"num_parallel_workers": 1, **options})
    return build_evaluation_loader(dataset, EVALUATION, batch_size=batch_size, options=loading)


def assert_equal(first: Iterable[object], second: Iterable[object]) -> None:
    for one, other in zip(first, second, strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


# What a batch holds ------------------------------------------------------------------------------


def test_training_batches_hold_what_they_say(jpegs: ImageFolder) -> None:
    loader = training_loader(jpegs, mixing=SMOOTHING)
    assert loader.steps_per_epoch == 3
    batches = list(loader.batches(0, 5))
    assert [(batch.step, batch.epoch, batch.micro) for batch in batches] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (3, 1, 0),
        (4, 1, 0),
    ]
    for batch in batches:
        place = batch.step % 3 * 8
        np.testing.assert_array_equal(
            batch.index, epoch_order(30, 5, batch.epoch)[place : place + 8]
        )
        np.testing.assert_array_equal(batch.positions, np.arange(8))
        np.testing.assert_array_equal(batch.targets.argmax(axis=1), jpegs.labels[batch.index])
        for image, index in zip(batch.images, batch.index, strict=True):
            rng = sample_generator(5, batch.epoch, int(index))
            expected = TRAINING(read_rgb(jpegs.paths[index]), rng)
            np.testing.assert_array_equal(image, expected)
        assert (batch.images.dtype, batch.targets.dtype) == (np.float32, np.float32)
        assert batch.index.dtype == np.int64


def test_training_batches_are_mixed(jpegs: ImageFolder) -> None:
    plain = next(training_loader(jpegs, mixing=SMOOTHING).batches(2, 3))
    mixed = next(training_loader(jpegs).batches(2, 3))
    images = plain.images.copy()
    targets = MIXING(
        images, jpegs.labels[plain.index], seed=5, step=2, positions=plain.positions, global_batch=8
    )
    np.testing.assert_array_equal(mixed.images, images)
    np.testing.assert_array_equal(mixed.targets, targets)


def test_evaluation_batches_hold_what_they_say(jpegs: ImageFolder) -> None:
    loader = evaluation_loader(jpegs)
    assert len(loader) == 4
    batches = list(loader)
    assert_equal(batches, loader)  # a second pass starts over
    assert all(batch.images.shape == (8, 3, 32, 32) for batch in batches)
    index = np.concatenate([batch.index for batch in batches])
    valid = np.concatenate([batch.valid for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(index, [*range(30), -1, -1])
    np.testing.assert_array_equal(valid, index >= 0)
    np.testing.assert_array_equal(labels[:30], jpegs.labels)
    for row in range(30):
        np.testing.assert_array_equal(images[row], EVALUATION(read_rgb(jpegs.paths[row])))
    assert not images[30:].any() and not labels[30:].any()
    assert (valid.dtype, labels.dtype) == (np.bool_, np.int32)


# What it does not depend on ----------------------------------------------------------------------

WORKERS = [
    {"num_parallel_workers": 2},
    pytest.param(
        {"num_parallel_workers": 2, "python_multiprocessing": True}, marks=pytest.mark.slow
    ),
]


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
@pytest.mark.parametrize("workers", WORKERS, ids=["threads", "processes"])
def test_workers_change_nothing(jpegs: ImageFolder, workers: dict[str, object]) -> None:
    assert_equal(
        training_loader(jpegs).batches(0, 9), training_loader(jpegs, **workers).batches(0, 9)
    )
    assert_equal(evaluation_loader(jpegs), evaluation_loader(jpegs, **workers))


def test_resuming_continues_the_stream(jpegs: ImageFolder) -> None:
    whole = list(training_loader(jpegs, accumulation=2, batch_size=4).batches(0, 8))
    resumed = training_loader(jpegs, accumulation=2, batch_size=4).batches(4, 8)
    assert_equal(whole[8:], resumed)


def rows_by_position(batches: Iterable[TrainingBatch]) -> dict[tuple[int, int], tuple[bytes, ...]]:
    return {
        (batch.step, int(position)): (
            batch.images[row].tobytes(),
            batch.targets[row].tobytes(),
            int(batch.index[row]).to_bytes(8, "little"),
        )
        for batch in batches
        for row, position in enumerate(batch.positions)
    }


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_ranks_and_accumulation_change_nothing(jpegs: ImageFolder, mode: str) -> None:
    mixing = Mixing(3, mode=mode)
    whole = rows_by_position(training_loader(jpegs, mixing=mixing).batches(0, 4))
    spread: dict[tuple[int, int], tuple[bytes, ...]] = {}
    for rank in range(2):
        loader = training_loader(
            jpegs, mixing=mixing, batch_size=2, rank=rank, world=2, accumulation=2
        )
        spread |= rows_by_position(loader.batches(0, 4))
    assert len(whole) == 32
    assert spread == whole


def test_evaluation_over_ranks(jpegs: ImageFolder) -> None:
    whole = {
        int(index): image.tobytes()
        for batch in evaluation_loader(jpegs)
        for index, image in zip(batch.index[batch.valid], batch.images[batch.valid], strict=True)
    }
    spread = [
        (int(index), image.tobytes())
        for rank in range(4)
        for batch in evaluation_loader(jpegs, batch_size=3, rank=rank, world=4)
        for index, image in zip(batch.index[batch.valid], batch.images[batch.valid], strict=True)
    ]
    assert len(spread) == 30
    assert dict(spread) == whole


# Damaged images ----------------------------------------------------------------------------------


@pytest.fixture
def damaged(jpeg_folder: Path, tmp_path: Path) -> ImageFolder:
    """The thirty JPEGs with image 3 truncated, 17 empty and 18 replaced by text."""
    shutil.copytree(jpeg_folder, tmp_path / "damaged")
    dataset = ImageFolder(tmp_path / "damaged")
    truncated, empty, text = (Path(dataset.paths[index]) for index in BAD)
    truncated.write_bytes(truncated.read_bytes()[:800])
    empty.write_bytes(b"")
    text.write_text("not an image")
    return dataset


BAD = (3, 17, 18)


@pytest.mark.parametrize(
    "workers", [{}, {"num_parallel_workers": 2, "python_multiprocessing": True}]
)
def test_damaged_image_stops_the_run_with_its_path(
    damaged: ImageFolder, workers: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"cannot read image \S*\.jpg \(.+\): repair it, or pass --skip"
    ):
        list(training_loader(damaged, **workers).batches(0, 3))
    with pytest.raises(UserError, match=f"cannot read image {damaged.paths[3]}"):
        list(evaluation_loader(damaged, **workers))
    assert capfd.readouterr().err == ""  # none of MindSpore's own error log


def test_damaged_image_is_replaced_by_the_next_of_the_order(
    damaged: ImageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    loader = training_loader(damaged, skip_bad_images=True, batch_size=10)
    batches = list(loader.batches(0, 6))  # two epochs of three steps
    for epoch in range(2):
        order = epoch_order(30, 5, epoch).tolist()
        used = np.concatenate([batch.index for batch in batches[3 * epoch : 3 * epoch + 3]])
        for place, index in enumerate(used):
            following = (order * 2)[place:]
            assert index == next(image for image in following if image not in BAD)
    assert loader.skipped == 6
    for index in BAD:
        assert caplog.text.count(f"skipped unreadable image {damaged.paths[index]}") == 2
    # A replacement looks as it does at its own turn.
    unmixed = training_loader(damaged, skip_bad_images=True, batch_size=10, mixing=SMOOTHING)
    for batch, plain in zip(batches, unmixed.batches(0, 6), strict=True):
        np.testing.assert_array_equal(batch.index, plain.index)
        np.testing.assert_array_equal(plain.targets.argmax(axis=1), damaged.labels[batch.index])


def test_damaged_image_is_left_out_of_evaluation(
    damaged: ImageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    loader = evaluation_loader(damaged, skip_bad_images=True)
    for _ in range(2):
        batches = list(loader)
        valid = np.concatenate([batch.index[batch.valid] for batch in batches])
        assert valid.tolist() == [index for index in range(30) if index not in BAD]
        assert loader.skipped == 3
    assert damaged.paths[17] in caplog.text


def test_no_readable_image(damaged: ImageFolder) -> None:
    for path in damaged.paths:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match=r"not one image of \S+ can be read"):
        list(training_loader(damaged, skip_bad_images=True).batches(0, 1))


# Options -----------------------------------------------------------------------------------------


def test_workers_are_capped_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    cores = os.cpu_count()
    assert worker_count(1) == 1
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert worker_count(10_000) == cores
    assert f"lowered from 10000 to the machine's {cores} cores" in caplog.text
    with pytest.raises(UserError, match="num_parallel_workers is 0"):
        worker_count(0)


def test_more_workers_than_cores_run(jpegs: ImageFolder) -> None:
    assert len(list(training_loader(jpegs, num_parallel_workers=1000).batches(0, 2))) == 2


def test_odd_batch_cannot_be_mixed(jpegs: ImageFolder) -> None:
    with pytest.raises(UserError, match="batch size 5 is odd"):
        training_loader(jpegs, batch_size=5)
    assert len(list(training_loader(jpegs, batch_size=5, mixing=SMOOTHING).batches(0, 1))) == 1


def test_too_few_classes(jpegs: ImageFolder) -> None:
    with pytest.raises(UserError, match="has 3 classes but num_classes is only 2"):
        training_loader(jpegs, mixing=Mixing(2))


@pytest.mark.parametrize("build", [training_loader, evaluation_loader])
def test_leaving_early_is_quiet(
    jpegs: ImageFolder, build: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    loader = build(jpegs)
    batches = loader.batches(0, 100) if isinstance(loader, TrainingLoader) else iter(loader)
    next(batches)
    batches.close()
    assert capfd.readouterr().err == ""


def test_mindspores_settings_are_left_alone(jpegs: ImageFolder) -> None:
    before = ds.config.get_prefetch_size()
    list(training_loader(jpegs).batches(0, 1))
    assert ds.config.get_prefetch_size() == before
