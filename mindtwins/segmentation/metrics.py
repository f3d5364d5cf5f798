"""Mean intersection over union and accuracies, from areas summed over the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindtwins.errors import UserError
from mindtwins.segmentation.dataset import IGNORED


@dataclass(frozen=True)
class SegmentationMetrics:
    """Result of an evaluation, in percent.

    Attributes:
        miou: mean of `iou` over the classes that occur, in the labels or in the predictions.
        macc: mean of `accuracy` over the classes that occur in the labels.
        aacc: percentage of the labeled pixels that were predicted right.
        iou: per class, intersection over union of the predicted and the labeled area; nan for a
            class that does not occur.
        accuracy: per class, part of the labeled area that was predicted right; nan for a class
            that is not labeled.
        images: number of images that counted.
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int

    @property
    def score(self) -> float:
        """What the best weights are chosen by."""
        return self.miou

    def record(self) -> dict[str, float]:
        """The numbers for a log."""
        return {"miou": self.miou, "macc": self.macc, "aacc": self.aacc}

    def __str__(self) -> str:
        return f"mIoU {self.miou:.2f} %, mAcc {self.macc:.2f} %, aAcc {self.aacc:.2f} %"

    def result(self, classes: Sequence[str]) -> dict:
        """All numbers for a JSON file, those per class by name; None where a class is absent."""

        def by_name(values: Sequence[float]) -> dict[str, float | None]:
            return {n: None if np.isnan(v) else v for n, v in zip(classes, values, strict=True)}

        per_class = {"iou": by_name(self.iou), "accuracy": by_name(self.accuracy)}
        return {**self.record(), "images": self.images, **per_class}

    def table(self, classes: Sequence[str]) -> str:
        """The classes with their IoU and accuracy, and the means, as text.

        Args:
            classes: their names, by number.
        """
        width = max(map(len, ("all pixels", *classes)))
        lines = [f"{'class':<{width}} {'IoU':>7} {'Acc':>7}"]
        for name, iou, accuracy in zip(classes, self.iou, self.accuracy, strict=True):
            lines.append(f"{name:<{width}} {_percent(iou)} {_percent(accuracy)}")
        lines.append(f"{'mean':<{width}} {_percent(self.miou)} {_percent(self.macc)}")
        lines.append(f"{'all pixels':<{width}} {'':>7} {_percent(self.aacc)}")
        return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{'-':>7}" if np.isnan(value) else f"{value:>7.2f}"


class ConfusionAreas:
    """Areas per class in pixels, added picture by picture: exact however they are batched.

    Attributes:
        intersection: int64 (classes,): predicted and labeled so.
        predicted: int64 (classes,): predicted so, where there is a label.
        labeled: int64 (classes,): labeled so.
    """

    def __init__(self, num_classes: int) -> None:
        self._sums = np.zeros(3 * num_classes + 1, dtype=np.int64)
        self.intersection, self.predicted, self.labeled = self._sums[:-1].reshape(3, -1)

    @property
    def images(self) -> int:
        """Number of pictures added."""
        return int(self._sums[-1])

    def add(self, prediction: np.ndarray, labels: np.ndarray, source: str = "a picture") -> None:
        """Take in one picture.

        Args:
            prediction: integers (height, width), each pixel's class.
            labels: integers (height, width); pixels with 255 are dropped first.
            source: its file, for the error.

        Raises:
            ValueError: the shapes differ, or a class is out of range; the file is named.
        """
        if prediction.shape != labels.shape:
            raise ValueError(
                f"{source}: the prediction is {prediction.shape}, but the labels {labels.shape}"
            )
        counted = labels != IGNORED
        prediction, labels = prediction[counted], labels[counted]
        classes = len(self.labeled)
        for what, values in (("label", labels), ("prediction", prediction)):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < classes:
                wrong = values[(values < 0) | (values >= classes)][0]
                raise ValueError(f"{source}: {what} {wrong} is out of range for {classes} classes")
        for area, values in (
            (self.intersection, labels[prediction == labels]),
            (self.predicted, prediction),
            (self.labeled, labels),
        ):
            area += np.bincount(values, minlength=classes)
        self._sums[-1] += 1

    def to_bytes(self) -> bytes:
        """The sums so far, for `add_bytes` of another process."""
        return self._sums.tobytes()

    def add_bytes(self, data: bytes) -> None:
        """Take in the sums of another process; for a total over all, start from empty sums."""
        self._sums += np.frombuffer(data, np.int64)

    def metrics(self) -> SegmentationMetrics:
        """Metrics over the pictures so far.

        Raises:
            UserError: no pixel was labeled.
        """
        if not self.labeled.any():
            raise UserError(
                f"no labeled pixel was evaluated in {self.images} pictures: check that the label "
                "files of the validation split hold more than ignored pixels, and that its images "
                "can be read"
            )
        union = self.predicted + self.labeled - self.intersection
        with np.errstate(invalid="ignore"):  # 0 / 0 is nan: the class does not occur
            iou = 100 * (self.intersection / union)
            accuracy = 100 * (self.intersection / self.labeled)
        return SegmentationMetrics(
            miou=float(np.nanmean(iou)),
            macc=float(np.nanmean(accuracy)),
            aacc=100 * int(self.intersection.sum()) / int(self.labeled.sum()),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            images=self.images,
        )
