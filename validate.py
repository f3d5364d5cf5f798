"""Evaluate a checkpoint: `python validate.py -c configs/svt_s_gpu.yaml --ckpt_path svt_small.ckpt`.

--data_dir is a folder with the split (`val/`), or the ImageFolder itself. The same command after
`mpirun -n 8` or as msrun's script shares the images among several devices, with the same result.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from mindtwins.config import ValidateConfig, parse_config
from mindtwins.distribution import launch
from mindtwins.errors import UserError
from mindtwins.files import atomic_write


def main(argv: list[str]) -> None:
    """Read the configuration, evaluate, report."""
    config = parse_config(ValidateConfig, argv, __doc__)
    rank = launch.begin(config.distribute, config.device_target)
    if config.summary:
        from mindtwins.models.complexity import format_summary

        if rank == 0:
            print(format_summary(config.model, config.image_size, config.num_classes))
        return
    if not config.ckpt_path:
        raise UserError("ckpt_path is missing: say which weights to evaluate with --ckpt_path")
    evaluate(config)


def evaluate(config: ValidateConfig) -> None:
    """Evaluate and report."""
    # Only here: these import MindSpore, which must not happen before `launch.begin`.
    from mindtwins.evaluation import (
        Evaluator,
        build_model,
        evaluation_loader,
        find_images,
        use_device,
    )
    from mindtwins.training.distributed import join_world

    use_device(config)
    world = join_world(config.distribute)
    images = find_images(config, "val")
    loader = evaluation_loader(config, images, world.rank, world.size)
    model, _ = build_model(config)
    evaluator = Evaluator(model, loader, world.is_main, world.exchange)
    metrics = evaluator.evaluate()
    images_per_second = world.total("speed", evaluator.images_per_second)
    skipped = world.total("skipped", loader.skipped)
    if not world.is_main:
        return
    print(
        f"top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, loss {metrics.loss:.4f}, "
        f"{metrics.images} images, {images_per_second:.0f} images/s"
    )
    if skipped:
        print(f"{skipped} unreadable images were left out")
    if config.output_json:
        result = {
            "model": config.model,
            "ckpt_path": config.ckpt_path,
            "data": images.root,
            **asdict(metrics),
            "images_per_second": images_per_second,
        }
        with atomic_write(config.output_json) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    launch.run_cli(main)
