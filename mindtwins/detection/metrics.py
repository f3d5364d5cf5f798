"""Average precision and recall as COCO computes them, of boxes and of masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindtwins.detection.cocotools import cocotools, silent
from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.detections import Detections
from mindtwins.detection.run_lengths import encode_masks
from mindtwins.errors import UserError

# How many detections of a class in a picture count at most, from the surest on. They are those of
# MMDetection: AP is taken at the first, what follows it at the last.
MOST_DETECTIONS = (100, 300, 1000)

# The numbers of COCO's summary, in its order. AP is the mean over the IoUs .50 to .95; s, m and l
# are objects of up to 32 x 32 pixels, up to 96 x 96, and beyond.
NUMBERS = (
    *("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l"),
    *(f"AR@{most}" for most in MOST_DETECTIONS),
    *(f"AR_{size}@{MOST_DETECTIONS[-1]}" for size in "sml"),
)
# COCO's names of what is compared, by ours.
KINDS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's numbers of one kind, in percent; nan where there is no object that they are about.

    Attributes:
        numbers: the summary, in the order of `NUMBERS`.
        per_class: AP and AP50 of each class, by its number.
    """

    numbers: tuple[float, ...]
    per_class: tuple[tuple[float, float], ...]

    def by_name(self) -> dict[str, float]:
        """The summary."""
        return dict(zip(NUMBERS, self.numbers, strict=True))


@dataclass(frozen=True)
class DetectionMetrics:
    """Result of an evaluation.

    Attributes:
        kinds: the numbers of "box" and, where masks were compared, "mask".
        images: number of pictures that counted.
    """

    kinds: Mapping[str, AveragePrecision]
    images: int

    @property
    def score(self) -> float:
        """What the best weights are chosen by: the AP of the boxes."""
        return self.kinds["box"].numbers[0]

    def record(self) -> dict[str, float]:
        """The numbers for a log: AP and AP50."""
        return {
            f"{kind}_{name.lower()}": found.by_name()[name]
            for kind, found in self.kinds.items()
            for name in NUMBERS[:2]
        }

    def __str__(self) -> str:
        return ", ".join(
            f"{kind} AP {found.numbers[0]:.2f} %, AP50 {found.numbers[1]:.2f} %"
            for kind, found in self.kinds.items()
        )

    def result(self, classes: Sequence[str]) -> dict:
        """All numbers for a JSON file, those per class by name; None where they are about none."""
        kinds = {}
        for kind, found in self.kinds.items():
            per_class = {
                name: {"AP": _or_none(ap), "AP50": _or_none(ap50)}
                for name, (ap, ap50) in zip(classes, found.per_class, strict=True)
            }
            numbers = {name: _or_none(value) for name, value in found.by_name().items()}
            kinds[kind] = {**numbers, "classes": per_class}
        return {"images": self.images, **kinds}

    def table(self, classes: Sequence[str]) -> str:
        """The classes with AP and AP50, the means, and the other numbers of the summary, as text.

        Args:
            classes: their names, by number.
        """
        width = max(map(len, ("class", "mean", *classes)))
        heads = "".join(f" {kind + ' AP':>9} {kind + ' AP50':>10}" for kind in self.kinds)
        lines = [f"{'class':<{width}}{heads}"]
        rows: list[tuple[str, list[Sequence[float]]]] = [
            (name, [found.per_class[label] for found in self.kinds.values()])
            for label, name in enumerate(classes)
        ]
        rows.append(("mean", [found.numbers[:2] for found in self.kinds.values()]))
        for name, pairs in rows:
            numbers = "".join(f" {_percent(ap, 9)} {_percent(ap50, 10)}" for ap, ap50 in pairs)
            lines.append(f"{name:<{width}}{numbers}")
        for kind, found in self.kinds.items():
            numbers = ", ".join(
                f"{name} {_percent(value)}" for name, value in list(found.by_name().items())[2:]
            )
            lines.append(f"{kind}: {numbers}")
        return "\n".join(lines)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _percent(value: float, width: int = 0) -> str:
    return f"{'-' if np.isnan(value) else f'{value:.2f}':>{width}}"


