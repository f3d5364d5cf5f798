"""Loaders of pictures and their objects, on the machinery of `mindtwins.data`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtwins.data.loader import EvaluationLoader, LoaderOptions, TrainingLoader
from mindtwins.data.pipeline import load_evaluation_rows, load_training_rows
from mindtwins.data.sampler import GroupSampler, equal_size_batches
from mindtwins.detection.assignment import AnchorTask
from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.detections import Geometry
from mindtwins.detection.transforms import (
    BatchSizes,
    DetectionTransform,
    Sample,
    TestTransform,
    padded,
)

# Of the draws that are made once the network has proposed regions.
SEEDS = 2**63


@dataclass(frozen=True)
class DetectionBatch:
    """One evaluation batch of b pictures that are equally large after padding.

    Attributes:
        images: float32 (b, 3, H, W); zeros where not valid.
        geometries: where each picture is in its image; of any picture where not valid.
        index: int64 (b,), each picture's index in the data set's `paths`; -1 where there is none.
        valid: bool (b,): which rows count.
    """

    images: np.ndarray
    geometries: list[Geometry]
    index: np.ndarray
    valid: np.ndarray


def build_detection_training_loader(
    dataset: CocoDataset,
    transform: DetectionTransform,
    anchors: AnchorTask,
    sizes: BatchSizes,
    *,
    batch_size: int,
    seed: int = 0,
    accumulation: int = 1,
    options: LoaderOptions,
) -> TrainingLoader:
    """Build the loader of one rank's training batches, in pairs that are wider than high, or not.

    The targets are a tuple: of all anchors the labels, int32 (b, a), and deltas, float32 (b, a, 4);
    and, where the data set has masks, for a second stage, of at most n objects the boxes, float32
    (b, n, 4), and labels, int32 (b, n), filled up with zeros and -1; the sizes, int32 (b, 2), the
    (height, width) of each picture without padding; the masks, uint8 (b, n, H, W); and int64 (b,),
    a seed for each picture's draws that are left. n is that of the picture with the most, and at
    least 1; H and W are those of the largest, multiples of 32, or a little more (see `BatchSizes`).

    Args:
        dataset: the training pictures.
        transform: what is done with each.
        anchors: what is learned of the anchors.
        sizes: which H and W there may be.

    The other arguments, order and errors are those of `mindtwins.data`'s samplers and pipelines.
    """
    wide = tuple(int(width > height) for width, height in dataset.sizes.tolist())
    sampler = GroupSampler(
        len(dataset), batch_size, seed, options.rank, options.world, accumulation, groups=wide
    )
    batches = _TrainingBatches(dataset, transform, anchors, sizes, sampler, options.skip_bad_images)
    return TrainingLoader(dataset, sampler, options.pipeline(batches), options.skip_bad_images)


def build_detection_loader(
    dataset: CocoDataset,
    transform: TestTransform,
    *,
    batch_size: int = 1,
    options: LoaderOptions,
) -> EvaluationLoader[CocoDataset, DetectionBatch]:
    """Build the loader of one rank's evaluation batches; over all ranks every picture occurs once.

    Only pictures that are equally large after padding share a batch, and they come together,
    because graphs are compiled for every shape. Each rank takes a stretch of the sizes. The ranks'
    numbers of batches may differ, by one.

    Args:
        dataset: the evaluation pictures.
        transform: from picture to image.
        batch_size: the most pictures per batch.
        options: of the loader.
    """

    def with_geometries(columns: dict[str, np.ndarray]) -> DetectionBatch:
        index = columns["index"]
        geometries = [
            transform.geometry(*dataset.size(number))
            for number in np.where(index < 0, index[0], index)
        ]
        return DetectionBatch(columns["images"], geometries, index, columns["valid"])

    batches = equal_size_batches(image_sizes(dataset, transform), batch_size)
    return EvaluationLoader(
        dataset,
        options.own(batches),
        options.pipeline(_EvaluationBatches(dataset, transform)),
        with_geometries,
        options.skip_bad_images,
    )


def image_sizes(dataset: CocoDataset, transform: TestTransform) -> list[tuple[int, int]]:
    """The (height, width) of what the detector sees of each picture."""
    geometries = (transform.geometry(*dataset.size(index)) for index in range(len(dataset)))
    return [padded(geometry.height, geometry.width) for geometry in geometries]


@dataclass(frozen=True)
class _TrainingBatches:
    """(step, micro) to a training batch; see `build_detection_training_loader`."""

    dataset: CocoDataset
    transform: DetectionTransform
    anchors: AnchorTask
    sizes: BatchSizes
    sampler: GroupSampler
    skip_bad_images: bool

    @property
    def columns(self) -> tuple[str, ...]:
        targets = ["anchor_labels", "anchor_deltas"]
        if self.dataset.masks:
            targets += ["boxes", "labels", "sizes", "masks", "seeds"]
        return ("images", *(f"targets_{name}" for name in targets), "wanted", "index", "problems")

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        samples: dict[int, Sample] = {}
        generators: dict[int, np.random.Generator] = {}

        def load(row: int, index: int, rng: np.random.Generator) -> None:
            samples[row] = self.transform(*self.dataset.read(index), rng)
            generators[row] = rng

        rows = load_training_rows(self.sampler, request, load, self.skip_bad_images)
        count = self.sampler.batch_size
        images = stack_pictures(samples, count, self.sizes)
        anchors = self.anchor_targets(samples, generators, count, images.shape[2:])
        if not self.dataset.masks:
            return images, *anchors, *rows
        objects = stack_objects(samples, count, images.shape[2:])
        seeds = np.zeros(count, dtype=np.int64)
        for row, rng in generators.items():
            seeds[row] = rng.integers(SEEDS)
        return images, *anchors, *objects, seeds, *rows

    def anchor_targets(
        self,
        samples: dict[int, Sample],
        generators: dict[int, np.random.Generator],
        count: int,
        size: tuple[int, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The labels and deltas of the anchors in images of a size."""
        found = {
            row: self.anchors.targets(
                sample.objects.boxes,
                sample.objects.labels,
                padded(sample.height, sample.width),
                (size[0], size[1]),
                generators[row],
            )
            for row, sample in samples.items()
        }
        most = max((len(labels) for labels, _ in found.values()), default=1)
        labels = np.full((count, most), -1, dtype=np.int32)
        deltas = np.zeros((count, most, 4), dtype=np.float32)
        for row, targets in found.items():
            labels[row], deltas[row] = targets
        return labels, deltas


