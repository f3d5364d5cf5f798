"""Semantic segmentation: one label per pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os.path import relpath
from pathlib import Path
from typing import ClassVar

from mindspore import nn

from mindtwins.checkpoint import FORMAT_VERSION, expect_metadata
from mindtwins.config import Config
from mindtwins.data.loader import TrainingLoader
from mindtwins.errors import UserError
from mindtwins.execution import set_precision
from mindtwins.models.complexity import Part
from mindtwins.segmentation import ade20k, digits
from mindtwins.segmentation.ade20k import find_ade20k
from mindtwins.segmentation.complexity import count, format_summary
from mindtwins.segmentation.dataset import ImageLabelFolder, find_pairs, read_class_list
from mindtwins.segmentation.digits import find_digits, write_segmentation_digits
from mindtwins.segmentation.evaluator import SegmentationEvaluator
from mindtwins.segmentation.inference import Window
from mindtwins.segmentation.loader import (
    build_segmentation_loader,
    build_segmentation_training_loader,
)
from mindtwins.segmentation.loss import PixelCrossEntropy
from mindtwins.segmentation.metrics import SegmentationMetrics
from mindtwins.segmentation.predict import describe, segment
from mindtwins.segmentation.pretrained import load_backbone
from mindtwins.segmentation.transforms import SegmentationTransform, TestTransform
from mindtwins.segmentation.variants import (
    create_segmentor,
    resolve_segmentor,
    resolve_widths,
    segmentor_metadata,
    split_name,
)
from mindtwins.training.distributed import World
from mindtwins.training.recipe import (
    asked_dialect,
    check_data,
    load_start,
    loader_options,
    read_class_names,
    read_start,
)

CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")


def test_window(config: Config) -> Window | None:
    """The sliding window of a recipe's test protocol; None where it sees pictures whole."""
    return Window(config.test_crop, config.test_stride) if config.test_mode == "slide" else None


