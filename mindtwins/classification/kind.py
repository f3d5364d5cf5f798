"""What a conversion has to know of classifiers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.classification.imagenet import imagenet_words
from mindtwins.classification.layouts import LAYOUTS
from mindtwins.classification.task import Classification
from mindtwins.conversion.kinds import Shapes, first_axis
from mindtwins.conversion.openmmlab import TestRecipe, are_numbers
from mindtwins.conversion.recognize import Recognition, recognize
from mindtwins.models.twins import ClassifierOutputs
from mindtwins.models.variants import create_model, parameter_shapes, resolve_name
from mindtwins.training.recorded import defaults, describe_use


class ClassifierKind:
    """See `mindtwins.conversion.kinds.ModelKind`."""

    layouts = LAYOUTS
    head = ("head.weight", "head.bias")
    stem = "patch_embeds.0.proj.weight"
    architecture_keys = ("num_classes", "in_channels")
    default_classes = 1000
    published_on = "ImageNet-1k"
    fewest_classes = 0
    verified_size = (224, 224)
    keeps_dialect = False
    pipeline = "image-classification"
    example = "logits = model(images)  # of pictures prepared by model.preprocessing"

    def owns(self, names: Collection[str]) -> bool:
        return self.stem in names and any(name.startswith("blocks.") for name in names)

    def recognize(self, seen: Shapes) -> Recognition:
        return recognize(seen)

    def resolve(self, name: str) -> str:
        return resolve_name(name)

    def count_classes(self, seen: Shapes) -> int:
        return first_axis(seen, self.head)

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        return parameter_shapes(name, num_classes, in_channels)

    def architecture(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        return {"num_classes": num_classes, "in_channels": in_channels}

    def use(self, architecture: Mapping) -> dict:
        """As ImageNet-1k's where there are as many classes, which the published weights have."""
        synsets = tuple(imagenet_words())
        return describe_use(
            synsets if architecture["num_classes"] == len(synsets) else None,
            "bicubic",
            defaults(Classification.preprocessing_options),
            defaults(Classification.data_options),
        )

    def as_tested(self, recipe: TestRecipe) -> tuple[dict, list[str]]:
        """Of MMPretrain: the short side is resized, and the middle cut out."""
        options = dict(recipe.preprocessing)
        resize, crop = recipe.step("ResizeEdge", "Resize"), recipe.step("CenterCrop")
        unlike = list(recipe.unlike)
        sizes = [resize.get("scale") or resize.get("size"), crop.get("crop_size")]
        short, size = sizes
        if are_numbers(short) and (len(short) == 1 or short[1:] == [-1]):
            short = short[0]  # of the short side; two numbers would squash the picture
        if are_numbers(size) and min(size) == max(size):
            size = size[0]
        is_short = resize.get("edge", "short") == "short"
        if is_short and isinstance(short, int) and isinstance(size, int) and 0 < size <= short:
            options |= {"image_size": size, "crop_pct": round(size / short, 4)}
        elif resize or crop:
            unlike.append(f"pictures are resized to {sizes[0]} and cropped to {sizes[1]}")
        interpolation = resize.get("interpolation", "bilinear" if resize else "bicubic")
        if interpolation != "bicubic":
            unlike.append(f"pictures are resized {interpolation}")
        return options, unlike

    def create(self, checkpoint: Checkpoint) -> nn.Cell:
        stated = checkpoint.stated
        architecture = {key: stated[key] for key in self.architecture_keys}
        return create_model(stated["variant"], ckpt_path=checkpoint, **architecture)

    def palette(self, classes: int) -> list[list[int]]:
        return []

    def outputs(self, checkpoint: Checkpoint) -> nn.Cell:
        return ClassifierOutputs(self.create(checkpoint))
