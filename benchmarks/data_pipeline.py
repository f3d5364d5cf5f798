"""Images per second of the loaders, beside a torch DataLoader that does the same PIL work.

    python -m benchmarks.data_pipeline [--data_dir FOLDER] [--workers 2] [--batch_size 32]

Both sides decode, transform and stack the same files with the same callables and workers, without
mixing, but torch's workers leave all resizing to Pillow. They take turns, and the table shows each
side's median over the rounds, starting and stopping the workers included. The processor time per
image, over all of a side's processes, is the steadier figure on a machine that is busy with other
things. Without --data_dir the images are crops of scikit-learn's two photographs in about
ImageNet's mean size.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.command import Table, parser
from benchmarks.inputs import MEAN, STD, write_images
from benchmarks.timing import Cost, cost_of, take_turns
from mindtwins.classification.loader import build_evaluation_loader, build_training_loader
from mindtwins.classification.mixing import Mixing
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.data import resample
from mindtwins.data.decode import read_rgb
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import LoaderOptions
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.data.randomness import sample_generator
from mindtwins.errors import run_cli

SEED = 0
EVALUATION = EvaluationTransform(224, 0.875, MEAN, STD)
TRAINING = TrainingTransform(224, MEAN, STD, erasing=RandomErasing())


class TorchDataset(torch.utils.data.Dataset):
    """The same files and the same work, for a torch DataLoader."""

    def __init__(self, folder: ImageFolder, work: Callable[[Image.Image, int], np.ndarray]) -> None:
        self.folder = folder
        self.work = work

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = self.work(read_rgb(self.folder.paths[index]), index)
        return torch.from_numpy(picture), int(self.folder.labels[index])


def resize_with_pillow(worker: int) -> None:
    """Make a worker process of torch's do without MindTwins' C++ code."""
    # It is cached, which no lambda is.
    resample._pass_order = lambda: None  # type: ignore[assignment]


def theirs(
    folder: ImageFolder, options: Namespace, work: Callable[[Image.Image, int], np.ndarray]
) -> Iterator[int]:
    """A pass of a torch DataLoader, as the sizes of its batches."""
    loader = torch.utils.data.DataLoader(
        TorchDataset(folder, work),
        options.batch_size,
        num_workers=options.workers,
        drop_last=True,
        worker_init_fn=resize_with_pillow,
    )
    return (len(labels) for _, labels in loader)


def _loading(options: Namespace, processes: bool) -> LoaderOptions:
    return LoaderOptions(num_parallel_workers=options.workers, python_multiprocessing=processes)


def evaluation(folder: ImageFolder, options: Namespace, processes: bool) -> Iterator[int]:
    """A pass for evaluation."""
    loader = build_evaluation_loader(
        folder,
        EVALUATION,
        batch_size=options.batch_size,
        options=_loading(options, processes),
    )
    return (int(batch.valid.sum()) for batch in loader)


def training(folder: ImageFolder, options: Namespace, processes: bool) -> Iterator[int]:
    """A pass for training."""
    loader = build_training_loader(
        folder,
        TRAINING,
        Mixing(folder.num_classes, mixup_alpha=0.0, cutmix_alpha=0.0),
        batch_size=options.batch_size,
        seed=SEED,
        options=_loading(options, processes),
    )
    return (len(batch.images) for batch in loader.batches(0, loader.steps_per_epoch))


# Of each row: the loader, and what it is given beside the folder and the options.
CONTESTANTS: dict[str, tuple[Callable[..., Iterator[int]], object]] = {
    "evaluation, mindtwins, threads": (evaluation, False),
    "evaluation, mindtwins, processes": (evaluation, True),
    "evaluation, torch DataLoader": (theirs, lambda image, index: EVALUATION(image)),
    "training, mindtwins, threads": (training, False),
    "training, mindtwins, processes": (training, True),
    "training, torch DataLoader": (
        theirs,
        lambda image, index: TRAINING(image, sample_generator(SEED, 0, index)),
    ),
}


def cost_of_image(start: Callable[[], Iterator[int]]) -> list[Cost]:
    """What an image costs in one pass."""
    counts: list[int] = []
    cost = cost_of(lambda: counts.extend(start()))
    return [Cost(*(seconds / sum(counts) for seconds in cost))]


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    command = parser(__doc__, devices=False)
    command.add_argument("--data_dir", help="an image folder; default: generated JPEGs")
    command.add_argument("--images", type=int, default=512, help="generated images")
    command.add_argument("--batch_size", type=int, default=32)
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--rounds", type=int, default=5)
    options = command.parse_args(argv)
    if options.quick:
        options.images, options.batch_size, options.rounds = 16, 4, 1
    with tempfile.TemporaryDirectory() as generated:
        if options.data_dir is None:
            write_images(Path(generated), options.images, classes=10)
        folder = ImageFolder(options.data_dir or generated)
        turns = {
            name: partial(cost_of_image, partial(loader, folder, options, argument))
            for name, (loader, argument) in CONTESTANTS.items()
        }
        costs = take_turns(turns, options.rounds)
    print(f"{len(folder)} images, {options.workers} workers, batch {options.batch_size}")
    print(f"resizing in C++: {'active' if resample.available() else 'not built'}")
    table = Table("data pipeline", "transform, loader", "images/s", "cpu ms/image")
    for name, cost in costs.items():
        table.row(name, f"{1 / cost.wall:.0f}", f"{1e3 * cost.cpu:.2f}")


if __name__ == "__main__":
    run_cli(main)
