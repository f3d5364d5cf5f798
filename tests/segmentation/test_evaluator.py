"""The evaluation loop against the protocol written down with torch and NumPy, and its reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor, nn, ops
from PIL import Image
from torch.nn import functional

from mindtwins.data.loader import EvaluationLoader, LoaderOptions
from mindtwins.errors import UserError
from mindtwins.segmentation import transforms
from mindtwins.segmentation.dataset import ImageLabelFolder
from mindtwins.segmentation.evaluator import SegmentationEvaluator
from mindtwins.segmentation.inference import Window
from mindtwins.segmentation.loader import build_segmentation_loader
from mindtwins.segmentation.metrics import ConfusionAreas, SegmentationMetrics

CLASSES = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (height, width): two pictures share a batch.
SIZES = [(40, 48), (40, 48), (36, 52), (30, 30)]


# From 4 x 4 pixels of 3 channels to logits; not the same mirrored.
WEIGHT = np.random.default_rng(0).normal(size=(3 * 16, CLASSES)).astype(np.float32)


class Stub(nn.Cell):
    """A segmentor that sees each patch alone: (n, 3, h, w) -> logits (n, classes, h/4, w/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(WEIGHT))

    def construct(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        rows, columns = height // 4, width // 4
        x = images[:, :, : 4 * rows, : 4 * columns]
        x = ops.reshape(x, (n, channels, rows, 4, columns, 4))
        x = ops.reshape(ops.transpose(x, (0, 2, 4, 1, 3, 5)), (-1, channels * 16))
        logits = ops.reshape(ops.matmul(x, self.weight), (n, rows, columns, CLASSES))
        return ops.transpose(logits, (0, 3, 1, 2))


@pytest.fixture
def pairs(tmp_path: Path) -> ImageLabelFolder:
    rng = np.random.default_rng(1)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
    return ImageLabelFolder(tmp_path / "images", tmp_path / "labels", tuple("abc"))


def transform(ratios: tuple[float, ...]) -> transforms.TestTransform:
    return transforms.TestTransform(MEAN, STD, scale=(96, 44), ratios=ratios)


def loader(
    pairs: ImageLabelFolder,
    ratios: tuple[float, ...] = (1.0,),
    batch_size: int = 2,
    **options: object,
) -> EvaluationLoader:
    loading = LoaderOptions(**{"num_parallel_workers": 1, **options})
    return build_segmentation_loader(
        pairs, transform(ratios), batch_size=batch_size, options=loading
    )


def damage(pairs: ImageLabelFolder, *indices: int) -> None:
    for index in indices:
        Path(pairs.paths[index]).write_bytes(b"")


# The protocol by hand ----------------------------------------------------------------------------


def stub(images: torch.Tensor) -> torch.Tensor:
    """The stub in torch: a convolution."""
    kernel = torch.from_numpy(WEIGHT.T.reshape(CLASSES, 3, 4, 4).copy())
    return functional.conv2d(images, kernel, stride=4)


def interpolate(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear")


def covering(length: int, window: Window) -> list[slice]:
    """Windows along a side: every stride, the last one at the end."""
    starts = [*range(0, max(length - window.size, 0), window.stride), max(length - window.size, 0)]
    return [slice(start, start + window.size) for start in starts]


def view_logits(view: np.ndarray, window: Window | None) -> torch.Tensor:
    """Of a view (3, h, w) at its own size: (1, classes, h, w), averaged over windows."""
    height, width = view.shape[1:]
    total, count = torch.zeros(1, CLASSES, height, width), torch.zeros(height, width)
    window = window or Window(max(height, width), 1)
    for rows in covering(height, window):
        for columns in covering(width, window):
            part = torch.from_numpy(view[None, :, rows, columns].copy())
            total[:, :, rows, columns] += interpolate(stub(part), part.shape[2:])
            count[rows, columns] += 1
    return total / count


def areas_by_hand(
    pairs: ImageLabelFolder, ratios: tuple[float, ...], flip: bool, window: Window | None
) -> np.ndarray:
    """Labeled class by predicted class, int (classes, classes)."""
    confusion = np.zeros(CLASSES**2, int)
    for index in range(len(pairs)):
        image, labels = pairs.read(index)
        score = torch.zeros(1, CLASSES, *labels.shape)
        for view in transform(ratios)(image):
            score += interpolate(view_logits(view, window), labels.shape).softmax(1)
            if flip:
                mirrored = view_logits(view[:, :, ::-1], window)
                score += interpolate(mirrored, labels.shape).softmax(1).flip(3)
        predicted = score.argmax(1)[0].numpy()
        counted = labels != 255
        places = CLASSES * labels[counted].astype(int) + predicted[counted]
        confusion += np.bincount(places, minlength=CLASSES**2)
    return confusion.reshape(CLASSES, CLASSES)


def assert_areas(metrics: SegmentationMetrics, confusion: np.ndarray) -> None:
    """All numbers agree, but for pixels whose best classes differ by rounding."""
    hit, labeled = np.diag(confusion), confusion.sum(1)
    union = confusion.sum(0) + labeled - hit
    np.testing.assert_allclose(metrics.iou, 100 * hit / union, atol=0.1)
    np.testing.assert_allclose(metrics.accuracy, 100 * hit / labeled, atol=0.1)
    assert metrics.aacc == pytest.approx(100 * hit.sum() / confusion.sum(), abs=0.05)


PROTOCOLS = {
    "whole": ((1.0,), False, None),
    "flip": ((1.0,), True, None),
    "ratios": ((0.75, 1.0, 1.5), False, None),
    "windows": ((1.0,), False, Window(32, 20)),
    "all": ((1.0, 1.5), True, Window(32, 20)),
}


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(name, marks=[] if name in ("whole", "all") else pytest.mark.slow)
        for name in PROTOCOLS
    ],
)
def test_areas_are_those_by_hand(pairs: ImageLabelFolder, protocol: str) -> None:
    ratios, flip, window = PROTOCOLS[protocol]
    evaluator = SegmentationEvaluator(Stub(), loader(pairs, ratios), flip, window, False)
    metrics = evaluator.evaluate()
    assert metrics.images == len(SIZES)
    assert_areas(metrics, areas_by_hand(pairs, ratios, flip, window))
    if protocol != "whole":  # the test can tell them apart
        with pytest.raises(AssertionError):
            assert_areas(metrics, areas_by_hand(pairs, *PROTOCOLS["whole"]))