def stack_pictures(samples: dict[int, Sample], count: int, sizes: BatchSizes) -> np.ndarray:
    """Pictures of different sizes in one array, padded at the right and the bottom.

    Args:
        samples: by their rows; a row may have none.
        count: of the rows.
        sizes: which H and W there may be.

    Returns:
        float32 (count, 3, H, W).
    """
    found = samples.values()
    height = max((sample.picture.shape[1] for sample in found), default=1)
    width = max((sample.picture.shape[2] for sample in found), default=1)
    images = np.zeros((count, 3, *sizes(height, width)), dtype=np.float32)
    for row, sample in samples.items():
        images[row, :, : sample.picture.shape[1], : sample.picture.shape[2]] = sample.picture
    return images


def stack_objects(
    samples: dict[int, Sample], count: int, size: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """The objects of pictures, with masks: boxes, labels, sizes and masks.

    See `build_detection_training_loader`; `size` is (H, W) of the images.
    """
    most = max((len(sample.objects) for sample in samples.values()), default=0) or 1
    boxes = np.zeros((count, most, 4), dtype=np.float32)
    labels = np.full((count, most), -1, dtype=np.int32)
    sizes = np.zeros((count, 2), dtype=np.int32)
    masks = np.zeros((count, most, *size), dtype=np.uint8)
    for row, sample in samples.items():
        objects = sample.objects
        boxes[row, : len(objects)] = objects.boxes
        labels[row, : len(objects)] = objects.labels
        sizes[row] = sample.height, sample.width
        if objects.masks is not None:
            masks[row, : len(objects), : sample.height, : sample.width] = objects.masks
    return boxes, labels, sizes, masks


@dataclass(frozen=True)
class _EvaluationBatches:
    """The pictures of an evaluation batch to its arrays."""

    columns = ("images", "valid", "problems")

    dataset: CocoDataset
    transform: TestTransform

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        geometry = self.transform.geometry(*self.dataset.size(int(request[0])))
        size = padded(geometry.height, geometry.width)
        images = np.zeros((len(request), 3, *size), dtype=np.float32)

        def load(row: int, index: int) -> None:
            images[row], _ = self.transform(self.dataset.read_image(index))

        valid, problems = load_evaluation_rows(request, load)
        return images, valid, problems
