"""Image classification: one label per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os.path import relpath
from pathlib import Path
from typing import ClassVar

from mindspore import nn

from mindtwins.checkpoint import FORMAT_VERSION
from mindtwins.classification.evaluator import Evaluator
from mindtwins.classification.loader import build_evaluation_loader, build_training_loader
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.classification.metrics import Metrics
from mindtwins.classification.mixing import Mixing
from mindtwins.classification.predict import classify, describe
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.config import Config
from mindtwins.data.digits import write_digits
from mindtwins.data.image_folder import ImageFolder, check_same_classes, find_split
from mindtwins.data.loader import TrainingLoader
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.errors import UserError
from mindtwins.execution import set_precision
from mindtwins.models import create_model
from mindtwins.models.complexity import Part, count, format_summary
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import resolve_name
from mindtwins.training.distributed import World
from mindtwins.training.recipe import (
    asked_dialect,
    check_data,
    load_start,
    loader_options,
    read_class_names,
    read_start,
)

HEAD = ("head.",)


class Classification:
    """See `mindtwins.training.task.Task`."""

    datasets = ("imagefolder", "list", "digits")
    score_name = "top-1"
    curves: ClassVar = {
        "test_acc1": "top-1",
        "test_acc5": "top-5",
        "test_acc1_ema": "top-1, moving average",
    }
    has_batch_norms = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def find_data(self, split: str) -> ImageFolder:
        """The image files of a split, "train" or "val", under the names that the recipe gives it.

        Raises:
            UserError: folder or list is missing or empty.
        """
        config = self.config
        check_data(config, self.datasets)
        if config.dataset == "digits":
            write_digits(config.data_dir)
        if config.dataset == "list":
            listing = getattr(config, f"{split}_list")
            if not listing:
                raise UserError(f"{split}_list is missing: name the file with --{split}_list")
            return ImageFolder.from_list(config.data_dir, listing)
        return ImageFolder(find_split(config.data_dir, getattr(config, f"{split}_split")))

    def check_same_classes(self, train: ImageFolder, val: ImageFolder) -> None:
        """Raise unless a label means the same in both."""
        check_same_classes(train, val)

    def entries(self, data: ImageFolder) -> Iterator[str]:
        """`path label`, paths relative to the folder."""
        for path, label in zip(data.paths, data.labels, strict=True):
            yield f"{relpath(path, data.root)} {label}"

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The classifier with its weights, and the metadata `create_model` needs to load them.

        Raises:
            UserError: unknown model, or a checkpoint that does not fit.
        """
        config = self.config
        variant = resolve_name(config.model)
        checkpoint, recorded = read_start(config)
        dialect = asdict(Dialect(**recorded | asked_dialect(config)))
        model = create_model(
            variant, config.num_classes, drop_path_rate=config.drop_path_rate, **dialect
        )
        model.check_size(config.image_size, config.image_size)
        metadata = {
            "format_version": FORMAT_VERSION,
            "task": config.task,
            "variant": variant,
            "num_classes": config.num_classes,
            "in_channels": 3,
            "dialect": dialect,
        }
        if checkpoint is not None:
            load_start(model, checkpoint, metadata, HEAD if config.drop_head else ())
        return set_precision(model, config.amp_level), metadata

    def training_loader(self, data: ImageFolder, world: World) -> TrainingLoader:
        """This rank's augmented, mixed batches.

        Raises:
            UserError: fewer images than a global batch, more classes than `num_classes`, or a bad
                augmentation policy.
        """
        config = self.config
        erasing = None
        if config.re_prob > 0:
            erasing = RandomErasing(config.re_prob, config.re_mode, config.re_count)
        transform = TrainingTransform(
            config.image_size,
            config.mean,
            config.std,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            auto_augment=config.auto_augment,
            color_jitter=config.color_jitter,
            erasing=erasing,
            interpolation=config.interpolation,
        )
        mixing = Mixing(
            config.num_classes,
            label_smoothing=config.label_smoothing,
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            mode=config.mixup_mode,
            draws=config.mixup_draws,
        )
        return build_training_loader(
            data,
            transform,
            mixing,
            batch_size=config.batch_size,
            seed=config.seed,
            accumulation=config.gradient_accumulation_steps,
            **loader_options(config, world),
        )

    def loss(self) -> nn.Cell:
        """Cross entropy with soft targets."""
        return SoftTargetCrossEntropy()

    def evaluator(self, model: nn.Cell, data: ImageFolder, world: World) -> Evaluator:
        """Top-1, top-5 and loss.

        Raises:
            UserError: the data has more classes than the model.
        """
        config = self.config
        if data.num_classes > config.num_classes:
            raise UserError(
                f"{data.root} has {data.num_classes} classes, but num_classes is "
                f"{config.num_classes}"
            )
        loader = build_evaluation_loader(
            data,
            self._evaluation_transform(),
            # No more rows than there are images for: the rest would be padding.
            batch_size=min(
                config.eval_batch_size or config.batch_size * 3 // 2, -(-len(data) // world.size)
            ),
            **loader_options(config, world),
        )
        return Evaluator(model, loader, world.is_main, world.exchange)

    def report(self, metrics: Metrics, data: ImageFolder) -> str:
        """One line."""
        return str(metrics)

    def result(self, metrics: Metrics, data: ImageFolder) -> dict:
        """Top-1, top-5, loss and the number of images."""
        return asdict(metrics)

    def class_names(self) -> Sequence[str]:
        """The lines of `class_names`, or numbers."""
        config = self.config
        return read_class_names(config) or [f"class {i}" for i in range(config.num_classes)]

    def predict(self, model: nn.Cell, files: Sequence[Path]) -> Iterator[dict]:
        """The likeliest classes of each image; see `mindtwins.classification.predict.classify`."""
        config = self.config
        return classify(
            model,
            self._evaluation_transform(),
            files,
            self.class_names(),
            config.top_k,
            config.skip_bad_images,
        )

    def describe(self, prediction: dict) -> str:
        """The file and its classes."""
        return describe(prediction)

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """The image and its likeliest class."""
        title = f"{prediction['names'][0]} ({prediction['probabilities'][0]:.2f})"
        return prediction["file"], title

    def _evaluation_transform(self) -> EvaluationTransform:
        config = self.config
        return EvaluationTransform(config.image_size, config.crop_pct, config.mean, config.std)

    def parts(self) -> list[Part]:
        """The stages and the head, counted for one training image."""
        config = self.config
        return count(config.model, config.image_size, config.num_classes)

    def summary(self) -> str:
        """Parameters and multiply-adds per stage."""
        config = self.config
        return format_summary(config.model, config.image_size, config.num_classes)
