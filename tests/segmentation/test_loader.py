from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.data.loader import EvaluationLoader, LoaderOptions, TrainingLoader
from mindtwins.data.randomness import sample_generator
from mindtwins.data.sampler import epoch_order
from mindtwins.errors import UserError
from mindtwins.segmentation import transforms
from mindtwins.segmentation.dataset import ImageLabelFolder
from mindtwins.segmentation.loader import (
    build_segmentation_loader,
    build_segmentation_training_loader,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAINING = transforms.SegmentationTransform(32, MEAN, STD, scale=(160, 40))
TEST = transforms.TestTransform(MEAN, STD, scale=(128, 32), ratios=(0.5, 1.0))


def training_loader(
    pairs: ImageLabelFolder, batch_size: int = 2, accumulation: int = 1, **options: object
) -> TrainingLoader:
    return build_segmentation_training_loader(
        pairs,
        TRAINING,
        batch_size=batch_size,
        seed=5,
        accumulation=accumulation,
        options=LoaderOptions(**{"num_parallel_workers": 1, **options}),
    )


def evaluation_loader(
    pairs: ImageLabelFolder, batch_size: int = 2, **options: object
) -> EvaluationLoader:
    loading = LoaderOptions(**{"num_parallel_workers": 1, **options})
    return build_segmentation_loader(pairs, TEST, batch_size=batch_size, options=loading)


# Training ----------------------------------------------------------------------------------------


def test_training_batches(pairs: ImageLabelFolder) -> None:
    batches = list(training_loader(pairs).batches(2, 6))
    assert [(batch.step, batch.epoch) for batch in batches] == [(2, 0), (3, 0), (4, 1), (5, 1)]
    for batch in batches:
        place = 2 * (batch.step % 4)
        np.testing.assert_array_equal(
            batch.index, epoch_order(8, 5, batch.epoch)[place : place + 2]
        )
        assert (batch.images.dtype, batch.images.shape) == (np.float32, (2, 3, 32, 32))
        assert (batch.targets.dtype, batch.targets.shape) == (np.int32, (2, 32, 32))
        for row, index in enumerate(batch.index):
            rng = sample_generator(5, batch.epoch, int(index))
            image, labels = TRAINING(*pairs.read(index), rng)
            np.testing.assert_array_equal(batch.images[row], image)
            np.testing.assert_array_equal(batch.targets[row], labels)


def test_ranks_accumulation_and_workers_change_nothing(pairs: ImageLabelFolder) -> None:
    def rows(**options: object) -> dict[tuple[int, int], bytes]:
        return {
            (batch.step, int(position)): image.tobytes() + target.tobytes()
            for batch in training_loader(pairs, **options).batches(0, 2)
            for position, image, target in zip(
                batch.positions, batch.images, batch.targets, strict=True
            )
        }

    whole = rows(batch_size=4)
    spread: dict[tuple[int, int], bytes] = {}
    for rank in range(2):
        spread |= rows(
            batch_size=1, rank=rank, world=2, accumulation=2, num_parallel_workers=1 + rank
        )
    assert len(whole) == 8
    assert spread == whole


# Evaluation --------------------------------------------------------------------------------------


def test_evaluation_batches(pairs: ImageLabelFolder) -> None:
    loader = evaluation_loader(pairs)
    assert len(loader) == 5
    for _ in range(2):  # a second pass starts over
        seen = []
        for batch in loader:
            assert batch.labels.dtype == np.uint8
            np.testing.assert_array_equal(batch.valid, batch.index >= 0)
            seen += batch.index[batch.valid].tolist()
            for row in np.flatnonzero(batch.valid):
                image, labels = pairs.read(batch.index[row])
                np.testing.assert_array_equal(batch.labels[row], labels)
                for view, expected in zip(batch.images, TEST(image), strict=True):
                    np.testing.assert_array_equal(view[row], expected)
            for row in np.flatnonzero(~batch.valid):
                assert (batch.labels[row] == 255).all()
                assert not any(view[row].any() for view in batch.images)
        assert seen == [1, 5, 0, 2, 4, 6, 7, 3]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_every_picture_once_over_the_ranks(pairs: ImageLabelFolder, world: int) -> None:
    loaders = [evaluation_loader(pairs, rank=rank, world=world) for rank in range(world)]
    lengths = [len(loader) for loader in loaders]
    assert max(lengths) - min(lengths) <= 1
    seen = [int(i) for loader in loaders for batch in loader for i in batch.index[batch.valid]]
    assert sorted(seen) == list(range(8))


# Damaged and wrong files -------------------------------------------------------------------------


def damage(pairs: ImageLabelFolder) -> None:
    Path(pairs.paths[2]).write_bytes(b"")
    Path(pairs.label_paths[5]).write_bytes(b"")
    Image.new("L", (10, 10)).save(pairs.label_paths[6])


def test_damaged_pairs_stop_the_run(pairs: ImageLabelFolder) -> None:
    damage(pairs)
    with pytest.raises(
        UserError, match=r"cannot read image \S+jpg \(.+\): repair it, or pass --skip"
    ):
        list(training_loader(pairs).batches(0, 4))
    with pytest.raises(UserError, match=f"cannot read image {pairs.paths[2]}"):
        list(evaluation_loader(pairs))
    Image.new("RGB", (60, 45)).save(pairs.paths[2])
    message = rf"cannot read image {pairs.paths[5]} \(its label file {pairs.label_paths[5]} is not"
    with pytest.raises(UserError, match=message):
        list(evaluation_loader(pairs))


def test_damaged_pairs_are_skipped(
    pairs: ImageLabelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    damage(pairs)
    good = [0, 1, 3, 4, 7]
    with caplog.at_level(logging.WARNING):
        loader = evaluation_loader(pairs, skip_bad_images=True)
        seen = [int(i) for batch in loader for i in batch.index[batch.valid]]
        assert sorted(seen) == good and loader.skipped == 3
    assert f"{pairs.paths[6]}: it is 60 x 45 pixels, but its label file" in caplog.text
    training = training_loader(pairs, skip_bad_images=True)
    used = np.concatenate([batch.index for batch in training.batches(0, 4)])
    assert set(used) <= set(good) and training.skipped == 3


def test_batches_without_a_readable_picture_are_left_out(pairs: ImageLabelFolder) -> None:
    for index in (1, 3, 5):  # a header that cannot be read, and all pictures of a size
        Path(pairs.paths[index]).write_bytes(b"")
    loader = evaluation_loader(pairs, skip_bad_images=True)
    batches = [batch.index[batch.valid].tolist() for batch in loader]
    assert batches == [[0, 2], [4, 6], [7]] and loader.skipped == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{}, {"python_multiprocessing": True}])
