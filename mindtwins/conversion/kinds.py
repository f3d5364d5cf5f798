"""What a conversion asks of a kind of model; each task's folder has its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.conversion.layouts import Layout
from mindtwins.conversion.openmmlab import TestRecipe
from mindtwins.conversion.recognize import Recognition
from mindtwins.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class ModelKind(Protocol):
    """One kind of model. Names are ours; `seen` are the shapes that a source has for them.

    Attributes:
        layouts: whose names are known; the first is what weights without a history get.
        head: the parameters that depend on the number of classes.
        stem: the convolution whose second axis is the images' channels.
        architecture_keys: what `architecture` states.
        default_classes: as published.
        published_on: the data set whose classes these are.
        fewest_classes: that a model can have.
        verified_size: height and width of the photographs that a conversion is verified with.
        keeps_dialect: whether weights are tied to the conventions that they were trained with.
            (Those of classifiers go from code to code.)
        pipeline: what a model hub calls the task.
        example: a line of Python that uses `model`.
    """

    @property
    def layouts(self) -> tuple[Layout, ...]: ...

    @property
    def head(self) -> tuple[str, ...]: ...

    @property
    def stem(self) -> str: ...

    @property
    def architecture_keys(self) -> tuple[str, ...]: ...

    @property
    def default_classes(self) -> int: ...

    @property
    def published_on(self) -> str: ...

    @property
    def fewest_classes(self) -> int: ...

    @property
    def verified_size(self) -> tuple[int, int]: ...

    @property
    def keeps_dialect(self) -> bool: ...

    @property
    def pipeline(self) -> str: ...

    @property
    def example(self) -> str: ...

    def owns(self, names: Collection[str]) -> bool:
        """Whether parameters of these names are such a model's."""

    def recognize(self, seen: Shapes) -> Recognition:
        """The model that agrees best with the shapes."""

    def resolve(self, name: str) -> str:
        """The model that a name of the user's means."""

    def count_classes(self, seen: Shapes) -> int:
        """Of the head among these parameters; 0 if there is none."""

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        """What has to be filled."""

    def architecture(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        """The arguments that build the model, as a checkpoint states them."""

    def use(self, architecture: Mapping) -> dict:
        """What a checkpoint of published weights says of its use: classes, preprocessing, data."""

    def as_tested(self, recipe: TestRecipe) -> tuple[dict, list[str]]:
        """The preprocessing that a source's recipe states, and what of it is not done here."""

    def create(self, checkpoint: Checkpoint) -> nn.Cell:
        """The model that a checkpoint of known metadata holds, with its weights."""

    def palette(self, classes: int) -> list[list[int]]:
        """The colors of the classes (red, green, blue); none where they are not drawn."""

    def outputs(self, checkpoint: Checkpoint) -> nn.Cell:
        """A checkpoint's model, as a cell that gives all its maps and logits in order."""


Kinds = Mapping[str, ModelKind]


def first_axis(seen: Shapes, names: tuple[str, ...]) -> int:
    """Length of the first axis of the first of these parameters that is seen; 0 of none."""
    return next((seen[name][0] for name in names if seen.get(name)), 0)


def all_layouts(kinds: Kinds) -> tuple[Layout, ...]:
    """The layouts of every kind."""
    return tuple(layout for kind in kinds.values() for layout in kind.layouts)


def projects(kinds: Kinds) -> tuple[str, ...]:
    """Whose names are known for any kind."""
    return tuple(dict.fromkeys(layout.project for layout in all_layouts(kinds)))


def writable_projects(kinds: Kinds) -> tuple[str, ...]:
    """Whose names a file can be written in."""
    layouts = [layout for layout in all_layouts(kinds) if layout.by_order is None]
    return tuple(dict.fromkeys(layout.project for layout in layouts))


def find_layout(kinds: Kinds, project: str, task: str) -> Layout:
    """A project's names for the models of a task.

    Raises:
        UserError: it has none.
    """
    for layout in kinds[task].layouts:
        if layout.project == project:
            return layout
    others = [layout.project for layout in kinds[task].layouts]
    raise UserError(
        f"{project} has no names for models of {task}: choose one of {', '.join(others)}"
    )


def identified(kinds: Kinds, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the task, the variant and the architecture in its metadata.

    What it does not state itself is read off the names and shapes of its parameters.

    Raises:
        UserError: it holds no model of these kinds.
    """
    task = task_of(kinds, checkpoint)
    stated = {"task": task, **checkpoint.stated}
    if "variant" not in stated:
        kind = kinds[task]
        shapes = {name: array.shape for name, array in checkpoint.tensors.items()}
        recognized = kind.recognize(shapes)
        if not recognized.exact:
            raise UserError(
                f"{checkpoint.path} is no model of {task} that is known here ({recognized.seen})"
            )
        classes = kind.count_classes(shapes)
        channels = shapes[kind.stem][1] if kind.stem in shapes else 3
        stated |= kind.architecture(recognized.variant, classes, channels, shapes)
        stated["variant"] = recognized.variant
    return replace(checkpoint, metadata=stated)


def task_of(kinds: Kinds, checkpoint: Checkpoint) -> str:
    """What the model in a checkpoint is for: as it states, else by the names of its parameters.

    Raises:
        UserError: it holds no model of these kinds.
    """
    stated = checkpoint.stated.get("task", "")
    if stated in kinds:
        return stated
    for task, kind in kinds.items():
        if kind.owns(checkpoint.tensors):
            return task
    raise UserError(
        f"{checkpoint.path} holds no model of {' or '.join(kinds)} in the names of this project "
        f"(its first tensor is {next(iter(checkpoint.tensors))}): one of another project's has to "
        "be converted first, with mindtwins convert"
    )