class Results:
    """The detections in a data set's pictures, as COCO writes them, and their metrics.

    Args:
        dataset: the pictures.
        masks: whether masks are compared, beside boxes.
    """

    def __init__(self, dataset: CocoDataset, masks: bool = False) -> None:
        self._dataset = dataset
        self._masks = masks
        # By the picture's index; a picture without detections has an empty list.
        self._of_picture: dict[int, list[dict[str, Any]]] = {}

    @property
    def images(self) -> int:
        """Number of pictures added."""
        return len(self._of_picture)

    def add(self, index: int, detections: Detections) -> None:
        """Take in what was found in a picture.

        Raises:
            ValueError: masks are compared, but there are none.
        """
        found = as_results(detections)
        if self._masks and any("segmentation" not in one for one in found):
            raise ValueError("masks are to be compared, but the detector has found none")
        self._of_picture[index] = found

    def to_bytes(self) -> bytes:
        """What has been found so far, for `add_bytes` of another process."""
        return json.dumps(list(self._of_picture.items())).encode()

    def add_bytes(self, data: bytes) -> None:
        """Take in what another process has found; a picture that both have counts once."""
        self._of_picture.update(json.loads(data))

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """The list that COCO's own tools read from a file, in the order of the pictures.

        Boxes and masks have a list each: where an entry has both, pycocotools tells the size of a
        mask by its box.

        Args:
            kind: "box" or "mask".
        """
        has = "bbox" if kind == "box" else "segmentation"
        return [
            {
                "image_id": self._dataset.image_ids[index],
                "category_id": self._dataset.category_ids[one["label"]],
                has: one[has],
                "score": one["score"],
            }
            for index, found in sorted(self._of_picture.items())
            for one in found
        ]

    def metrics(self) -> DetectionMetrics:
        """Metrics over the pictures so far.

        Raises:
            UserError: there is no object in them.
        """
        truth = self._dataset.ground_truth()
        seen = {self._dataset.image_ids[index] for index in self._of_picture}
        if not any(one["image_id"] in seen and not one["iscrowd"] for one in truth["annotations"]):
            raise UserError(
                f"there is no object of the {self._dataset.num_classes} classes in the "
                f"{self.images} pictures that were evaluated: check the annotation file of "
                f"{self._dataset.root}, and that its pictures can be read"
            )
        kinds = ("box", "mask") if self._masks else ("box",)
        return DetectionMetrics(
            {
                kind: average_precision(
                    self._dataset.ground_truth(), self.listed(kind), sorted(seen), kind
                )
                for kind in kinds
            },
            self.images,
        )


def as_results(detections: Detections) -> list[dict[str, Any]]:
    """The objects in a picture as JSON can hold them, in their order.

    Returns:
        For each its `label` (the class's number), `score`, `bbox` (left, top, width and height)
        and, if there are masks, `segmentation` (a run-length code).
    """
    corners = detections.boxes.astype(np.float64)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    found = [
        {"label": label, "score": score, "bbox": box}
        for label, score, box in zip(
            detections.labels.tolist(), detections.scores.tolist(), boxes.tolist(), strict=True
        )
    ]
    if detections.masks is not None:
        for one, code in zip(found, encode_masks(detections.masks), strict=True):
            one["segmentation"] = code
    return found


def average_precision(
    truth: dict[str, list[dict[str, Any]]],
    results: list[dict[str, Any]],
    image_ids: Sequence[int | str],
    kind: str,
) -> AveragePrecision:
    """COCO's numbers, by pycocotools.

    Args:
        truth: see `CocoDataset.ground_truth`; pycocotools changes it.
        results: in COCO's format.
        image_ids: of the pictures that count.
        kind: "box" or "mask".
    """
    coco = cocotools("coco")
    categories = [category["id"] for category in truth["categories"]]
    with silent():
        expected, found = coco.COCO(), coco.COCO()
        expected.dataset = truth
        expected.createIndex()
        if results:
            found = expected.loadRes([dict(one) for one in results])
        else:  # which pycocotools cannot load
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        evaluation = cocotools("cocoeval").COCOeval(expected, found, KINDS[kind])
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = categories
        evaluation.params.maxDets = list(MOST_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # IoUs, recalls, classes (by category id), all sizes, at most 100: -1 without an object.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    row = {number: row for row, number in enumerate(sorted(categories))}
    per_class = [
        (_mean(precision[:, :, row[number]]), _mean(precision[0, :, row[number]]))
        for number in categories
    ]
    numbers = [float("nan") if value < 0 else 100 * float(value) for value in evaluation.stats]
    return AveragePrecision(tuple(numbers), tuple(per_class))


def _mean(precision: np.ndarray) -> float:
    """In percent; nan for a class without an object."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else float("nan")