@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_wrong_labels_always_stop_the_run(
    pairs: ImageLabelFolder,
    workers: dict[str, object],
    skip_bad_images: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A wrong number of classes is no damage to a file that could be passed over."""
    Image.fromarray(np.full((45, 60), 6, np.uint8)).save(pairs.label_paths[4])
    for batches in (
        training_loader(pairs, skip_bad_images=skip_bad_images, **workers).batches(0, 4),
        evaluation_loader(pairs, skip_bad_images=skip_bad_images, **workers),
    ):
        with pytest.raises(UserError, match=f"label file {pairs.label_paths[4]} holds the label 6"):
            list(batches)
    assert capfd.readouterr().err == ""  # none of MindSpore's own error log


def test_pictures_may_be_turned(pairs: ImageLabelFolder, pair_folder: Path) -> None:
    before = {int(i): b for b in evaluation_loader(pairs, batch_size=1) for i in b.index}
    exif = Image.Exif()
    exif[0x0112] = 8
    for path in pairs.paths[:3]:
        picture = Image.open(path)
        turned = picture.transpose(Image.Transpose.ROTATE_270)
        turned.save(path, exif=exif, quality=95)
    folders = pair_folder / "images", pair_folder / "labels"
    upright = ImageLabelFolder(
        *folders, pairs.classes, ignore_label_zero=True, exif_orientation=True
    )
    after = {int(i): b for b in evaluation_loader(upright, batch_size=1) for i in b.index}
    assert sorted(after) == list(range(8))
    for index, batch in after.items():
        np.testing.assert_array_equal(batch.labels, before[index].labels)
        for view, expected in zip(batch.images, before[index].images, strict=True):
            assert view.shape == expected.shape
            assert np.abs(view - expected).mean() < 0.1  # saved as JPEG once more
    assert len(list(training_loader(upright).batches(0, 4))) == 4


# Names that are not UTF-8 ------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", ["unreadable", "other size", "unknown label"])
def test_what_is_wrong_with_files_of_any_name(
    mistake: str, pair_folder: Path, tmp_path: Path
) -> None:
    for folder, suffix in (("images", b".jpg"), ("labels", b".png")):
        old = os.fsencode(pair_folder / folder / "0") + suffix
        os.rename(old, os.path.join(os.path.dirname(old), b"\xe9" + suffix))
    label = os.fsdecode(os.fsencode(pair_folder / "labels") + b"/\xe9.png")
    if mistake == "unreadable":
        Path(label).write_bytes(b"")
    else:
        size = (45, 60) if mistake == "other size" else (60, 45)
        Image.new("L", size, 77).save(label)
    pairs = ImageLabelFolder(pair_folder / "images", pair_folder / "labels", tuple("abcdef"))
    with pytest.raises(UserError, match=r"label file .*labels/\\udce9\.png"):
        list(evaluation_loader(pairs))
    with pytest.raises(UserError, match=r"label file .*labels/\\udce9\.png"):
        list(training_loader(pairs).batches(0, 4))
