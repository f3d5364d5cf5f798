"""What a training step is expected to take, and what is done about too much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mindtwins.config import TrainConfig
from mindtwins.errors import UserError
from mindtwins.layers import kernels
from mindtwins.tasks import create_task
from mindtwins.training.memory import (
    BATCHES_AHEAD,
    GB,
    MB,
    check_memory,
    estimate,
    free_memory,
)


def check(config: TrainConfig, free: float, ranks: int = 1) -> str | None:
    return check_memory(create_task(config), ranks, int(free))


@pytest.mark.parametrize(
    ("model", "size", "measured"),
    [  # MB that an image more takes, as in docs/performance.md
        ("svt_small", 224, 57),
        ("svt_base", 224, 107),
        ("pcpvt_small", 224, 83),
        ("pcpvt_base", 224, 123),
        ("svt_large", 224, 148),
        ("pcpvt_large", 224, 163),
        ("svt_small", 512, 334),
        ("pcpvt_small", 512, 424),
    ],
)
def test_an_image_takes_what_was_measured(model: str, size: int, measured: float):
    config = TrainConfig(model=model, image_size=size)
    expected = estimate(create_task(config))
    assert expected.per_image / MB == pytest.approx(measured, rel=0.08)
    assert 0.8 * GB < expected.fixed < 2.2 * GB


@pytest.mark.parametrize(
    ("model", "measured"),
    [("fpn_svt_small", 485), ("fpn_pcpvt_small", 562), ("upernet_svt_small", 1032)],
)
def test_so_does_a_crop(model: str, measured: float):
    config = TrainConfig(task="segmentation", model=model, image_size=512, num_classes=150)
    expected = estimate(create_task(config))
    assert expected.per_image / MB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("model", "side", "images", "measured", "tolerance"),
    [
        ("retinanet_svt_small", 512, 1, 1733, 0.05),
        ("retinanet_svt_small", 512, 2, 2389, 0.05),
        ("retinanet_svt_small", 512, 3, 3143, 0.05),
        ("retinanet_svt_small", 320, 2, 1513, 0.06),
        ("retinanet_svt_small", 320, 4, 2136, 0.05),
        ("retinanet_svt_small", 320, 6, 2670, 0.05),
        ("maskrcnn_svt_small", 512, 1, 2614, 0.1),
        ("maskrcnn_svt_small", 512, 2, 4021, 0.1),
        ("maskrcnn_svt_small", 320, 1, 2436, 0.1),
        ("maskrcnn_svt_small", 320, 4, 5802, 0.1),
    ],
)
def test_so_do_pictures_with_boxes(
    model: str, side: int, images: int, measured: float, tolerance: float
):
    """MB of a whole step: `benchmarks.speed --parts memory --cases training,SIDE,IMAGES`."""
    config = TrainConfig(task="detection", model=model, resize_scale=(side, side), num_classes=80)
    task = create_task(config)
    ahead = images * BATCHES_AHEAD * task.loaded_bytes()  # of a loader, which that has not
    found = estimate(task).of(images) - ahead
    assert found / MB == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize(
    ("model", "anchors", "masks"),
    [
        ("retinanet_svt_small", 9 * (60 + 15 + 6 + 2 + 1), 0),
        ("maskrcnn_svt_small", 3 * (240 + 60 + 15 + 6 + 2), 20),
    ],
)
def test_so_does_what_is_loaded_ahead(model: str, anchors: int, masks: int):
    """A picture of 80 x 48, a label and four deltas of each anchor, and the masks of 20 objects."""
    config = TrainConfig(task="detection", model=model, resize_scale=(80, 48), num_classes=80)
    expected = 80 * 48 * (4 * 3 + masks) + 20 * anchors
    assert create_task(config).loaded_bytes() == expected


def test_enough_is_passed_over_in_silence():
    assert check(TrainConfig(batch_size=64), 7 * GB) is None


def test_a_little_too_much_is_told_with_a_batch_that_fits():
    config = TrainConfig(batch_size=64)
    sentence = check(config, 4 * GB)
    assert sentence.startswith("a step is expected to take 4.7 GB (0.9 GB and 60 MB for each of 64")
    assert "but 4.0 GB are free: lower --batch_size to 52 (" in sentence
    assert check(TrainConfig(batch_size=52), 4 * GB) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "ranks", "free"),
    [
        ({"batch_size": 256}, 1, 8 * GB),
        ({"batch_size": 64}, 4, 8 * GB),
        ({"batch_size": 16, "image_size": 640}, 1, 4 * GB),
        ({"batch_size": 64, "amp_level": "O2"}, 1, 8 * GB),
    ],
)
def test_far_too_much_is_refused(options: dict, ranks: int, free: float):
    with pytest.raises(
        UserError, match=r"lower --batch_size to \d+ .* as it is more than 1.5 times"
    ):
        check(TrainConfig(**options), free, ranks)


def test_a_model_too_large_for_any_batch():
    with pytest.raises(UserError, match="lower --image_size or take a smaller model"):
        check(TrainConfig(model="svt_large"), 1 * GB)


@pytest.mark.parametrize("options", [{"device_target": "GPU"}, {"freeze_backbone": True}])
def test_what_is_not_known_is_not_judged(options: dict):
    assert check(TrainConfig(batch_size=4096, **options), 1 * GB) is None
    config = TrainConfig(batch_size=4096)
    assert check_memory(create_task(config), 1, None) is None


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapFree: 500 kB\n"
GROUP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 4500 * 1024),
        ({"proc/meminfo": MEMINFO, f"{GROUP}/memory.max": "max\n"}, 4500 * 1024),
        (
            {
                "proc/meminfo": MEMINFO,
                f"{GROUP}/memory.max": "3000000\n",
                f"{GROUP}/memory.current": "2500000\n",
                f"{GROUP}/memory.stat": "anon 1\ninactive_file 200000\n",
            },
            700_000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                f"{GROUP}/memory/memory.limit_in_bytes": "3000000\n",
                f"{GROUP}/memory/memory.usage_in_bytes": "2900000\n",
            },
            100_000,
        ),
    ],
)
def test_the_machine_s_and_the_container_s_memory(tmp_path: Path, files: dict, free: int | None):
    assert free_memory(write(tmp_path, files)) == free


STEP = """
import sys
from pathlib import Path
import mindspore as ms, numpy as np
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.execution import set_precision, use_device
from mindtwins.models import create_model
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.step import MicroBatch, build_train_step

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

use_device("CPU")
ms.set_seed(0)
before, level = peak(), sys.argv[1]
model = set_precision(create_model("svt_tiny", 10), level)
scale = LossScale(1024.0, 1000, dynamic=level != "O0")
step = build_train_step(model, SoftTargetCrossEntropy(), loss_scale=scale)
images = np.random.default_rng(0).standard_normal((32, 3, 128, 128), np.float32)
result = step([MicroBatch(images, np.eye(10, dtype=np.float32)[np.arange(32) % 10])], 1e-4)
print(peak() - before, result.loss)
"""


@pytest.mark.endurance
@pytest.mark.skipif(not kernels.available(), reason="the kernels are not available")
def test_half_precision_takes_about_as_much_as_float32(tmp_path: Path):
    """Of MindSpore's own operators it took 6 times as much: the kernels are float32's."""
    script = tmp_path / "step.py"
    script.write_text(STEP)
    found = {}
    for level in ("O0", "O1"):
        command = [sys.executable, str(script), level]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[level] = [float(word) for word in done.stdout.split()[-2:]]
    assert found["O1"][0] < 2 * found["O0"][0]
    assert found["O1"][1] == pytest.approx(found["O0"][1], rel=1e-4)
