"""What a process does for MindTwins. It holds no PyTorch, except to convert a file of torch's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import mindtwins
from benchmarks.inputs import (
    AUXILIARY_WEIGHT,
    CLIP,
    DECAY,
    FACTOR,
    OBJECT_CLASSES,
    RATE,
    Work,
    batch_of,
    detector_weight,
    is_detector,
    is_segmentor,
    torch_name,
)
from benchmarks.machine import card, core_peak
from benchmarks.roofline import find_floor, processor_floor
from benchmarks.timing import Timed
from benchmarks.workers import serve
from mindtwins.checkpoint import save_checkpoint
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.detection.detections import Geometry
from mindtwins.detection.detector import Detector
from mindtwins.detection.loss import MaskRCNNLoss, RetinaNetLoss
from mindtwins.detection.mask_rcnn import MaskRCNN
from mindtwins.detection.regions import RegionChoice
from mindtwins.detection.retinanet import RetinaNet
from mindtwins.execution import set_precision, use_device
from mindtwins.models.twins import ClassifierOutputs
from mindtwins.segmentation.loss import PixelCrossEntropy
from mindtwins.segmentation.segmentor import SegmentorOutputs
from mindtwins.tasks import KINDS, load_model
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.step import Complete, MicroBatch, TrainStep, build_train_step

Call = Callable[[], object]

# fp16 stands for these levels: of the recipes' kinds, the one that computes most in fp16.
LEVELS = {"inference": "O3", "features": "O3", "training": "O2"}
timed = Timed()


def build(contestant: str, fields: list) -> dict:
    """Get ready for a `Work` and do it once: what that takes, and what it takes at the least."""
    work = Work(*fields)
    use_device(work.device, allow_tf32=work.precision == "tf32")
    arrays = batch_of(work)
    cost = timed.start(lambda: MAKERS[work.what](work, *arrays), wait)
    if work.device == "CPU":
        peak = core_peak()
        floor = processor_floor(work, peak and peak * len(os.sched_getaffinity(0)))
    else:
        floor = find_floor(work, card())
    return cost._asdict() | {"floor": floor}


def peak() -> dict[str, int]:
    """Bytes: of the device's memory, or of this process's."""
    on_cpu = ms.get_current_device().device_target == "CPU"
    return {"peak": timed.peak() if on_cpu else ms.runtime.max_memory_allocated()}


def wait(result: object) -> None:
    """Until the device has computed what a call returned."""
    while isinstance(result, tuple | list):
        result = result[0]
    if ms.get_current_device().device_target != "CPU":
        ms.runtime.synchronize()
    elif isinstance(result, Tensor):
        result.asnumpy()


def on_device(array: np.ndarray, dtype: ms.Type = ms.float32) -> Tensor:
    """A tensor in the device's memory: the result of an operation, which is where it was made."""
    return Tensor(array, dtype) + Tensor(0, dtype)


def _create(work: Work, **options: object) -> nn.Cell:
    """A model with weights of std 1 / sqrt(fan_in), norms of 1 +- 0.1 and biases of std 0.1."""
    model = _filled_detector(work.model) if is_detector(work.model) else _filled(work, **options)
    return set_precision(model, LEVELS[work.what]) if work.precision == "fp16" else model


def _filled(work: Work, **options: object) -> nn.Cell:
    make = mindtwins.create_segmentor if is_segmentor(work.model) else mindtwins.create_model
    model = make(work.model, **options)
    rng = np.random.default_rng(0)
    for parameter in model.trainable_params():
        values = rng.standard_normal(parameter.shape, dtype=np.float32)
        if values.ndim > 1:
            values /= np.float32(values[0].size ** 0.5)
        else:
            values = np.float32(0.1) * values + np.float32(parameter.name.endswith("gamma"))
        parameter.set_data(Tensor(values))
    return model


def _filled_detector(name: str) -> Detector:
    model = mindtwins.create_detector(name)
    for parameter in model.trainable_params():
        values = detector_weight(torch_name(parameter.name), parameter.shape)
        parameter.set_data(Tensor(values))
    return model


def _inference(work: Work, images: np.ndarray, *targets: np.ndarray) -> Call:
    model = _create(work, **{"features_only": True} if work.what == "features" else {})
    inputs = on_device(images)
    if isinstance(model, Detector):
        # Images as large as their pictures.
        geometry = Geometry(work.size, work.size, np.ones(4, np.float32), work.size, work.size)
        return lambda: model.predict(inputs, [geometry] * work.batch)
    return lambda: model(inputs)