class Segmentation:
    """See `mindtwins.training.task.Task`."""

    datasets = ("ade20k", "pairs", "digits")
    score_name = "mIoU"
    curves: ClassVar = {
        "test_miou": "mIoU",
        "test_macc": "mean accuracy",
        "test_aacc": "pixel accuracy",
        "test_miou_ema": "mIoU, moving average",
    }
    has_batch_norms = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def find_data(self, split: str) -> ImageLabelFolder:
        """The pairs of a split, "train" or "val", under the names that the recipe gives it.

        Raises:
            UserError: folders are missing or empty, a file stands alone, or there are more or
                fewer classes than `num_classes`.
        """
        config = self.config
        check_data(config, self.datasets)
        if config.dataset == "ade20k":
            data = find_ade20k(config.data_dir, split)
        elif config.dataset == "digits":
            data = find_digits(write_segmentation_digits(config.data_dir), split)
        else:
            data = find_pairs(
                config.data_dir,
                getattr(config, f"{split}_split"),
                read_class_list(config.class_names),
                ignore_label_zero=config.ignore_label_zero,
            )
        if data.num_classes != config.num_classes:
            raise UserError(
                f"{data.root} has {data.num_classes} classes, but num_classes is "
                f"{config.num_classes}: set it to {data.num_classes}"
            )
        return data

    def check_same_classes(self, train: ImageLabelFolder, val: ImageLabelFolder) -> None:
        """Both have the recipe's classes."""

    def entries(self, data: ImageLabelFolder) -> Iterator[str]:
        """`image labels`, paths relative to the folder of the images."""
        for path, label_path in zip(data.paths, data.label_paths, strict=True):
            yield f"{relpath(path, data.root)} {relpath(label_path, data.root)}"

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The segmentor with its weights, and the metadata `create_segmentor` needs to load them.

        Raises:
            UserError: unknown model, or a checkpoint that does not fit.
        """
        config = self.config
        checkpoint, recorded = read_start(config)
        stated = (checkpoint.metadata or {}) if checkpoint is not None else {}
        if checkpoint is not None:
            expect_metadata(checkpoint, variant=resolve_segmentor(config.model))
        widths = resolve_widths(
            config.model, stated.get("channels"), stated.get("auxiliary_channels")
        )
        model = create_segmentor(
            config.model,
            config.num_classes,
            drop_path_rate=config.drop_path_rate,
            channels=widths.channels,
            auxiliary_channels=widths.auxiliary_channels,
            synchronize=world.size > 1,
            **recorded | asked_dialect(config),
        )
        metadata = {
            "format_version": FORMAT_VERSION,
            **segmentor_metadata(config.model, config.num_classes, model.in_channels, widths),
            "dialect": asdict(model.dialect),
        }
        if checkpoint is not None:
            load_start(model, checkpoint, metadata, CLASSIFIERS if config.drop_head else ())
        elif config.pretrained_backbone:
            report = load_backbone(model, config.pretrained_backbone)
            if world.is_main:
                print(report)
        return set_precision(model, config.amp_level), metadata

    def training_loader(self, data: ImageLabelFolder, world: World) -> TrainingLoader:
        """This rank's augmented batches.

        Raises:
            UserError: fewer images than a global batch, or too few for a batch norm.
        """
        config = self.config
        self._check_batch_norms(config.batch_size * world.size)
        transform = SegmentationTransform(
            config.image_size,
            config.mean,
            config.std,
            scale=config.resize_scale,
            ratio_range=config.resize_ratio,
            category_max_ratio=config.category_max_ratio,
            hflip=config.hflip,
            photometric_distortion=config.photometric_distortion,
        )
        return build_segmentation_training_loader(
            data,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            accumulation=config.gradient_accumulation_steps,
            **loader_options(config, world),
        )

    def _check_batch_norms(self, images: int) -> None:
        """Raise unless batch norms see two values per channel or more in a pass of `images`.

        UPerNet pools the deepest map to one pixel; Semantic FPN normalizes it as it is.
        """
        config = self.config
        head, _ = split_name(config.model)
        side = config.image_size // 32
        if config.patch_rounding != "floor":
            side = -(-config.image_size // 32)
        if images < 2 and (head == "upernet" or side == 1):
            raise UserError(
                f"batch_size is {config.batch_size}, but the batch norms of {config.model} need at "
                f"least 2 images of {config.image_size} x {config.image_size} pixels at once "
                "(batch_size x ranks): raise it"
            )

    def loss(self) -> nn.Cell:
        """Cross entropy per pixel, the auxiliary head's with a weight."""
        auxiliary = resolve_widths(self.config.model, None, None).auxiliary_channels > 0
        return PixelCrossEntropy((1.0, self.config.auxiliary_weight) if auxiliary else (1.0,))

    def evaluator(
        self, model: nn.Cell, data: ImageLabelFolder, world: World
    ) -> SegmentationEvaluator:
        """Mean IoU, mean accuracy and pixel accuracy."""
        config = self.config
        loader = build_segmentation_loader(
            data,
            self._test_transform(),
            batch_size=config.eval_batch_size or config.batch_size,
            **loader_options(config, world),
        )
        return SegmentationEvaluator(
            model,
            loader,
            config.test_flip,
            test_window(config),
            world.is_main,
            world.exchange,
        )

    def report(self, metrics: SegmentationMetrics, data: ImageLabelFolder) -> str:
        """A table of the classes, and the means."""
        return f"{metrics.table(data.classes)}\n{metrics}"

    def result(self, metrics: SegmentationMetrics, data: ImageLabelFolder) -> dict:
        """The means, and the numbers of each class."""
        return metrics.result(data.classes)

    def class_names(self) -> Sequence[str]:
        """The lines of `class_names`, the names of the data set, or numbers.

        The digits' only where `dataset` says so; any other model of 150 classes is taken for one of
        ADE20K, as the published ones are.
        """
        config = self.config
        if (names := read_class_names(config)) is not None:
            return names
        known = digits.CLASSES if config.dataset == "digits" else ade20k.CLASSES
        if len(known) == config.num_classes:
            return known
        return [f"class {i}" for i in range(config.num_classes)]

    def predict(self, model: nn.Cell, files: Sequence[Path]) -> Iterator[dict]:
        """The classes of each image's pixels; see `mindtwins.segmentation.predict.segment`."""
        config = self.config
        return segment(
            model,
            self._test_transform(),
            files,
            self.class_names(),
            Path(config.output_dir),
            flip=config.test_flip,
            window=test_window(config),
            skip_bad_images=config.skip_bad_images,
        )

    def describe(self, prediction: dict) -> str:
        """The file, its largest classes, and where the overlay is."""
        return describe(prediction, self.config.top_k)

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """The overlay and its largest class."""
        name, share = next(iter(prediction["shares"].items()))
        return prediction["overlay"], f"{name} ({100 * share:.0f} %)"

    def _test_transform(self) -> TestTransform:
        config = self.config
        return TestTransform(
            config.mean, config.std, scale=config.resize_scale, ratios=config.test_ratios
        )

    def parts(self) -> list[Part]:
        """The stages, the neck and the heads, counted for one training crop."""
        config = self.config
        return count(config.model, config.image_size, config.num_classes)

    def summary(self) -> str:
        """Parameters and multiply-adds per part, at the size of the training crops."""
        config = self.config
        return format_summary(config.model, config.image_size, config.num_classes)