# Unreadable files --------------------------------------------------------------------------------


@pytest.mark.slow
def test_unreadable_pictures_are_left_out(pairs: ImageLabelFolder) -> None:
    expected = SegmentationEvaluator(Stub(), loader(pairs), show_progress=False).evaluate()
    first, last = Path(pairs.paths[0]), Path(pairs.paths[3])
    for path in (first, last):  # partners whose labels are ignored change nothing
        with Image.open(path) as image:
            image.resize((20, 20)).save(path.with_name(f"x{path.name}"))
            blank = Image.new("L", (20, 20), 255)
        blank.save(Path(pairs.label_paths[0]).with_name(f"x{path.name}"))
    more = ImageLabelFolder(pairs.root, Path(pairs.label_paths[0]).parent, tuple("abc"))
    damage(more, 4, 5)
    evaluator = SegmentationEvaluator(
        Stub(), loader(more, skip_bad_images=True), False, None, False
    )
    assert evaluator.evaluate() == expected
    assert evaluator.skipped == 2


def test_a_rank_without_a_readable_picture_still_answers_the_others(
    pairs: ImageLabelFolder,
) -> None:
    damage(pairs, 0)
    others = ConfusionAreas(CLASSES)
    others.add(np.zeros((2, 2), int), np.zeros((2, 2), int))
    asked = []

    def exchange(label: str, payload: bytes) -> list[bytes]:
        asked.append(label)
        return [payload, others.to_bytes()]

    own = loader(pairs, skip_bad_images=True, rank=0, world=4)
    evaluator = SegmentationEvaluator(Stub(), own, show_progress=False, exchange=exchange)
    assert [batch.tolist() for batch in own.batches] == [[0]]
    assert evaluator.evaluate().images == 1
    assert asked == ["areas"] and evaluator.skipped == 1


def test_nothing_readable(pairs: ImageLabelFolder) -> None:
    damage(pairs, *range(len(SIZES)))
    own = loader(pairs, skip_bad_images=True)
    with pytest.raises(UserError, match="no labeled pixel was evaluated in 0 pictures"):
        SegmentationEvaluator(Stub(), own, show_progress=False).evaluate()


# Speed -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_speed_leaves_compiling_out(pairs: ImageLabelFolder) -> None:
    evaluator = SegmentationEvaluator(Stub(), loader(pairs), show_progress=False)
    assert evaluator.images_per_second is None
    evaluator.evaluate()
    assert evaluator.images_per_second is None  # each batch has a size of its own
    evaluator.evaluate()
    assert evaluator.images_per_second > 0


def test_windows_of_one_size_share_a_graph(pairs: ImageLabelFolder) -> None:
    own = loader(pairs, batch_size=1)
    del own.batches[1]  # the rest are pictures of different sizes
    evaluator = SegmentationEvaluator(Stub(), own, False, Window(32, 20), show_progress=False)
    evaluator.evaluate()
    assert evaluator.images_per_second > 0
