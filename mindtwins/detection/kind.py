"""What a conversion has to know of detectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.conversion.kinds import Shapes
from mindtwins.conversion.openmmlab import TestRecipe
from mindtwins.conversion.recognize import Recognition, recognize_headed
from mindtwins.detection import coco
from mindtwins.detection.detector import Detector
from mindtwins.detection.layouts import LAYOUTS
from mindtwins.detection.outputs import DetectorOutputs
from mindtwins.detection.postprocessing import PostProcessing
from mindtwins.detection.protocol import as_tested
from mindtwins.detection.retinanet import ANCHORS
from mindtwins.detection.variants import (
    CLASSIFIERS,
    DEFAULT_CLASSES,
    create_detector,
    detector_shapes,
    resolve_detector,
)
from mindtwins.training.recorded import defaults, describe_use

_BACKBONE = "backbone."
# What has so many rows for each class, of either detector.
_ROWS = {"bbox_head.retina_cls.bias": ANCHORS, "roi_head.mask_head.conv_logits.bias": 1}


class DetectorKind:
    """See `mindtwins.conversion.kinds.ModelKind`."""

    layouts = LAYOUTS
    head = tuple(f"{layer}{parameter}" for layer in CLASSIFIERS for parameter in ("weight", "bias"))
    stem = f"{_BACKBONE}patch_embeds.0.proj.weight"
    architecture_keys = ("num_classes", "in_channels")
    default_classes = DEFAULT_CLASSES
    published_on = "COCO"
    fewest_classes = 1
    # Multiples of 32, to which pictures are padded; no map of theirs is whole windows.
    verified_size = (192, 256)
    keeps_dialect = True
    pipeline = "object-detection"
    example = "found = model.predict(images, geometries)  # see mindtwins.detection.detections"

    def owns(self, names: Collection[str]) -> bool:
        return any(name.startswith(("bbox_head.", "roi_head.")) for name in names)

    def recognize(self, seen: Shapes) -> Recognition:
        is_mask = any(name.startswith(("roi_head.", "rpn_head.")) for name in seen)
        head = "maskrcnn" if is_mask else "retinanet"
        return recognize_headed(head, seen, _BACKBONE)

    def resolve(self, name: str) -> str:
        return resolve_detector(name)

    def count_classes(self, seen: Shapes) -> int:
        for name, rows in _ROWS.items():
            if seen.get(name):
                return seen[name][0] // rows
        return 0

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        return detector_shapes(name, num_classes, in_channels)

    def architecture(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        return {"num_classes": num_classes, "in_channels": in_channels}

    def use(self, architecture: Mapping) -> dict:
        """As COCO's where there are as many classes, which the published detectors have."""
        preprocessing = defaults(("mean", "std")) | {
            "resize_scale": [1333, 800],
            "exif_orientation": True,
        }
        is_coco = architecture["num_classes"] == len(coco.CLASSES)
        used = describe_use(
            coco.CLASSES if is_coco else None, "bilinear", preprocessing, {"dataset": "coco"}
        )
        return used | {"postprocessing": asdict(PostProcessing())}

    def as_tested(self, recipe: TestRecipe) -> tuple[dict, list[str]]:
        return as_tested(recipe)

    def create(self, checkpoint: Checkpoint) -> Detector:
        stated = checkpoint.stated
        architecture = {key: stated[key] for key in self.architecture_keys if key in stated}
        return create_detector(stated["variant"], ckpt_path=checkpoint, **architecture)

    def palette(self, classes: int) -> list[list[int]]:
        return []

    def outputs(self, checkpoint: Checkpoint) -> nn.Cell:
        return DetectorOutputs(self.create(checkpoint))
