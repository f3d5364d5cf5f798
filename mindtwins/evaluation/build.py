"""Model and data of an evaluation, as a recipe states them."""

from __future__ import annotations

from dataclasses import asdict, replace

import mindspore as ms
from mindspore import nn

from mindtwins.checkpoint import Checkpoint, expect_metadata, load_checkpoint, load_into
from mindtwins.config import Config
from mindtwins.data import (
    EvaluationLoader,
    EvaluationTransform,
    ImageFolder,
    build_evaluation_loader,
    find_split,
    write_digits,
)
from mindtwins.errors import UserError
from mindtwins.layers import (
    CrossAttention,
    Dense,
    DepthwiseConv3x3,
    LayerNorm,
    PatchConv,
    WindowAttention,
)
from mindtwins.models import create_model
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import resolve_name

# Tensors that a training checkpoint holds beside the weights.
TRAINING_STATE = ("optimizer.", "loss_scale.", "ema.")


def use_device(config: Config) -> None:
    """Select the device, and graph mode, before any cell is built.

    Raises:
        UserError: MindSpore cannot use the device.
    """
    try:
        # Setting it again fails once something has run.
        if ms.get_current_device().device_target != config.device_target:
            ms.set_device(config.device_target)
    except (RuntimeError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "unknown reason")
        raise UserError(f"cannot use device_target {config.device_target}: {reason}") from error
    ms.set_context(mode=ms.GRAPH_MODE)


def build_model(config: Config) -> tuple[nn.Cell, dict]:
    """The classifier with its weights, computing at the recipe's precision.

    Returns:
        The model and the metadata of its weights: what `create_model` needs to load them.

    Raises:
        UserError: unknown model, or a checkpoint that does not fit.
    """
    variant = resolve_name(config.model)
    checkpoint = load_checkpoint(config.ckpt_path) if config.ckpt_path else None
    recorded = (checkpoint.metadata or {}).get("dialect", {}) if checkpoint else {}
    asked = {
        name: getattr(config, name)
        for name in ("window_padding", "patch_rounding")
        if getattr(config, name)
    }
    dialect = asdict(Dialect(**recorded | asked))
    model = create_model(
        variant, config.num_classes, drop_path_rate=config.drop_path_rate, **dialect
    )
    if checkpoint is not None:
        expect_metadata(checkpoint, variant=variant)
        if config.drop_head:
            checkpoint = _with_head_of(model, checkpoint)
        else:
            expect_metadata(checkpoint, num_classes=config.num_classes)
        load_into(model, checkpoint, allow_unused=TRAINING_STATE)
    metadata = {
        "format_version": 1,
        "variant": variant,
        "num_classes": config.num_classes,
        "in_channels": 3,
        "dialect": dialect,
    }
    return set_precision(model, config.amp_level), metadata


def _with_head_of(model: nn.Cell, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the head's tensors replaced by the model's fresh ones."""
    kept = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("head.")}
    fresh = {
        parameter.name: parameter.asnumpy()
        for parameter in model.get_parameters()
        if parameter.name.startswith("head.")
    }
    return replace(checkpoint, tensors=kept | fresh)


# What an fp16 level computes in float32, and what O1 computes in fp16.
_SENSITIVE = {
    "O1": (LayerNorm, WindowAttention, CrossAttention),
    "O2": (LayerNorm,),
    "O3": (),
}
_PRODUCTS = (Dense, PatchConv, DepthwiseConv3x3)


def set_precision(model: nn.Cell, level: str) -> nn.Cell:
    """Make a model compute in fp16 as far as its level says; its parameters stay float32.

    Each layer is told its type, rather than MindSpore's automatic mixed precision: that one puts
    its casts where a layer that asks for the type of its input does not see them.

    Args:
        level: "O0" all float32. "O1" linear layers and convolutions in fp16, norms and attention
            (its softmax) in float32. "O2" fp16 everywhere but in norms. "O3" fp16 everywhere.
    """
    if level == "O0":
        return model
    if level != "O1":
        model.to_float(ms.float16)
    for _, cell in model.cells_and_names():
        if level == "O1" and isinstance(cell, _PRODUCTS):
            cell.to_float(ms.float16)
        if isinstance(cell, _SENSITIVE[level]):
            cell.to_float(ms.float32)
    return model


def find_images(config: Config, split: str) -> ImageFolder:
    """The image files of a split, "train" or "val", under the names that the recipe gives it.

    Raises:
        UserError: folder or list is missing or empty.
    """
    if not config.data_dir:
        raise UserError("data_dir is missing: say where the images are with --data_dir")
    if config.dataset == "digits":
        write_digits(config.data_dir)
    if config.dataset == "list":
        return ImageFolder.from_list(config.data_dir, getattr(config, f"{split}_list"))
    return ImageFolder(find_split(config.data_dir, getattr(config, f"{split}_split")))


def evaluation_loader(
    config: Config, images: ImageFolder, rank: int = 0, world: int = 1
) -> EvaluationLoader:
    """Batches of the evaluation images, padded to one shape."""
    if images.num_classes > config.num_classes:
        raise UserError(
            f"{images.root} has {images.num_classes} classes, but num_classes is "
            f"{config.num_classes}"
        )
    batch_size = config.eval_batch_size or config.batch_size * 3 // 2
    return build_evaluation_loader(
        images,
        EvaluationTransform(config.image_size, config.crop_pct, config.mean, config.std),
        batch_size=batch_size,
        rank=rank,
        world=world,
        num_parallel_workers=config.num_parallel_workers,
        python_multiprocessing=config.python_multiprocessing,
        skip_bad_images=config.skip_bad_images,
    )
