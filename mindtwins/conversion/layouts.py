"""Tables of names: how other projects call the parameters of a Twins model, and how this one does.

A table is a list of pairs (their name, our name), read forwards when converting from PyTorch and
backwards when going back. `{i}` stands for a stage, `{j}` for a block and `{p}` for a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        name: of the project.
        table: pairs of templates (their name, our name).
        ignored: pairs (regular expression of their names, reason to leave those tensors out).
    """

    name: str
    table: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...] = ()

    def to_ours(self, name: str) -> str | None:
        """Our name for theirs; None if the table has none."""
        return _translate(name, self._forwards)

    def to_theirs(self, name: str) -> str | None:
        """Their name for ours; None if the table has none."""
        return _translate(name, self._backwards)

    def reason_to_ignore(self, name: str) -> str | None:
        """Why a tensor of theirs has no place in a model; None if it is not known to have none."""
        return next((why for pattern, why in self.ignored if re.fullmatch(pattern, name)), None)

    @cached_property
    def _forwards(self) -> list[tuple[re.Pattern, str]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.table]

    @cached_property
    def _backwards(self) -> list[tuple[re.Pattern, str]]:
        return [(_pattern(ours), theirs) for theirs, ours in self.table]


def _pattern(template: str) -> re.Pattern:
    """`a.{i}.{p}` -> the expression `a\\.(?P<i>\\d+)\\.(?P<p>[a-z]+)`."""
    groups = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{p}": "(?P<p>weight|bias)"}
    pattern = re.escape(template)
    for placeholder, group in groups.items():
        pattern = pattern.replace(re.escape(placeholder), group)
    return re.compile(pattern)


def _translate(name: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            return template.format(**match.groupdict())
    return None


def _norm(name: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a layer norm, whose parameters MindSpore calls gamma and beta."""
    return (f"{name}.weight", f"{name}.gamma"), (f"{name}.bias", f"{name}.beta")


def _same(name: str) -> tuple[tuple[str, str], ...]:
    """The pair of a layer whose parameters have the same names on both sides."""
    return ((f"{name}.{{p}}", f"{name}.{{p}}"),)


_CLASSIFICATION = (
    *_same("patch_embeds.{i}.proj"),
    *_norm("patch_embeds.{i}.norm"),
    *_norm("blocks.{i}.{j}.norm1"),
    *_same("blocks.{i}.{j}.attn.qkv"),
    *_same("blocks.{i}.{j}.attn.q"),
    *_same("blocks.{i}.{j}.attn.kv"),
    *_same("blocks.{i}.{j}.attn.proj"),
    *_same("blocks.{i}.{j}.attn.sr"),
    *_norm("blocks.{i}.{j}.attn.norm"),
    *_norm("blocks.{i}.{j}.norm2"),
    *_same("blocks.{i}.{j}.mlp.fc1"),
    *_same("blocks.{i}.{j}.mlp.fc2"),
    *_same("pos_block.{i}.proj.0"),
    *_norm("norm"),
    *_same("head"),
)
_BUFFERS = ((r".*\.num_batches_tracked", "a counter of batch norms, not a weight"),)

# timm kept the official classification code's names.
LAYOUTS = {
    "official": Layout("official", _CLASSIFICATION, _BUFFERS),
    "timm": Layout("timm", _CLASSIFICATION, _BUFFERS),
}
