"""Semantic segmentation: one label per pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from os.path import relpath
from pathlib import Path
from typing import ClassVar, cast

from mindspore import nn

from mindtwins.checkpoint import FORMAT_VERSION, Checkpoint
from mindtwins.config import Config, PredictConfig
from mindtwins.data import text_files
from mindtwins.data.decode import limit_pixels
from mindtwins.data.loader import TrainingLoader
from mindtwins.errors import UserError
from mindtwins.execution import Model, set_precision
from mindtwins.models.complexity import Part
from mindtwins.segmentation import ade20k, digits
from mindtwins.segmentation.ade20k import find_ade20k
from mindtwins.segmentation.complexity import count, format_summary
from mindtwins.segmentation.dataset import ImageLabelFolder, find_pairs
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
from mindtwins.segmentation.transforms import SegmentationTransform, TestTransform
from mindtwins.segmentation.variants import (
    create_segmentor,
    resolve_widths,
    segmentor_metadata,
    split_name,
    widths_of,
)
from mindtwins.training.distributed import World
from mindtwins.training.pretrained_backbone import load_backbone
from mindtwins.training.recipe import (
    check_data,
    known_classes,
    loader_options,
    model_options,
    needs_new_head,
    with_known_dataset,
)
from mindtwins.training.recorded import as_trained, describe_use, record, states


def _numbers(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


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
    couples_images = True  # by batch norms

    preprocessing_options = (
        *("image_size", "resize_scale", "mean", "std", "exif_orientation"),
        *("test_mode", "test_crop", "test_stride", "test_ratios", "test_flip"),
    )
    data_options = ("dataset", "ignore_label_zero", "val_split")

    def __init__(self, config: Config, checkpoint: Checkpoint | None = None) -> None:
        config = as_trained(config, checkpoint, self.preprocessing_options, self.data_options)
        self.config = with_known_dataset(config, self.datasets)
        self.checkpoint = checkpoint
        # The names that go with pairs are those of the data, and compared with the checkpoint's.
        names_data = self.config.dataset == "pairs" and not isinstance(config, PredictConfig)
        known = replace(self.config, class_names="") if names_data else self.config
        self.classes = known_classes(known, checkpoint)
        self._new_head = config.drop_head

    def find_data(self, split: str) -> ImageLabelFolder:
        """The pairs of a split, "train" or "val", under the names that the recipe gives it.

        Raises:
            UserError: folders are missing or empty, a file stands alone, or its classes are not
                those of the model.
        """
        config = self.config
        check_data(config, self.datasets)
        limit_pixels(config.max_pixels)
        if config.dataset == "ade20k":
            data = find_ade20k(config.data_dir, split, exif_orientation=config.exif_orientation)
        elif config.dataset == "digits":
            data = find_digits(write_segmentation_digits(config.data_dir), split)
        else:
            names = self.classes
            if config.class_names:
                names = text_files.read_class_names(config.class_names, unique=True)
            if names is None:
                raise UserError(
                    "dataset: pairs needs class_names, a text file with a name per line"
                )
            data = find_pairs(
                config.data_dir,
                getattr(config, f"{split}_split"),
                names,
                split=split,
                ignore_label_zero=config.ignore_label_zero,
                exif_orientation=config.exif_orientation,
            )
        if split == "train" and not states(config, "num_classes"):
            self.config = replace(config, num_classes=data.num_classes)
        elif data.num_classes != config.num_classes:
            raise UserError(
                f"{data.root} has {data.num_classes} classes, but num_classes is "
                f"{config.num_classes}: set it to {data.num_classes}"
            )
        self._compare_classes(data, is_training=split == "train")
        return data

    def _compare_classes(self, data: ImageLabelFolder, is_training: bool) -> None:
        """Make sure that a label means to the model what it means in the data."""
        before, self.classes = self.classes, data.classes
        if self.checkpoint is None or self._new_head or before == data.classes:
            return
        self._new_head = needs_new_head(
            self.checkpoint,
            before,
            data,
            self.config.num_classes,
            is_training,
            "; give the names in the checkpoint's order",
        )

    def check_same_classes(self, train: ImageLabelFolder, val: ImageLabelFolder) -> None:
        """Both have the recipe's classes."""

    def entries(self, data: ImageLabelFolder) -> Iterator[str]:
        """`image labels`, paths relative to the folder of the images."""
        for path, label_path in zip(data.paths, data.label_paths, strict=True):
            yield f"{relpath(path, data.root)} {relpath(label_path, data.root)}"

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The segmentor with its weights, and all that using them takes.

        Raises:
            UserError: unknown model, or a checkpoint that does not fit.
        """
        config = self.config
        options = model_options(config, self.checkpoint, self._new_head)
        model = create_segmentor(config.model, synchronize=world.size > 1, **options)
        metadata = {
            "format_version": FORMAT_VERSION,
            **segmentor_metadata(
                config.model, config.num_classes, model.in_channels, widths_of(model)
            ),
            "dialect": asdict(model.dialect),
            **self.use(),
        }
        if self.checkpoint is None and config.pretrained_backbone:
            report = load_backbone(model, config.pretrained_backbone)
            if world.is_main:
                print(report)
        return set_precision(model, config.amp_level), metadata

    def use(self) -> dict:
        """What a file of the model says of its use: classes, preprocessing and data."""
        names = self.class_names()
        return describe_use(
            None if names == _numbers(self.config.num_classes) else names,
            "bilinear",
            record(self.config, self.preprocessing_options),
            record(self.config, self.data_options),
        )

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
            options=loader_options(config, world),
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

    def size_in_words(self) -> str:
        """That of the crops."""
        return f"{self.config.image_size} x {self.config.image_size} pixels"

    def loss(self, model: nn.Cell) -> nn.Cell:
        """Cross entropy per pixel, the auxiliary head's with a weight."""
        auxiliary = resolve_widths(self.config.model, None, None).auxiliary_channels > 0
        return PixelCrossEntropy((1.0, self.config.auxiliary_weight) if auxiliary else (1.0,))

    def completion(self, model: nn.Cell) -> None:
        """Targets are complete as they are loaded."""

    def evaluator(
        self, model: Model, data: ImageLabelFolder, world: World
    ) -> SegmentationEvaluator:
        """Mean IoU, mean accuracy and pixel accuracy."""
        config = self.config
        loader = build_segmentation_loader(
            data,
            self.preprocessing(),
            batch_size=config.eval_batch_size or self._default_eval_batch(),
            options=loader_options(config, world),
        )
        return SegmentationEvaluator(
            model,
            loader,
            config.test_flip,
            test_window(config),
            world.is_main,
            world.exchange,
        )

    def _default_eval_batch(self) -> int:
        """As in training, or one picture where no recipe says how many fit into the memory."""
        return self.config.batch_size if states(self.config, "batch_size") else 1

    def report(self, metrics: SegmentationMetrics, data: ImageLabelFolder) -> str:
        """A table of the classes, and the means."""
        return f"{metrics.table(data.classes)}\n{metrics}"

    def result(self, metrics: SegmentationMetrics, data: ImageLabelFolder) -> dict:
        """The means, and the numbers of each class."""
        return metrics.result(data.classes)

    def class_names(self) -> Sequence[str]:
        """The lines of `class_names`, the checkpoint's names, those of the data set, or numbers.

        The digits' only where `dataset` says so; any other model of 150 classes is taken for one of
        ADE20K, as the published ones are.
        """
        if self.classes is not None:
            return self.classes
        known = digits.CLASSES if self.config.dataset == "digits" else ade20k.CLASSES
        if len(known) == self.config.num_classes:
            return known
        return _numbers(self.config.num_classes)

    def predict(self, model: Model, files: Sequence[Path]) -> Iterator[dict]:
        """The classes of each image's pixels; see `mindtwins.segmentation.predict.segment`."""
        config = self.config
        limit_pixels(config.max_pixels)
        return segment(
            model,
            self.preprocessing(),
            files,
            self.class_names(),
            Path(config.output_dir),
            flip=config.test_flip,
            window=test_window(config),
            skip_bad_images=config.skip_bad_images,
            exif_orientation=config.exif_orientation,
        )

    def describe(self, prediction: dict) -> str:
        """The file, its largest classes, and where the overlay is."""
        return describe(prediction, cast(PredictConfig, self.config).top_k)

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """The overlay and its largest class."""
        name, share = next(iter(prediction["shares"].items()))
        return prediction["overlay"], f"{name} ({100 * share:.0f} %)"

    def preprocessing(self) -> TestTransform:
        """From an RGB picture to the views that the model sees."""
        config = self.config
        return TestTransform(
            config.mean, config.std, scale=config.resize_scale, ratios=config.test_ratios
        )

    def parts(self) -> list[Part]:
        """The stages, the neck and the heads, counted for one training crop."""
        config = self.config
        return count(config.model, config.image_size, config.num_classes)

    def loaded_bytes(self) -> int:
        """A crop in float32."""
        return 4 * 3 * self.config.image_size**2

    def summary(self) -> str:
        """Parameters and multiply-adds per part, at the size of the training crops."""
        config = self.config
        return format_summary(config.model, config.image_size, config.num_classes)
