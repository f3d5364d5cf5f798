"""The PyTorch side of `benchmarks/gpu.py`, in processes that hold no MindSpore."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.on_gpu.inputs import (
    CLIP,
    DECAY,
    FACTOR,
    RATE,
    WEIGHTS,
    deviation,
    expected_file,
    images,
    save,
    targets,
    weights_file,
)
from benchmarks.on_gpu.timing import exclusive, median_seconds
from benchmarks.on_gpu.workers import emit, serve
from mindtwins.reference import create_reference
from mindtwins.reference.weights import amplify, randomize


def environment() -> None:
    """Versions, and whether PyTorch can use the GPU."""
    has_gpu = torch.cuda.is_available()
    emit(
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        cuda=torch.version.cuda or "none",
        cudnn=torch.backends.cudnn.version() if has_gpu else None,
        card=torch.cuda.get_device_name() if has_gpu else None,
    )


def reference(models: list[str], folder: str, batch: int, size: int) -> None:
    """Write each model's random weights and float64 outputs; report its own rounding error.

    That is of float32 on the GPU, TF32 off, or on the CPU where PyTorch has none.
    """
    device = _device("cuda" if torch.cuda.is_available() else "cpu", "fp32")
    pixels = torch.from_numpy(images(batch, size))
    for name in models:
        model = randomize(create_reference(name)).eval()
        state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
        save(weights_file(folder, name), state)
        for weights in WEIGHTS:
            if weights == "amplified":
                amplify(model, FACTOR)
            with torch.inference_mode():
                found = _on_host(model.to(device).stages(pixels.to(device)))
                exact = _on_host(model.cpu().double().stages(pixels.double()))
                model.float()
            floors = {stage: deviation(found[stage], exact[stage]) for stage in exact}
            save(expected_file(folder, name, weights), exact)
            emit(model=name, weights=weights, device=device.type, floors=floors)


def _on_host(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def speed(
    device: str,
    precision: str,
    what: str,
    cases: list[list],
    compiled: bool,
    seconds: float,
    lock: str,
) -> None:
    """Seconds per call and peak memory, eager or compiled; fp16 as `half()`, autocast in training.

    Args:
        device: "GPU" or "CPU".
        precision: "fp32", "tf32" or "fp16".
        what: "inference", or "training" for a whole step.
        cases: (model, image size, batch).
        compiled: use torch.compile.
        seconds: to measure each.
        lock: see `timing.exclusive`.
    """
    place = _device("cuda" if device == "GPU" else "cpu", precision)
    work = {"inference": _inference, "training": _training}[what]
    for name, size, batch in cases:
        row = {"model": name, "size": size, "batch": batch}
        try:
            call = None
            _forget(place)
            call = work(name, size, batch, precision, compiled, place)
            started = time.perf_counter()
            call()
            _synchronize(place)
            first = time.perf_counter() - started
            with exclusive(lock):
                taken = median_seconds(call, lambda: _synchronize(place), seconds)
            peak = torch.cuda.max_memory_allocated() if place.type == "cuda" else 0
            emit(**row, seconds=taken, first=first, peak=peak)
        except Exception as error:
            emit(**row, problem=str(error).strip().partition("\n")[0][:120] or repr(error))


Call = Callable[[], object]


def _inference(
    name: str, size: int, batch: int, precision: str, compiled: bool, place: torch.device
) -> Call:
    model = randomize(create_reference(name)).eval().to(place)
    inputs = torch.from_numpy(images(batch, size)).to(place)
    if precision == "fp16":
        model, inputs = model.half(), inputs.half()
    run = torch.compile(model) if compiled else model

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return run(inputs)

    return call


def _training(
    name: str, size: int, batch: int, precision: str, compiled: bool, place: torch.device
) -> Call:
    """Copy the batch to the device, forward, backward, clip, AdamW; the loss comes back."""
    model = randomize(create_reference(name)).train().to(place)
    parameters = list(model.parameters())
    exempt = {n for n, p in model.named_parameters() if p.ndim == 1 or n.startswith("pos_block.")}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in model.named_parameters() if (n in exempt) == is_exempt],
                "weight_decay": 0.0 if is_exempt else DECAY,
            }
            for is_exempt in (False, True)
        ],
        lr=RATE,
    )
    halves = precision == "fp16"
    scaler = torch.amp.GradScaler(place.type, enabled=halves)
    run = torch.compile(model) if compiled else model
    pixels, labels = torch.from_numpy(images(batch, size)), torch.from_numpy(targets(batch))

    def call() -> float:
        inputs, wanted = pixels.to(place), labels.to(place)
        optimizer.zero_grad()
        with torch.autocast(place.type, torch.float16, enabled=halves):
            loss = torch.nn.functional.cross_entropy(run(inputs), wanted)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return call


def _device(kind: str, precision: str) -> torch.device:
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device(kind)


def _forget(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _synchronize(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve({"environment": environment, "reference": reference, "speed": speed})
