"""Image classification: one label per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from os.path import relpath
from pathlib import Path
from typing import ClassVar, cast

from mindspore import nn

from mindtwins.checkpoint import FORMAT_VERSION, Checkpoint
from mindtwins.classification.classes import number_by_name, number_by_order, some
from mindtwins.classification.evaluator import Evaluator
from mindtwins.classification.imagenet import in_words
from mindtwins.classification.loader import build_evaluation_loader, build_training_loader
from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.classification.metrics import Metrics
from mindtwins.classification.mixing import Mixing
from mindtwins.classification.predict import classify, describe
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.config import Config, PredictConfig
from mindtwins.console import tell
from mindtwins.data.decode import limit_pixels
from mindtwins.data.digits import write_digits
from mindtwins.data.image_folder import ImageFolder, check_same_classes, find_split
from mindtwins.data.loader import TrainingLoader
from mindtwins.data.random_erasing import RandomErasing
from mindtwins.errors import UserError
from mindtwins.execution import Model, set_precision
from mindtwins.models import create_model
from mindtwins.models.complexity import Part, count, format_summary
from mindtwins.models.variants import resolve_name
from mindtwins.training.distributed import World
from mindtwins.training.recipe import (
    check_data,
    known_classes,
    loader_options,
    model_options,
    with_known_dataset,
)
from mindtwins.training.recorded import as_trained, describe_use, record, states

# That a prediction takes by default: more are hardly faster, and the first results come later.
IMAGES_AT_ONCE = 8


class Classification:
    """See `mindtwins.training.task.Task`."""

    datasets = ("imagefolder", "list", "digits")
    score_name = "top-1"
    curves: ClassVar = {
        "test_acc1": "top-1",
        "test_acc5": "top-5",
        "test_acc1_ema": "top-1, moving average",
    }
    couples_images = False

    preprocessing_options = ("image_size", "crop_pct", "mean", "std", "exif_orientation")
    data_options = ("dataset", "val_split")

    def __init__(self, config: Config, checkpoint: Checkpoint | None = None) -> None:
        config = as_trained(config, checkpoint, self.preprocessing_options, self.data_options)
        self.config = with_known_dataset(config, self.datasets)
        self.checkpoint = checkpoint
        self.classes = known_classes(self.config, checkpoint)
        self._new_head = config.drop_head
        self._whose = str(checkpoint.path) if checkpoint is not None else "the recipe"

    def find_data(self, split: str) -> ImageFolder:
        """The image files of a split, "train" or "val", under the names that the recipe gives it.

        The training split says which classes there are; those of another are numbered by name.

        Raises:
            UserError: folder or list is missing or empty, or has classes that the model has not.
        """
        config = self.config
        check_data(config, self.datasets)
        limit_pixels(config.max_pixels)
        if config.dataset == "digits":
            write_digits(config.data_dir)
        if config.dataset == "list":
            listing = getattr(config, f"{split}_list")
            if not listing:
                raise UserError(f"{split}_list is missing: name the file with --{split}_list")
            data = ImageFolder.from_list(
                config.data_dir, listing, exif_orientation=config.exif_orientation
            )
        else:
            folder = find_split(config.data_dir, split, getattr(config, f"{split}_split"))
            data = ImageFolder(folder, exif_orientation=config.exif_orientation)
        if split == "train":
            self._take_classes(data)
            return data
        if self.classes is not None:
            return number_by_name(data, self.classes, self._whose)
        return number_by_order(data, config.num_classes, self._whose)

    def _take_classes(self, data: ImageFolder) -> None:
        """Train for the classes of the data; a head for others is left out."""
        count = data.num_classes
        if not states(self.config, "num_classes"):
            self.config = replace(self.config, num_classes=count)
            tell(f"num_classes {count}, as {data.listing} has")
        elif count < self.config.num_classes:
            tell(f"{data.listing} has {count} classes, num_classes is {self.config.num_classes}")
        names = data.classes or tuple(map(str, range(count)))
        unnamed = tuple(f"unnamed {i}" for i in range(count, self.config.num_classes))
        before, self.classes = self.classes, (*names, *unnamed)
        if self.checkpoint is None or self._new_head:
            self._whose = data.listing
            return
        width = self.checkpoint.stated.get("num_classes", self.config.num_classes)
        if not data.classes and before is not None and width == self.config.num_classes:
            self.classes = before
            tell(f"the labels of {data.listing} are taken for the numbers of {some(before)}")
        if width != self.config.num_classes:
            self._new_head = True
            tell(
                f"the head of {self.checkpoint.path} has {width} classes: a new one of "
                f"{self.config.num_classes} starts in its place"
            )
        elif before is not None and before != self.classes:
            self._new_head = True
            tell(
                f"the head of {self.checkpoint.path} is for other classes ({some(before)}): a new "
                f"one for {some(self.classes)} starts in its place"
            )
        elif before is None:
            tell(
                f"{self.checkpoint.path} does not name its classes: its head goes on, for "
                f"{some(self.classes)} in this order"
            )
        self._whose = data.listing

    def check_same_classes(self, train: ImageFolder, val: ImageFolder) -> None:
        """Raise unless a label means the same in both: where there are names, they saw to it."""
        if not train.classes:
            check_same_classes(train, val)

    def entries(self, data: ImageFolder) -> Iterator[str]:
        """`path label`, paths relative to the folder."""
        for path, label in zip(data.paths, data.labels, strict=True):
            yield f"{relpath(path, data.root)} {label}"

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The classifier with its weights, and all that using them takes.

        Raises:
            UserError: unknown model, or a checkpoint that does not fit.
        """
        config = self.config
        options = model_options(config, self.checkpoint, self._new_head)
        model = create_model(config.model, **options)
        model.check_size(config.image_size, config.image_size)
        metadata = {
            "format_version": FORMAT_VERSION,
            "task": config.task,
            "variant": resolve_name(config.model),
            "num_classes": config.num_classes,
            "in_channels": model.in_channels,
            "dialect": asdict(model.dialect),
            **self.use(),
        }
        return set_precision(model, config.amp_level), metadata

    def use(self) -> dict:
        """What a file of the model says of its use: classes, preprocessing and data."""
        return describe_use(
            self.classes,
            "bicubic",
            record(self.config, self.preprocessing_options),
            record(self.config, self.data_options),
        )

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
            options=loader_options(config, world),
        )

    def size_in_words(self) -> str:
        """That of the crops."""
        return f"{self.config.image_size} x {self.config.image_size} pixels"

    def loss(self, model: nn.Cell) -> nn.Cell:
        """Cross entropy with soft targets."""
        return SoftTargetCrossEntropy()

    def completion(self, model: nn.Cell) -> None:
        """Targets are complete as they are loaded."""

    def evaluator(self, model: Model, data: ImageFolder, world: World) -> Evaluator:
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
            self.preprocessing(),
            # No more rows than there are images for: the rest would be padding.
            batch_size=min(
                config.eval_batch_size or config.batch_size * 3 // 2, -(-len(data) // world.size)
            ),
            options=loader_options(config, world),
        )
        return Evaluator(model, loader, world.is_main, world.exchange)

    def report(self, metrics: Metrics, data: ImageFolder) -> str:
        """One line."""
        return str(metrics)

    def result(self, metrics: Metrics, data: ImageFolder) -> dict:
        """Top-1, top-5, loss and the number of images."""
        return asdict(metrics)

    def class_names(self) -> Sequence[str]:
        """The lines of `class_names`, the checkpoint's names (ImageNet's in words), or numbers."""
        if self.classes is not None:
            return [in_words(name) for name in self.classes]
        return [f"class {i}" for i in range(self.config.num_classes)]

    def predict(self, model: Model, files: Sequence[Path]) -> Iterator[dict]:
        """The likeliest classes of each image; see `mindtwins.classification.predict.classify`."""
        config = cast(PredictConfig, self.config)  # no other recipe says `top_k`
        limit_pixels(config.max_pixels)
        return classify(
            model,
            self.preprocessing(),
            files,
            self.class_names(),
            config.top_k,
            config.eval_batch_size or IMAGES_AT_ONCE,
            config.skip_bad_images,
            config.exif_orientation,
        )

    def describe(self, prediction: dict) -> str:
        """The file and its classes."""
        return describe(prediction)

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """The image and its likeliest class."""
        title = f"{prediction['names'][0]} ({prediction['probabilities'][0]:.2f})"
        return prediction["file"], title

    def preprocessing(self) -> EvaluationTransform:
        """From an RGB picture to a float32 (3, image_size, image_size) array."""
        config = self.config
        return EvaluationTransform(config.image_size, config.crop_pct, config.mean, config.std)

    def parts(self) -> list[Part]:
        """The stages and the head, counted for one training image."""
        config = self.config
        return count(config.model, config.image_size, config.num_classes)

    def loaded_bytes(self) -> int:
        """A picture in float32."""
        return 4 * 3 * self.config.image_size**2

    def summary(self) -> str:
        """Parameters and multiply-adds per stage."""
        config = self.config
        return format_summary(config.model, config.image_size, config.num_classes)
