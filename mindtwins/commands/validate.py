"""Evaluate a checkpoint: `mindtwins validate -c configs/svt_s_gpu.yaml --ckpt_path svt_small.ckpt`.

Or what `mindtwins export` made of one, run by onnxruntime: `--onnx_path svt_small.onnx`.
--data_dir is a folder with the split (`val/`), or the ImageFolder itself; for segmentation a folder
with the split below `images/` and `annotations/`, for detection COCO's folder; then what is found
is written beside --output_json RESULT.json too, as RESULT.bbox.json and RESULT.segm.json, which
COCO's own tools read. The same command after `mpirun -n 8` or as
msrun's script shares the images among several devices, with the same result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mindtwins.config import ValidateConfig, parse_config
from mindtwins.distribution import launch
from mindtwins.errors import UserError
from mindtwins.files import atomic_write, check_outputs

if TYPE_CHECKING:
    from mindtwins.execution import Model
    from mindtwins.training.distributed import World
    from mindtwins.training.task import Task


def main(argv: list[str]) -> None:
    """Read the configuration, evaluate, report."""
    config = parse_config(ValidateConfig, argv, __doc__)
    rank = launch.begin(config.distribute, config.device_target)
    # Only here: this imports MindSpore, which must not happen before `launch.begin`.
    from mindtwins.execution import use_device
    from mindtwins.tasks import create_task, exported_task

    if not config.summary:  # before weights by name are converted, which asks for the device
        use_device(config.device_target, config.allow_tf32)
    task, model = exported_task(config) if config.onnx_path else (create_task(config), None)
    if config.summary:
        if rank == 0:
            print(task.summary())
        return
    if model is None and not config.weights:
        raise UserError(
            "ckpt_path is missing: say which weights to evaluate with --ckpt_path or --pretrained,"
            " or which exported file with --onnx_path"
        )
    if rank == 0:
        check_outputs({"--output_json": config.output_json}, [config.weights or config.onnx_path])
    evaluate(config, task, model)


def evaluate(config: ValidateConfig, task: Task, model: Model | None = None) -> None:
    """Evaluate and report.

    Args:
        model: what an exported file computes; None takes the task's own, the checkpoint's.
    """
    from mindtwins.training.distributed import join_world

    world = join_world(config.distribute)
    data = task.find_data("val")
    if model is None:
        model, _ = task.build_model(world)
    evaluator = task.evaluator(model, data, world)
    metrics = evaluator.evaluate()
    images_per_second = total_speed(world, evaluator.images_per_second)
    skipped = world.total("skipped", evaluator.skipped)
    if not world.is_main:
        return
    speed = "speed not measured"  # all the time went into compiling for new sizes
    if images_per_second is not None:
        speed = f"{images_per_second:.1f} images/s"
    print(f"{task.report(metrics, data)}, {metrics.images} images, {speed}")
    if skipped:
        print(f"{skipped} unreadable images were left out")
    if config.output_json:
        result = {
            "model": task.config.model,
            "ckpt_path": config.weights,
            **({"onnx_path": config.onnx_path} if config.onnx_path else {}),
            "data": data.root,
            **task.result(metrics, data),
            "images_per_second": images_per_second,
        }
        with atomic_write(config.output_json) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")
        for suffix, listing in evaluator.listings().items():
            with atomic_write(Path(config.output_json).with_suffix(suffix)) as file:
                file.write(json.dumps(listing).encode() + b"\n")


def total_speed(world: World, speed: float | None) -> float | None:
    """The sum of every rank's images per second; None if a rank has not measured its own."""
    speeds = [json.loads(there) for there in world.exchange("speed", json.dumps(speed).encode())]
    return None if None in speeds else sum(speeds)