def _training(work: Work, images: np.ndarray, *targets: np.ndarray) -> Call:
    """The step of `train.py`: the batch is copied to the device, the loss comes back."""
    scale = LossScale(65536.0, 2000, dynamic=True) if work.precision == "fp16" else None
    model = _create(work)
    choice = RegionChoice(model) if isinstance(model, MaskRCNN) else None
    step = _step(model, scale, choice)
    return lambda: step([MicroBatch(images, targets)], RATE)


def _step(
    model: nn.Cell, scale: LossScale | None = None, complete: Complete | None = None
) -> TrainStep:
    loss: nn.Cell = SoftTargetCrossEntropy()
    if isinstance(model, RetinaNet):
        loss = RetinaNetLoss(OBJECT_CLASSES)
    if isinstance(model, MaskRCNN):
        loss = MaskRCNNLoss(model)
    if hasattr(model, "auxiliary_head"):
        weights = (1.0, AUXILIARY_WEIGHT)
        loss = PixelCrossEntropy(weights[:1] if model.auxiliary_head is None else weights)
    return build_train_step(
        model.set_train(),
        loss,
        weight_decay=DECAY,
        clip_grad=CLIP,
        loss_scale=scale,
        complete=complete,
    )


def _conversion(work: Work, images: np.ndarray, *targets: np.ndarray) -> Call:
    import torch

    from mindtwins.reference import create_reference

    folder = tempfile.TemporaryDirectory()
    torch.save(create_reference(work.model).state_dict(), f"{folder.name}/source.pth")
    # It lives as long as this function.
    return lambda: convert("source", folder.name)


def write_onnx(fields: list, path: str) -> None:
    """What export.py makes of the model of a `Work`, without its comparison."""
    from mindtwins.commands.export import create_order
    from mindtwins.export.onnx_file import to_bytes
    from mindtwins.export.to_onnx import build_onnx

    work = Work(*fields)
    use_device("CPU")
    model = _create(work)
    checkpoint = Path(path).with_suffix(".ckpt")
    tensors = {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}
    save_checkpoint(checkpoint, tensors, {"dialect": asdict(model.dialect)})
    order = create_order(checkpoint, features_only=work.what == "features")
    Path(path).write_bytes(to_bytes(*build_onnx(order, model.dialect)))


MAKERS = {
    "inference": _inference,
    "features": _inference,
    "training": _training,
    "conversion": _conversion,
}


def convert(model: str, folder: str) -> None:
    """The way of a user's file: read, convert, write."""
    conversion = from_torch(read_source(Path(folder, f"{model}.pth")), KINDS)
    save_checkpoint(Path(folder, f"{model}.ckpt"), conversion.tensors, conversion.metadata)


def outputs(device: str, model: str, level: str, folder: str, weights: list[str]) -> None:
    """Write all outputs of a converted model on the images in the folder, for each of `weights`."""
    use_device(device, allow_tf32=level == "TF32")
    cell = load_model(Path(folder, f"{model}.ckpt"))
    show = SegmentorOutputs if is_segmentor(model) else ClassifierOutputs
    run = show(set_precision(cell, "O0" if level == "TF32" else level))
    images = Tensor(np.load(Path(folder, f"{model}.npy")))
    for name in weights:
        if name == "amplified":
            _amplify(cell)
        np.savez(Path(folder, f"{model}.{name}.found.npz"), *(t.asnumpy() for t in run(images)))


def _amplify(model: nn.Cell) -> None:
    """As `mindtwins.reference.weights.amplify`, in place: the graph is compiled already."""
    for parameter in model.get_parameters():
        name = parameter.name
        if ".sr." in name or ("patch_embeds." in name and ".proj" in name):
            ops.assign(parameter, Tensor(parameter.asnumpy() * np.float32(FACTOR)))


def train(device: str, model: str, folder: str, rates: list[float]) -> dict[str, list[float]]:
    """A step for each rate, from the weights and on the batch in the folder; the losses."""
    use_device(device)
    make = mindtwins.create_detector if is_detector(model) else mindtwins.create_model
    cell = make(model)
    with np.load(Path(folder, "start.npz")) as start:
        for parameter in cell.get_parameters():
            parameter.set_data(Tensor(start[torch_name(parameter.name)]))
    with np.load(Path(folder, "batch.npz")) as batch:
        images, *targets = (batch[name] for name in batch.files)
    batches = [MicroBatch(images, tuple(targets))]
    step = _step(cell)
    losses = [step(batches, rate).loss for rate in rates]
    final = {torch_name(parameter.name): parameter.asnumpy() for parameter in cell.get_parameters()}
    np.savez(Path(folder, "MindTwins.npz"), **final)
    return {"losses": losses}


if __name__ == "__main__":
    serve(build, timed.turn, peak, write_onnx, convert, outputs, train)
