"""What training and evaluation ask of a task: the protocols that each task's folder implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.config import Config
from mindtwins.data.loader import TrainingLoader
from mindtwins.execution import Model
from mindtwins.models.complexity import Part
from mindtwins.training.distributed import World
from mindtwins.training.step import Complete


class DataSet(Protocol):
    """Files and their labels.

    Attributes:
        root: the folder.
        paths: the image files.
    """

    root: str
    paths: list[str]

    def __len__(self) -> int: ...


class Metrics(Protocol):
    """Result of an evaluation; its text is for people.

    Attributes:
        score: in percent, the higher the better; the best weights are chosen by it.
        images: number of images that counted.
    """

    @property
    def score(self) -> float: ...

    @property
    def images(self) -> int: ...

    def record(self) -> dict[str, float]:
        """The numbers for the log, by name."""


Data = TypeVar("Data", bound=DataSet)
Found = TypeVar("Found", bound=Metrics)
Found_co = TypeVar("Found_co", bound=Metrics, covariant=True)


class Evaluator(Protocol[Found_co]):
    """Evaluates a model again and again.

    Attributes:
        images_per_second: of this process in the last evaluation, compilation left out; None if
            nothing else was left to measure.
        skipped: unreadable images that this process left out of it.
    """

    @property
    def images_per_second(self) -> float | None: ...

    @property
    def skipped(self) -> int: ...

    def evaluate(self) -> Found_co:
        """Evaluate every image once, over all ranks."""

    def listings(self) -> dict[str, list]:
        """What the last evaluation found in the images, for files of its own, by their suffixes."""


class Task(Protocol[Data, Found]):
    """What a recipe's `task` stands for. Methods raise UserError for what a user can get wrong.

    Of its own kind are its data and what it finds in an evaluation of them; a bare `Task` is any.

    Attributes:
        datasets: the values of the option `dataset` that go with it.
        score_name: what the metrics' score is called.
        curves: the metrics that are drawn, as the log has them, and what they are called.
        couples_images: whether a step depends on which images share a pass.
        config: the recipe, with what the checkpoint and the data say where it leaves that open.
        classes: the names of the model's classes, by number; None where they are not known.
    """

    @property
    def datasets(self) -> tuple[str, ...]: ...

    @property
    def score_name(self) -> str: ...

    @property
    def curves(self) -> dict[str, str]: ...

    @property
    def couples_images(self) -> bool: ...

    @property
    def config(self) -> Config: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __init__(self, config: Config, checkpoint: Checkpoint | None = None) -> None:
        """Take the recipe, and the checkpoint to start from or to use."""

    def find_data(self, split: str) -> Data:
        """The files of a split, "train" or "val"; for a training the former comes first."""

    def check_same_classes(self, train: Data, val: Data) -> None:
        """Raise unless a label means the same in both."""

    def entries(self, data: Data) -> Iterable[str]:
        """Each image with its label as text: what a continued run has to find unchanged."""

    def build_model(self, world: World) -> tuple[nn.Cell, dict]:
        """The model with its weights at the recipe's precision, and all that using them takes."""

    def use(self) -> dict:
        """What a file of the model says of its use: classes, preprocessing and data."""

    def training_loader(self, data: Data, world: World) -> TrainingLoader:
        """This rank's augmented batches."""

    def size_in_words(self) -> str:
        """How large the images are that are trained on."""

    def loss(self, model: nn.Cell) -> nn.Cell:
        """From (the model's output in training, targets) to a float32 scalar.

        It may hold parts of the model, which see what the targets say.
        """

    def completion(self, model: nn.Cell) -> Complete | None:
        """Where targets follow from what the model computes in the same step: how; else None."""

    def evaluator(self, model: Model, data: Data, world: World) -> Evaluator[Found]:
        """Evaluates a model on the data, shared by the ranks."""

    def report(self, metrics: Found, data: Data) -> str:
        """An evaluation's result in words, in detail."""

    def result(self, metrics: Found, data: Data) -> dict:
        """An evaluation's result for a JSON file."""

    def preprocessing(self) -> Callable:
        """From an RGB picture to what the model takes, as in evaluation."""

    def class_names(self) -> Sequence[str]:
        """A name for each of the recipe's classes, by number."""

    def predict(self, model: Model, files: Sequence[Path]) -> Iterator[dict]:
        """What the model finds in each readable image: its `file`, and values that JSON can hold.

        Mistakes that can be seen beforehand are raised before the first image.
        """

    def describe(self, prediction: dict) -> str:
        """A prediction in one line."""

    def captioned(self, prediction: dict) -> tuple[str, str]:
        """A picture that shows a prediction, and what to write above it."""

    def parts(self) -> list[Part]:
        """The parts of the model, counted for one training image."""

    def loaded_bytes(self) -> int:
        """What a training image and its targets take on their way from the workers to the step."""

    def summary(self) -> str:
        """The model's parameters and multiply-adds as a table."""
