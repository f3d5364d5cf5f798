"""What a run may be continued with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mindtwins.checkpoint import Checkpoint
from mindtwins.config import TrainConfig
from mindtwins.errors import UserError
from mindtwins.training.resume import check_continuation, run_identity


def saved(identity: dict) -> Checkpoint:
    return Checkpoint({}, identity, Path("step_00000007.ckpt"))


IMAGES = ["0/a.png 0", "0/b.png 0"]
MODEL = {"variant": "svt_small", "dialect": {"block_epsilon": 1e-6, "patch_rounding": "floor"}}
IDENTITY = run_identity(TrainConfig(batch_size=64), IMAGES, 64, MODEL)


def test_harmless_differences_are_told():
    config = TrainConfig(batch_size=16, gradient_accumulation_steps=4, data_dir="/elsewhere")
    now = run_identity(config, IMAGES, 64, MODEL)
    notices = check_continuation(saved(IDENTITY), now)
    assert notices == [
        "continuing with another data_dir:  -> /elsewhere",
        "continuing with another batch_size: 64 -> 16",
        "continuing with another gradient_accumulation_steps: 1 -> 4",
    ]
    assert check_continuation(saved(IDENTITY), IDENTITY) == []


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (run_identity(TrainConfig(lr=1.0, batch_size=64), IMAGES, 64, MODEL), "lr: 0.0005 -> 1.0"),
        (run_identity(TrainConfig(batch_size=32), IMAGES, 32, MODEL), "global batch: 64 -> 32"),
        (
            run_identity(TrainConfig(batch_size=64), ["0/a.png 0", "1/b.png 1"], 64, MODEL),
            "training images: 2 images",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused(now: dict, message: str):
    with pytest.raises(UserError) as caught:
        check_continuation(saved(IDENTITY), now)
    assert message in str(caught.value) and "step_00000007.ckpt" in str(caught.value)


def test_the_model_stays_that_of_the_checkpoint_it_started_from():
    config = TrainConfig(batch_size=64, ckpt_path="official.ckpt")
    then = run_identity(config, IMAGES, 64, MODEL)
    other = {**MODEL, "dialect": {"block_epsilon": 1e-5, "patch_rounding": "floor"}}
    now = run_identity(TrainConfig(batch_size=64), IMAGES, 64, other)
    with pytest.raises(UserError) as caught:
        check_continuation(saved(then), now)
    assert str(caught.value) == (
        "cannot continue step_00000007.ckpt with another model (block_epsilon: 1e-06 -> 1e-05): "
        "give the --ckpt_path that the run started with (official.ckpt)"
    )


def test_a_run_that_started_from_nothing_continues_so():
    other = {**MODEL, "dialect": {"block_epsilon": 1e-5, "patch_rounding": "floor"}}
    now = run_identity(TrainConfig(batch_size=64, ckpt_path="other.ckpt"), IMAGES, 64, other)
    with pytest.raises(UserError, match="leave --ckpt_path out, as the run did"):
        check_continuation(saved(IDENTITY), now)


def test_bad_images_may_be_skipped_from_now_on():
    """As the error about them advises."""
    now = run_identity(TrainConfig(batch_size=64, skip_bad_images=True), IMAGES, 64, MODEL)
    assert check_continuation(saved(IDENTITY), now) == [
        "continuing with another skip_bad_images: False -> True"
    ]


def test_a_refusal_says_how_to_train_longer():
    now = run_identity(TrainConfig(batch_size=64, epoch_size=400), IMAGES, 64, MODEL)
    with pytest.raises(UserError) as caught:
        check_continuation(saved(IDENTITY), now)
    assert str(caught.value) == (
        "cannot continue step_00000007.ckpt with another recipe (epoch_size: 300 -> 400): restore "
        "these values, or train on from its weights in a run of its own, with --ckpt_path "
        "step_00000007.ckpt and another --output_dir instead of --resume"
    )


def test_a_segmentor_s_batch_norms_see_as_many_images_as_before():
    """Two ranks of 8 images are one of 16; 8 images twice are not."""

    def identity(**options: int) -> dict:
        return run_identity(TrainConfig(task="segmentation", **options), IMAGES, 16, MODEL)

    then = identity(batch_size=8)
    assert check_continuation(saved(then), identity(batch_size=16), couples_images=True) == [
        "continuing with another batch_size: 8 -> 16"
    ]
    now = identity(batch_size=8, gradient_accumulation_steps=2)
    message = r"\(images per pass \(batch_size x ranks\): 16 -> 8\)"
    with pytest.raises(UserError, match=message):
        check_continuation(saved(then), now, couples_images=True)


@pytest.mark.parametrize("metadata", [None, {"variant": "svt_small"}])
def test_weights_alone_are_no_run(metadata: dict | None):
    with pytest.raises(UserError, match="holds no training run"):
        check_continuation(saved(metadata), IDENTITY)


def test_names_that_are_not_utf_8_count_by_their_bytes():
    def images(*entries: str) -> str:
        return run_identity(TrainConfig(), entries, 8, {})["training_images"]

    def expected(listing: bytes) -> str:
        return f"1 images, {hashlib.sha256(listing).hexdigest()[:16]}"

    assert images("a/é.jpg 0") == expected("a/é.jpg 0\n".encode())
    assert images(os.fsdecode(b"a/\xe9.jpg") + " 0") == expected(b"a/\xe9.jpg 0\n")
