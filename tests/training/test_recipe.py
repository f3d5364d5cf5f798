"""An ImageNet recipe end to end on two ranks of a CPU: it runs, is killed, resumes and ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from jobs import ROOT, Job, needs_mpirun
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins.checkpoint import load_checkpoint
from mindtwins.training.checkpoints import CheckpointFolder

STEPS = 4


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """An ImageFolder of JPEGs cut from photographs: 2 classes, 8 to train and 3 to validate."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for i in range(count):
            label = i % 2
            pixels = load_sample_images().images[label]
            top, left = rng.integers(0, 150, 2)
            folder = tmp_path / "imagenet" / split / f"class_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            crop = pixels[top : top + 250, left : left + 280 + 10 * i]
            Image.fromarray(crop).save(folder / f"{i}.jpg", quality=90)
    return tmp_path / "imagenet"


@pytest.mark.endurance
@needs_mpirun
def test_svt_s_gpu_runs_on_two_cpu_ranks_and_resumes_after_a_kill(imagenet, tmp_path):
    output = tmp_path / "out"
    arguments = {
        "config": ROOT / "configs/svt_s_gpu.yaml",
        "device_target": "CPU",
        "data_dir": imagenet,
        "output_dir": output,
        "batch_size": 2,
        "epoch_size": 2,
        "warmup_epochs": 1,
        "log_interval": 1,
        "save_every_steps": 1,
    }
    command = ["train.py", *(w for key, value in arguments.items() for w in (f"--{key}", value))]
    job = Job("mpirun", tmp_path, *command)
    job.wait_until(lambda: bool(CheckpointFolder(output, 3).steps()))
    os.kill(job.process_of(1), signal.SIGKILL)
    assert job.wait(60) != 0

    # Where it was killed is chance; where it goes on is the newest checkpoint.
    before = CheckpointFolder(output, 3).newest()[0].metadata["progress"]["step"]
    assert 1 <= before <= STEPS
    job = Job("mpirun", tmp_path, *command, "--resume")
    assert job.wait() == 0, job.output()
    assert f"after step {before}" in job.output()

    steps = [json.loads(line) for line in (output / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == list(range(STEPS))
    # Soft targets over 1000 classes: an untrained model's loss is near log(1000) = 6.9.
    assert all(6 < record["train_loss"] < 9 for record in steps)
    final = load_checkpoint(output / "final.ckpt")
    assert final.metadata["variant"] == "svt_small"
    assert final.metadata["trained"]["step"] == STEPS
