"""The MindTwins side of `benchmarks/gpu.py`, in processes that hold no PyTorch."""

from __future__ import annotations

import gc
import platform
import re
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import mindtwins
from benchmarks.on_gpu.inputs import (
    CLIP,
    DECAY,
    FACTOR,
    RATE,
    WEIGHTS,
    deviation,
    expected_file,
    images,
    targets,
    weights_file,
)
from benchmarks.on_gpu.operations import measure, wait
from benchmarks.on_gpu.roofline import count_operators, find_peaks, floor_seconds
from benchmarks.on_gpu.timing import exclusive, median_seconds
from benchmarks.on_gpu.workers import emit, serve
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.execution import set_precision, use_device
from mindtwins.models.twins import ClassifierOutputs
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW
from mindtwins.training.step import MicroBatch, TrainStep

# fp16 stands for these levels: of the recipes' kinds, the one that computes most in fp16.
INFERENCE_LEVEL, TRAINING_LEVEL = "O3", "O2"
PATIENCE = 300.0  # seconds for the reference to be computed
_LIBRARIES = re.compile(r"lib(cudart|cublas|cublasLt|cudnn|nccl|cuda|mindspore_gpu)\.so[.\d]*$")


def environment(device: str) -> None:
    """Versions, what a first operation takes, and the libraries that are loaded then."""
    started = time.perf_counter()
    use_device(device)
    ones = Tensor(np.ones((256, 256), np.float32))
    ops.matmul(ones, ones).asnumpy()
    seconds = time.perf_counter() - started
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    found = {Path(path).resolve().name for path in mapped if _LIBRARIES.search(path)}
    emit(
        python=platform.python_version(),
        mindspore=ms.__version__,
        numpy=np.__version__,
        device=ms.get_current_device().device_target,
        first_operation=seconds,
        libraries=sorted(found),
    )


def run_check(device: str) -> None:
    """MindSpore's own check, which prints whether it failed instead of raising."""
    use_device(device)
    with redirect_stdout(StringIO()) as printed:
        ms.run_check()
    emit(said=" ".join(printed.getvalue().split()))


def parity(
    device: str,
    models: list[str],
    levels: list[str],
    folder: str,
    batch: int,
    size: int,
    tf32: bool,
) -> None:
    """Deviations of the stages and logits from the float64 reference, as it becomes available.

    fp16 levels are compared with randomized weights only.
    """
    use_device(device, allow_tf32=tf32)
    pixels = Tensor(images(batch, size))
    for name in models:
        state = _when_there(weights_file(folder, name))
        for level in levels:
            model = mindtwins.create_model(name)
            _set_weights(model, state)
            outputs = ClassifierOutputs(set_precision(model, level))
            for weights in WEIGHTS if level == "O0" and not tf32 else WEIGHTS[:1]:
                expected = _when_there(expected_file(folder, name, weights))
                if weights == "amplified":
                    _amplify(model)
                found = [output.asnumpy() for output in outputs(pixels)]
                deviations = {
                    stage: deviation(array, expected[stage])
                    for stage, array in zip(expected, found, strict=True)
                }
                agree = found[-1].argmax(-1) == expected["logits"].argmax(-1)
                emit(
                    model=name,
                    weights=weights,
                    level="TF32" if tf32 else level,
                    deviations=deviations,
                    agree=int(agree.sum()),
                    images=batch,
                )


def _when_there(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file that another process is about to write."""
    give_up = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > give_up:
            raise TimeoutError(f"no {path.name} from the reference")
        time.sleep(0.1)
    with np.load(path) as arrays:
        return dict(arrays)


def _set_weights(model: nn.Cell, state: dict[str, np.ndarray]) -> None:
    for parameter in model.get_parameters():
        name = parameter.name.replace(".gamma", ".weight").replace(".beta", ".bias")
        parameter.set_data(Tensor(state[name]))


def _amplify(model: nn.Cell) -> None:
    """As `mindtwins.reference.weights.amplify`, in place: the graph is compiled already."""
    for parameter in model.get_parameters():
        name = parameter.name
        if ".sr." in name or ("patch_embeds." in name and ".proj" in name):
            ops.assign(parameter, Tensor(parameter.asnumpy() * np.float32(FACTOR)))


def speed(
    device: str, precision: str, what: str, cases: list[list], card: str, seconds: float, lock: str
) -> None:
    """Seconds per call, peak memory, and the floor of the card's data sheet; see `torch_side`."""
    use_device(device, allow_tf32=precision == "tf32")
    peaks = find_peaks(card)
    work = {"inference": _inference, "training": _training}[what]
    for name, size, batch in cases:
        row: dict[str, object] = {"model": name, "size": size, "batch": batch}
        try:
            call = None
            gc.collect()
            if device != "CPU":
                ms.runtime.reset_peak_memory_stats()
            call = work(name, size, batch, precision)
            started = time.perf_counter()
            call()
            wait()
            first = time.perf_counter() - started
            with exclusive(lock):
                taken = median_seconds(call, wait, seconds)
            if peaks and what == "inference" and getattr(peaks, precision):
                row["floor"] = floor_seconds(count_operators(name, size, batch), peaks, precision)
            peak = ms.runtime.max_memory_allocated()
            emit(**row, seconds=taken, first=first, peak=peak)
        except Exception as error:
            emit(**row, problem=_first_line(error))


Call = Callable[[], object]


def _inference(name: str, size: int, batch: int, precision: str) -> Call:
    model = mindtwins.create_model(name)
    _randomize(model)
    if precision == "fp16":
        set_precision(model, INFERENCE_LEVEL)
    inputs = on_device(images(batch, size))
    return lambda: model(inputs)


def _training(name: str, size: int, batch: int, precision: str) -> Call:
    """The step of `train.py`: the batch is copied to the device, the loss comes back."""
    model = mindtwins.create_model(name)
    _randomize(model)
    halves = precision == "fp16"
    if halves:
        set_precision(model, TRAINING_LEVEL)
    optimizer = AdamW(parameter_groups(model.set_train(), DECAY))
    scale = LossScale(65536.0, 2000, dynamic=halves)
    step = TrainStep(model, SoftTargetCrossEntropy(), optimizer, scale, CLIP)
    micro_batch = MicroBatch(images(batch, size), targets(batch))
    return lambda: step([micro_batch], RATE)


def on_device(array: np.ndarray) -> Tensor:
    """A tensor in the device's memory: the result of an operation, which is where it was made."""
    return Tensor(array) + Tensor(0, ms.float32)


def _randomize(model: nn.Cell) -> None:
    """Weights of std 1 / sqrt(fan_in), so that activations are as large as a trained model's."""
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():
        values = rng.standard_normal(parameter.shape, dtype=np.float32)
        if len(parameter.shape) > 1:
            values /= np.sqrt(np.prod(parameter.shape[1:]))
        else:
            values = 0.1 * values + float(parameter.name.endswith("gamma"))
        parameter.set_data(Tensor(values.astype(np.float32)))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120] or repr(error)


def formulations(
    device: str, half: bool, batch: int, size: int, seconds: float, every: int, lock: str
) -> None:
    """Each operation in every formulation; see `operations.measure`."""
    use_device(device)
    measure(half, batch, size, seconds, every, lock)


if __name__ == "__main__":
    serve(
        {
            "environment": environment,
            "run_check": run_check,
            "parity": parity,
            "speed": speed,
            "formulations": formulations,
        }
    )
