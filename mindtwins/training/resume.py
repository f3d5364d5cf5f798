"""Whether a run may be continued with the recipe and data that it is given now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from mindtwins.checkpoint import Checkpoint
from mindtwins.config import Config, as_dict, config_diff
from mindtwins.errors import UserError


def run_identity(
    config: Config, entries: Iterable[str], global_batch: int, model: Mapping[str, object]
) -> dict:
    """What a continuation has to agree with, for the metadata of a checkpoint.

    Args:
        entries: each training image with its label, in order.
        model: metadata of the model, its dialect among them.
    """
    return {
        **model,
        "recipe": as_dict(config),
        "global_batch": global_batch,
        "training_images": _fingerprint(entries),
    }


def check_continuation(
    checkpoint: Checkpoint, now: Mapping, couples_images: bool = False
) -> list[str]:
    """Compare the run that wrote a checkpoint with the one that is to continue it.

    Args:
        now: `run_identity` of the continuation.
        couples_images: whether a step depends on which images share a pass.

    Returns:
        Sentences about harmless differences.

    Raises:
        UserError: the checkpoint is not of a training run, or continuing would silently give
            another result than either recipe.
    """
    then = checkpoint.stated
    if "recipe" not in then:
        raise UserError(
            f"{checkpoint.path} holds no training run to continue: to start from its weights, use "
            "--ckpt_path instead of --resume"
        )
    changed, free = config_diff(then["recipe"], now["recipe"])
    for name in ("global_batch", "training_images"):
        if then[name] != now[name]:
            changed[name.replace("_", " ")] = (then[name], now[name])
    if couples_images:
        was, is_now = _images_per_pass(then), _images_per_pass(now)
        if was != is_now:
            changed["images per pass (batch_size x ranks)"] = (was, is_now)
    if changed:
        raise UserError(
            f"cannot continue {checkpoint.path} with another recipe ({_listing(changed)}): restore "
            "these values, or train on from its weights in a run of its own, with --ckpt_path "
            f"{checkpoint.path} and another --output_dir instead of --resume"
        )
    # The checkpoint that the run once started from decides the dialect.
    model = {
        name: (then["dialect"].get(name), value)
        for name, value in now["dialect"].items()
        if then["dialect"].get(name) != value
    }
    if model:
        recipe = then["recipe"]
        option = "pretrained" if recipe.get("pretrained") else "ckpt_path"
        start = recipe[option]
        advice = f"give the --{option} that the run started with ({start})"
        raise UserError(
            f"cannot continue {checkpoint.path} with another model ({_listing(model)}): "
            f"{advice if start else 'leave --ckpt_path out, as the run did when it started'}"
        )
    return [
        f"continuing with another {name}: {was} -> {is_now}" for name, (was, is_now) in free.items()
    ]


def _listing(changed: Mapping[str, tuple]) -> str:
    return ", ".join(f"{name}: {was} -> {is_now}" for name, (was, is_now) in changed.items())


def _images_per_pass(identity: Mapping) -> int:
    return identity["global_batch"] // identity["recipe"]["gradient_accumulation_steps"]


def _fingerprint(entries: Iterable[str]) -> str:
    """Number and digest of the files and labels: the sampler counts on their order."""
    digest, images = hashlib.sha256(), 0
    for entry in entries:
        # File names may be other bytes than UTF-8.
        digest.update(f"{entry}\n".encode(errors="surrogateescape"))
        images += 1
    return f"{images} images, {digest.hexdigest()[:16]}"
