"""What a process does for PyTorch. It holds no MindSpore, and may be another interpreter's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import torch_detection
from benchmarks.inputs import (
    AUXILIARY_WEIGHT,
    CLIP,
    COMPILED,
    DECAY,
    EAGER,
    FACTOR,
    RATE,
    TIMM,
    Work,
    batch_of,
    is_detector,
    is_segmentor,
)
from benchmarks.timing import Timed
from benchmarks.workers import serve
from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import amplify, randomize

Call = Callable[[], object]

timed = Timed()


def build(contestant: str, fields: list) -> dict:
    """Get ready for a `Work` and do it once: what that takes."""
    work = Work(*fields)
    torch.backends.cuda.matmul.allow_tf32 = work.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = work.precision == "tf32"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if work.device != "CPU" and not torch.cuda.is_available():
        raise RuntimeError(f"this PyTorch has no {work.device}")
    torch.cuda.empty_cache()
    arrays = [torch.from_numpy(array) for array in batch_of(work)]

    def make() -> Call:
        model = _create(work.model, contestant, work.what == "features")
        model = model.to("cpu" if work.device == "CPU" else "cuda")
        run = torch.compile(model) if contestant == COMPILED else model
        return MAKERS[work.what](model, run, work.precision == "fp16", *arrays)

    note = torch_detection.operators_in_words() if is_detector(work.model) else ""
    return timed.start(make, wait)._asdict() | {"note": note}


def peak() -> dict[str, int]:
    """Bytes: of the device's memory, or of this process's."""
    on_gpu = torch.cuda.is_initialized()
    return {"peak": torch.cuda.max_memory_allocated() if on_gpu else timed.peak()}


def wait(result: object) -> None:
    """Until the device is idle."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _create(name: str, contestant: str = EAGER, features_only: bool = False) -> nn.Module:
    if contestant == TIMM:
        import timm

        return randomize(timm.create_model(f"twins_{name}"))
    if is_detector(name):
        return torch_detection.create(name)
    if is_segmentor(name):
        return randomize(create_segmentation_reference(name))
    return randomize(create_reference(name, features_only=features_only))


def _inference(
    model: nn.Module, run: Callable, half: bool, images: Tensor, *targets: Tensor
) -> Call:
    model.eval().to(torch.float16 if half else torch.float32)
    inputs = images.to(next(model.parameters()))
    if isinstance(model, torch_detection.Detector):
        run = partial(torch_detection.predict, model)
    return torch.inference_mode()(lambda: run(inputs))


def _training(*arguments: Any) -> Call:
    return partial(_step(*arguments), RATE)


def _step(
    model: nn.Module, run: Callable, half: bool, images: Tensor, *targets: Tensor
) -> Callable[[float], float]:
    """A call that makes one step at a rate: forward, backward, clip, AdamW; the loss.

    The batch is copied from the host each time; `half` autocasts to fp16.
    """
    exempt = {n: p for n, p in model.named_parameters() if p.ndim == 1 or "pos_block." in n}
    decayed = [p for n, p in model.named_parameters() if n not in exempt]
    groups = [
        {"params": decayed, "weight_decay": DECAY},
        {"params": list(exempt.values()), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    place = decayed[0].device
    scaler = torch.amp.GradScaler(place.type, enabled=half)
    model.train()
    loss_of: Callable[..., Tensor] = F.cross_entropy
    if isinstance(model, torch_detection.Detector):
        loss_of = torch_detection.loss_of(model)
    elif not targets[0].is_floating_point():
        loss_of = _pixel_cross_entropy

    def step(rate: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, wanted = images.to(place), [target.to(place) for target in targets]
        optimizer.zero_grad()
        with torch.autocast(place.type, torch.float16, enabled=half):
            loss = loss_of(run(inputs), *wanted)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def _pixel_cross_entropy(outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The loss of a segmentor, whose outputs are its logits and perhaps its auxiliary head's."""
    total = torch.zeros(())
    for logits, weight in zip(outputs, (1.0, AUXILIARY_WEIGHT), strict=False):
        resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
        total = total + weight * F.cross_entropy(resized, labels.long(), ignore_index=255)
    return total


def _conversion(model: nn.Module, *rest: object) -> Call:
    """What no conversion can avoid: read the source, write its bytes."""
    folder = tempfile.TemporaryDirectory()
    torch.save(model.state_dict(), f"{folder.name}/source.pth")

    def call() -> None:
        tensors = torch.load(f"{folder.name}/source.pth", weights_only=True)
        with open(f"{folder.name}/target", "wb") as file:
            for tensor in tensors.values():
                file.write(tensor.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    return call


MAKERS = {
    "inference": _inference,
    "features": _inference,
    "training": _training,
    "conversion": _conversion,
}


def reference(model: str, folder: str, weights: list[str]) -> None:
    """Save a model with random weights, and its outputs in float32 and float64 with each kind."""
    network = _create(model).eval()
    torch.save({"model": network.state_dict()}, Path(folder, f"{model}.pth"))
    images = torch.from_numpy(np.load(Path(folder, f"{model}.npy")))
    for name in weights:
        if name == "amplified":
            amplify(network, FACTOR)
        for dtype in ("float32", "float64"):
            network.to(getattr(torch, dtype))
            with torch.inference_mode():
                run: Callable[..., dict[str, Tensor]] = getattr(network, "stages")  # noqa: B009
                stages = run(images.to(getattr(torch, dtype)))
            arrays = {stage: tensor.numpy() for stage, tensor in stages.items()}
            np.savez(Path(folder, f"{model}.{name}.{dtype}.npz"), **arrays)
        network.float()


def train(model: str, folder: str, rates: list[float], dtype: str) -> dict[str, list[float]]:
    """A step for each rate on the batch in the folder; the losses. Start and end are written."""
    network = _create(model)
    _save(network, Path(folder, "start.npz"))
    network.to(getattr(torch, dtype))
    with np.load(Path(folder, "batch.npz")) as batch:
        arrays = [torch.from_numpy(batch[name]) for name in batch.files]
    arrays = [a.to(getattr(torch, dtype)) if a.is_floating_point() else a for a in arrays]
    step = _step(network, network, False, *arrays)
    losses = [step(rate) for rate in rates]
    _save(network, Path(folder, f"{dtype}.npz"))
    return {"losses": losses}


def _save(network: nn.Module, path: Path) -> None:
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in network.named_parameters()})


def environment() -> dict[str, str]:
    """PyTorch's version, and the card that it can use."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    return {"found": f"{torch.__version__}, CUDA {torch.version.cuda}, {card}"}


if __name__ == "__main__":
    serve(build, timed.turn, peak, reference, train, environment)
