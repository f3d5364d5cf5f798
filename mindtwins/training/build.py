"""What a recipe needs built for training."""

from __future__ import annotations

from mindtwins.config import Config
from mindtwins.data import (
    ImageFolder,
    Mixing,
    RandomErasing,
    TrainingLoader,
    TrainingTransform,
    build_training_loader,
)
from mindtwins.training.distributed import World


def training_loader(config: Config, images: ImageFolder, world: World) -> TrainingLoader:
    """This rank's augmented, mixed batches.

    Raises:
        UserError: fewer images than a global batch, more classes than `num_classes`, or a bad
            augmentation policy.
    """
    erasing = None
    if config.re_prob > 0:
        erasing = RandomErasing(config.re_prob, config.re_mode, config.re_count)
    transform = TrainingTransform(
        config.image_size,
        config.mean,
        config.std,
        scale=config.scale,
        ratio=config.ratio,
        horizontal_flip=config.hflip,
        rand_augment=config.auto_augment,
        color_jitter=config.color_jitter,
        erasing=erasing,
        interpolation=config.interpolation,
    )
    mixing = Mixing(
        config.num_classes,
        label_smoothing=config.label_smoothing,
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
    )
    return build_training_loader(
        images,
        transform,
        mixing,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        accumulation=config.gradient_accumulation_steps,
        num_parallel_workers=config.num_parallel_workers,
        python_multiprocessing=config.python_multiprocessing,
        skip_bad_images=config.skip_bad_images,
    )
