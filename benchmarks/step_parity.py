"""Twenty training steps beside PyTorch's: the table of losses and weights.

    python -m benchmarks.step_parity [--models svt_small maskrcnn_svt_small ...]

The same random weights and batch, of a Mask R-CNN with the same regions, AdamW with clipping, decay
groups, warmup and cosine; of a detector the first steps of its recipe's warmup. Largest relative
deviation of the 20 losses, and the relative L2 distance of all weights after them; beside them
PyTorch's own rounding, the same run in float32 against float64, on the CPU.
"""

from __future__ import annotations

import tempfile

import numpy as np

from benchmarks.command import Table, parser
from benchmarks.inputs import CLASSES, EAGER, MINDTWINS, OBJECT_CLASSES, Work, batch_of, is_detector
from benchmarks.workers import start
from mindtwins import list_detectors, list_models
from mindtwins.detection.assignment import Sampling
from mindtwins.detection.regions import stack_regions
from mindtwins.errors import UserError, run_cli
from mindtwins.training.schedule import CosineSchedule

MODELS = ["svt_small", "pcpvt_small", "retinanet_svt_small", "maskrcnn_svt_small"]
QUICK = ["svt_tiny", "retinanet_svt_tiny", "maskrcnn_svt_tiny"]
STEPS, BATCH, SIZE = 20, 8, 64
REGIONS = Sampling(16, 0.25)  # of a picture
TOLERATED = 1e-4
SCHEDULE = CosineSchedule(1e-3, 1e-5, 1e-6, 1, 10, steps_per_epoch=2)
# As in their recipes, with 500 steps of warmup. At the rate of its end PyTorch parts from itself.
DETECTOR_SCHEDULE = CosineSchedule(1e-4, 0.0, 1e-7, 1, 12, steps_per_epoch=500)

Run = tuple[np.ndarray, np.ndarray]  # losses, and all weights in one


def main(argv: list[str]) -> None:
    """Train and print."""
    command, models = parser(__doc__), [*list_models(), *list_detectors()]
    command.add_argument("--models", nargs="+", default=MODELS, choices=models, metavar="MODEL")
    options = command.parse_args(argv)
    table = Table("step parity", "model", "losses", "PyTorch alone", "weights", "PyTorch alone")
    for model in QUICK if options.quick else options.models:
        schedule = DETECTOR_SCHEDULE if is_detector(model) else SCHEDULE
        rates = [schedule(number) for number in range(3 if options.quick else STEPS)]
        with (
            tempfile.TemporaryDirectory() as folder,
            start(EAGER, options.torch_python) as theirs,
            start(MINDTWINS) as ours,
        ):
            np.savez(f"{folder}/batch.npz", *training_batch(model))
            task = {"model": model, "folder": folder, "rates": rates}
            losses = {
                "float32": theirs.ask("train", **task, dtype="float32")["losses"],
                "float64": theirs.ask("train", **task, dtype="float64")["losses"],
                MINDTWINS: ours.ask("train", **task, device=options.device_target)["losses"],
            }
            runs = {name: (np.array(losses[name]), load(f"{folder}/{name}.npz")) for name in losses}
        found = deviations(runs[MINDTWINS], runs["float32"])
        floors = deviations(runs["float32"], runs["float64"])
        numbers = (found[0], floors[0], found[1], floors[1])
        table.row(model, *(f"{number:.1e}" for number in numbers))
        if not max(found) <= TOLERATED:
            raise UserError(f"{model} is more than {TOLERATED:g} from PyTorch")


def training_batch(model: str) -> tuple[np.ndarray, ...]:
    """Images and what the model's loss compares its output with."""
    if not is_detector(model):
        rng = np.random.default_rng(0)
        images = rng.normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
        return images, rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
    batch = batch_of(Work("CPU", "fp32", model, "training", SIZE, BATCH))
    return with_regions(*batch) if model.startswith("maskrcnn_") else batch


def with_regions(images: np.ndarray, *targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """A Mask R-CNN's batch with regions that no model proposed: near the objects, and elsewhere."""
    *anchors, boxes, labels, _, masks, seeds = targets
    draws = [np.random.default_rng(seed) for seed in seeds]
    proposals = []
    for own, rng in zip(boxes, draws, strict=True):
        near = np.repeat(own, 4, 0) + rng.normal(0, 3, (4 * len(own), 4))
        elsewhere = np.sort(rng.uniform(0, SIZE, (len(near), 2, 2)), 1).reshape(-1, 4)
        found = np.concatenate([near, elsewhere]).clip(0, SIZE).astype(np.float32)
        proposals.append(found[(found[:, 2:] - found[:, :2]).min(1) > 4])
    permutes = [rng.permutation for rng in draws]
    kinds = list(boxes), list(labels), list(masks)
    return images, *anchors, *stack_regions(proposals, *kinds, OBJECT_CLASSES, REGIONS, permutes)


def load(path: str) -> np.ndarray:
    """All weights of a model in one, in the order of their names."""
    with np.load(path) as arrays:
        weights = [arrays[name] for name in sorted(arrays)]
    return np.concatenate([array.ravel().astype(np.float64) for array in weights])


def deviations(found: Run, expected: Run) -> tuple[float, float]:
    """Largest relative deviation of the losses, relative L2 distance of the weights."""
    distance = np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1])
    return float(np.abs(found[0] / expected[0] - 1).max()), float(distance)


if __name__ == "__main__":
    run_cli(main)
