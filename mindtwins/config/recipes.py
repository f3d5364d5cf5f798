"""Finding a recipe: a file of the user's, or one of those that come with MindTwins."""

from __future__ import annotations

from pathlib import Path

from mindtwins.cli import nearest
from mindtwins.console import tell
from mindtwins.errors import UserError

PACKAGE = Path(__file__).parents[1]
# In the package where it is installed; beside it in a checkout.
BUNDLED = next(
    (place for place in (PACKAGE / "configs", PACKAGE.parent / "configs") if place.is_dir()),
    PACKAGE / "configs",
)


def find_recipe(name: str, beside: Path) -> Path:
    """The YAML file that is meant by `name`, as seen from the folder `beside`.

    A file that exists wins. Otherwise NAME means the one that comes with MindTwins, and so do
    NAME.yaml and configs/NAME.yaml, which might also be meant as files: then it is told.

    Raises:
        UserError: there is neither.
    """
    path = beside / name
    if path.is_file():
        return path
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    if "/" in stem:
        raise UserError(f"{path}: no such configuration file")
    recipes = {file.stem: file for file in sorted(BUNDLED.glob("*.yaml"))}
    if stem not in recipes:
        raise UserError(
            f"{path}: no such configuration file, and no recipe {nearest(stem, list(recipes))}"
        )
    if name != stem:
        tell(f"{path} does not exist: the recipe {stem} that comes with MindTwins is taken")
    return recipes[stem]
