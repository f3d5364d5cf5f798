"""The classes of ImageNet-1k: a class is called as its folder is, and shown in words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files


@cache
def imagenet_words() -> Mapping[str, str]:
    """Synset ("n02123045") to words ("tabby, tabby cat") of the 1000 classes, by their number."""
    text = files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def in_words(name: str) -> str:
    """A class's name for people: a synset of ImageNet-1k as its words, any other as it is."""
    return imagenet_words().get(name, name)
