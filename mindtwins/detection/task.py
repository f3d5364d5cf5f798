"""Object detection and instance segmentation: the boxes, classes and masks of objects."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, cast

from mindspore import nn

from mindtwins.checkpoint import FORMAT_VERSION, Checkpoint
from mindtwins.config import Config, InferConfig, TrainConfig
from mindtwins.data import text_files
from mindtwins.data.decode import limit_pixels
from mindtwins.data.loader import TrainingLoader
from mindtwins.detection import coco, digits
from mindtwins.detection.assignment import (
    PROPOSAL_RULE,
    PROPOSAL_SAMPLING,
    RETINANET,
    SECOND_STAGE_SAMPLING,
    AnchorTask,
    Sampling,
)
from mindtwins.detection.complexity import count, count_anchors, format_summary
from mindtwins.detection.dataset import CocoDataset, find_coco
from mindtwins.detection.detector import Detector
from mindtwins.detection.digits import find_digits, write_detection_digits
from mindtwins.detection.evaluator import DetectionEvaluator
from mindtwins.detection.loader import build_detection_loader, build_detection_training_loader
from mindtwins.detection.loss import MaskRCNNLoss, RetinaNetLoss
from mindtwins.detection.mask_rcnn import MaskRCNN
from mindtwins.detection.metrics import DetectionMetrics
from mindtwins.detection.predict import describe, detect
from mindtwins.detection.regions import RegionChoice
from mindtwins.detection.retinanet import RetinaNet
from mindtwins.detection.transforms import SCALE, BatchSizes, DetectionTransform, TestTransform
from mindtwins.detection.variants import create_detector, detector_metadata, split_name
from mindtwins.errors import UserError
from mindtwins.execution import Model, set_precision
from mindtwins.models.complexity import Part
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
from mindtwins.training.step import Complete

# Whose masks a batch has room for in each picture: as many as its fullest has. COCO's mean is 7.
MANY_OBJECTS = 20


class DetectionTask:
    """See `mindtwins.training.task.Task`."""

    datasets = ("coco", "digits")
    score_name = "box AP"
    curves: ClassVar = {
        "test_box_ap": "box AP",
        "test_box_ap50": "box AP50",
        "test_box_ap_ema": "box AP, moving average",
    }
    # A loss is divided by how many anchors or regions count in all images that share a pass.
    couples_images = True

    preprocessing_options = ("resize_scale", "mean", "std", "exif_orientation")
    data_options = ("dataset", "val_split")

    def __init__(self, config: Config, checkpoint: Checkpoint | None = None) -> None:
        config = as_trained(config, checkpoint, self.preprocessing_options, self.data_options)
        self.config = with_known_dataset(config, self.datasets)
        self.checkpoint = checkpoint
        # What is trained has the classes of its data, as `class_names` or the annotations say.
        is_training = isinstance(config, TrainConfig)
        known = replace(self.config, class_names="") if is_training else self.config
        self.classes = known_classes(known, checkpoint)
        self._new_head = config.drop_head
        if is_training and not self._has_masks() and states(config, "region_samples"):
            raise UserError(
                f"{config.model} has no second stage, which region_samples is of: leave it out"
            )

    def _has_masks(self) -> bool:
        return split_name(self.config.model)[0] == "maskrcnn"

    def find_data(self, split: str) -> CocoDataset:
        """The pictures of a split, "train" or "val", under the names that the recipe gives it.

        Raises:
            UserError: the folder or the annotation file is missing or not sound, or its categories
                are not the classes of the model.
        """
        config = self.config
        check_data(config, self.datasets)
        limit_pixels(config.max_pixels)
        is_training = split == "train"
        names = self.classes
        if is_training:
            names = None
            if config.class_names:
                names = text_files.read_class_names(config.class_names, unique=True)
        if config.dataset == "digits":
            folder = write_detection_digits(config.data_dir)
            data = find_digits(folder, split, masks=self._has_masks(), training=is_training)
        else:
            data = find_coco(
                config.data_dir,
                self._folder(split),
                split=split,
                classes=names,
                masks=self._has_masks(),
                training=is_training,
                exif_orientation=config.exif_orientation,
            )
        if is_training and not states(config, "num_classes"):
            self.config = replace(config, num_classes=data.num_classes)
        elif data.num_classes != config.num_classes:
            raise UserError(
                f"{data.root} has {data.num_classes} classes, but num_classes is "
                f"{config.num_classes}: set it to {data.num_classes}, or name the model's classes "
                "with class_names"
            )
        self._compare_classes(data, is_training)
        return data

    def _folder(self, split: str) -> str:
        """What the folder of a split is called: unless that is said, COCO's name or the split's."""
        option = f"{split}_split"
        name = getattr(self.config, option)
        of_coco = f"{split}2017"
        if not states(self.config, option) and os.path.isdir(
            os.path.join(self.config.data_dir, of_coco)
        ):
            return of_coco
        return name

    def _compare_classes(self, data: CocoDataset, is_training: bool) -> None:
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
        )

    def check_same_classes(self, train: CocoDataset, val: CocoDataset) -> None:
        """Both have the model's classes, by name."""

    def entries(self, data: CocoDataset) -> Iterator[str]:
        """`picture boxes labels masks`, paths relative to the folder of the pictures."""
        for index, path in enumerate(data.paths):
            objects = data.objects(index, masks=False)
            masks = f" {json.dumps(data.segmentations(index))}" if data.masks else ""
            yield (
                f"{os.path.relpath(path, data.root)} {objects.boxes.tolist()} "
                f"{objects.labels.tolist()}{masks}"
            )

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The detector with its weights, and all that using them takes.

        Raises:
            UserError: unknown model, or a checkpoint that does not fit.
        """
        config = self.config
        options = model_options(config, self.checkpoint, self._new_head)
        model = create_detector(config.model, **options)
        metadata = {
            "format_version": FORMAT_VERSION,
            **detector_metadata(config.model, config.num_classes, model.in_channels),
            "dialect": asdict(model.dialect),
            "postprocessing": asdict(model.postprocessing),
            **self.use(),
        }
        if self.checkpoint is None and config.pretrained_backbone:
            report = load_backbone(model, config.pretrained_backbone)
            if world.is_main:
                print(report)
        return set_precision(model, config.amp_level), metadata

    def use(self) -> dict:
        """What a file of the model says of its use: classes, preprocessing and data."""
        return describe_use(
            self.classes,
            "bilinear",
            record(self.config, self.preprocessing_options),
            record(self.config, self.data_options),
        )

    def training_loader(self, data: CocoDataset, world: World) -> TrainingLoader:
        """This rank's augmented batches, with what is to be said of anchors, and objects' masks."""
        config = self.config
        transform = DetectionTransform(
            config.mean,
            config.std,
            scale=config.resize_scale,
            hflip=config.hflip,
            multi_scale=config.multi_scale,
        )
        return build_detection_training_loader(
            data,
            transform,
            self._anchors(),
            BatchSizes(SCALE if config.multi_scale else config.resize_scale, config.size_steps),
            batch_size=config.batch_size,
            seed=config.seed,
            accumulation=config.gradient_accumulation_steps,
            options=loader_options(config, world),
        )

    def _anchors(self) -> AnchorTask:
        """What is learned of the anchors: their classes, or whether there is an object at all."""
        if not self._has_masks():
            return AnchorTask(
                RetinaNet.strides, RetinaNet.scales, self.config.num_classes, RETINANET
            )
        return AnchorTask(MaskRCNN.strides, MaskRCNN.scales, 1, PROPOSAL_RULE, PROPOSAL_SAMPLING)

    def size_in_words(self) -> str:
        """What the sides are limited to."""
        long, short = SCALE if self.config.multi_scale else self.config.resize_scale
        return f"up to {long} x {short} pixels"

    def loss(self, model: nn.Cell) -> nn.Cell:
        """Of the anchors and, where there is a second stage, of regions; see `loss`."""
        if self._has_masks():
            return MaskRCNNLoss(cast(MaskRCNN, model))
        return RetinaNetLoss(self.config.num_classes)

    def completion(self, model: nn.Cell) -> Complete | None:
        """The choice of a second stage's regions among what the model proposes."""
        if not self._has_masks():
            return None
        return RegionChoice(cast(MaskRCNN, model), self._sampling())

    def _sampling(self) -> Sampling:
        return replace(SECOND_STAGE_SAMPLING, count=self.config.region_samples)

    def evaluator(self, model: Model, data: CocoDataset, world: World) -> DetectionEvaluator:
        """COCO's average precision and recall, of boxes and, where there are some, of masks."""
        config = self.config
        loader = build_detection_loader(
            data,
            self.preprocessing(),
            batch_size=config.eval_batch_size or 1,
            options=loader_options(config, world),
        )
        return DetectionEvaluator(
            cast(Detector, model), loader, self._has_masks(), world.is_main, world.exchange
        )

    def report(self, metrics: DetectionMetrics, data: CocoDataset) -> str:
        """A table of the classes, and COCO's numbers."""
        return f"{metrics.table(data.classes)}\n{metrics}"

    def result(self, metrics: DetectionMetrics, data: CocoDataset) -> dict:
        """COCO's numbers, and those of each class."""
        return metrics.result(data.classes)

    def class_names(self) -> Sequence[str]:
        """The lines of `class_names`, the checkpoint's names, those of the data set, or numbers.

        The digits' only where `dataset` says so; any other model of 80 classes is taken for one of
        COCO, as the published ones are.
        """
        if self.classes is not None:
            return self.classes
        known = digits.CLASSES if self.config.dataset == "digits" else coco.CLASSES
        if len(known) == self.config.num_classes:
            return known
        return [f"class {i}" for i in range(self.config.num_classes)]

    def predict(self, model: Model, files: Sequence[Path]) -> Iterator[dict]:
        """The objects in each image; see `mindtwins.detection.predict.detect`."""
        config = cast(InferConfig, self.config)  # no other recipe says `least_score`
        limit_pixels(config.max_pixels)
        return detect(
            cast(Detector, model),
            self.preprocessing(),
            files,
            self.class_names(),
            Path(config.output_dir),
            least_score=config.least_score,
            skip_bad_images=config.skip_bad_images,
            exif_orientation=config.exif_orientation,
        )

    def describe(self, prediction: dict) -> str:
        """The file, its surest objects, and where the drawing is."""
        return describe(prediction, cast(InferConfig, self.config).top_k)

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """The drawing and the surest object."""
        objects = prediction["objects"]
        if not objects:
            return prediction["overlay"], "nothing found"
        return prediction["overlay"], f"{objects[0]['name']} ({100 * objects[0]['score']:.0f} %)"

    def preprocessing(self) -> TestTransform:
        """From an RGB picture to what the detector sees, and how the picture lies in it."""
        config = self.config
        return TestTransform(config.mean, config.std, scale=config.resize_scale)

    def parts(self) -> list[Part]:
        """The stages, the pyramid and the heads, counted for a picture of the training's scale."""
        config, sampling = self.config, self._sampling()
        return count(
            config.model,
            config.resize_scale,
            config.num_classes,
            regions=sampling.count,
            masks=sampling.most_positive,
        )

    def loaded_bytes(self) -> int:
        """A picture, a label and deltas of each anchor, and the objects' masks."""
        scale = SCALE if self.config.multi_scale else self.config.resize_scale
        anchors = count_anchors(self.config.model, scale)
        masks = MANY_OBJECTS if self._has_masks() else 0
        return (4 * 3 + masks) * math.prod(scale) + 4 * 5 * anchors

    def summary(self) -> str:
        """Parameters and multiply-adds per part, at the scale of the pictures."""
        config = self.config
        return format_summary(config.model, config.resize_scale, config.num_classes)
