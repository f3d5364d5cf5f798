"""Images per second of the loaders, beside a torch DataLoader that does the same PIL work.

    python benchmarks/data_pipeline.py [--data_dir FOLDER] [--workers 2] [--batch_size 32]

Both sides decode, transform and stack the same files with the same callables and workers, without
mixing, but torch's workers leave all resizing to Pillow. They take turns, and the table shows each
side's median over the rounds, starting and stopping the workers included. The processor time per
image, over all of a side's processes, is the steadier figure on a machine that is busy with other
things. Without --data_dir the images are crops of scikit-learn's two photographs in about
ImageNet's mean size.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins.classification.loader import build_evaluation_loader, build_training_loader
from mindtwins.classification.mixing import Mixing
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.data import resample
from mindtwins.data.decode import read_rgb
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.data.randomness import sample_generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 0


def resize_with_pillow(worker: int) -> None:
    """Make a worker process of torch's do without MindTwins' C++ code."""
    resample._pass_order = lambda: None


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


def write_images(folder: Path, count: int) -> None:
    """Write `count` JPEGs of about 500 x 375 pixels in ten class folders."""
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(SEED)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width, height = int(500 * rng.uniform(0.8, 1.2)), int(375 * rng.uniform(0.8, 1.1))
        left = rng.integers(0, photograph.width - width)
        top = rng.integers(0, photograph.height - height)
        target = folder / f"class{number % 10}"
        target.mkdir(parents=True, exist_ok=True)
        crop = photograph.crop((left, top, left + width, top + height))
        crop.save(target / f"{number}.jpg", quality=90)


class Rate(NamedTuple):
    """What one pass over the images took."""

    images_per_second: float
    cpu_milliseconds: float  # per image


def processor_seconds() -> float:
    """Return the processor time of this process and its finished children so far."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def consume(batches: Iterator[int]) -> Rate:
    """Measure a pass, given as an iterator over the sizes of its batches."""
    cpu_start, start = processor_seconds(), time.perf_counter()
    images = sum(batches)
    wall = time.perf_counter() - start
    return Rate(images / wall, (processor_seconds() - cpu_start) / images * 1e3)


def measure(
    folder: ImageFolder, batch_size: int, workers: int, rounds: int
) -> dict[tuple[str, str], Rate]:
    """Return the medians over passes through the folder, by (transform, loader)."""
    evaluation = EvaluationTransform(224, 0.875, MEAN, STD)
    training = TrainingTransform(224, MEAN, STD, erasing=RandomErasing())

    def torch_batches(work: Callable[[Image.Image, int], np.ndarray]) -> Iterator[int]:
        loader = torch.utils.data.DataLoader(
            TorchDataset(folder, work),
            batch_size,
            num_workers=workers,
            drop_last=True,
            worker_init_fn=resize_with_pillow,
        )
        return (len(labels) for _, labels in loader)

    def ours_evaluation(processes: bool) -> Iterator[int]:
        loader = build_evaluation_loader(
            folder,
            evaluation,
            batch_size=batch_size,
            num_parallel_workers=workers,
            python_multiprocessing=processes,
        )
        return (int(batch.valid.sum()) for batch in loader)

    def ours_training(processes: bool) -> Iterator[int]:
        mixing = Mixing(folder.num_classes, mixup_alpha=0.0, cutmix_alpha=0.0)
        loader = build_training_loader(
            folder,
            training,
            mixing,
            batch_size=batch_size,
            seed=SEED,
            num_parallel_workers=workers,
            python_multiprocessing=processes,
        )
        return (len(batch.labels) for batch in loader.batches(0, loader.steps_per_epoch))

    contestants: dict[tuple[str, str], Callable[[], Iterator[int]]] = {
        ("evaluation", "mindtwins, threads"): lambda: ours_evaluation(False),
        ("evaluation", "mindtwins, processes"): lambda: ours_evaluation(True),
        ("evaluation", "torch DataLoader"): lambda: torch_batches(
            lambda image, index: evaluation(image)
        ),
        ("training", "mindtwins, threads"): lambda: ours_training(False),
        ("training", "mindtwins, processes"): lambda: ours_training(True),
        ("training", "torch DataLoader"): lambda: torch_batches(
            lambda image, index: training(image, sample_generator(SEED, 0, index))
        ),
    }
    rates: dict[tuple[str, str], list[Rate]] = {name: [] for name in contestants}
    for turn in range(rounds):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            rates[name].append(consume(contestants[name]()))
    return {
        name: Rate(*(statistics.median(values) for values in zip(*measured, strict=True)))
        for name, measured in rates.items()
    }


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", help="an image folder; default: generated JPEGs")
    parser.add_argument("--images", type=int, default=512, help="generated images")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        if options.data_dir is None:
            write_images(Path(temporary), options.images)
        folder = ImageFolder(options.data_dir or temporary)
        medians = measure(folder, options.batch_size, options.workers, options.rounds)
    print(f"{len(folder)} images, {options.workers} workers, batch {options.batch_size}")
    print(f"resizing in C++: {'active' if resample.available() else 'not built'}")
    print(f"{'transform':<12}{'loader':<24}{'images/s':>10}{'CPU ms/image':>14}")
    for (transform, loader), rate in medians.items():
        print(
            f"{transform:<12}{loader:<24}{rate.images_per_second:>10.0f}"
            f"{rate.cpu_milliseconds:>14.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
