"""Tables of names: how other projects call the parameters of a Twins model, and how this one does.

A table is a list of rules, read forwards when converting from PyTorch and backwards when going
back. In names `{i}` stands for a stage or a level, `{j}` for a block or a layer and `{p}` for
"weight" or "bias".

Here are the rules, and the tables of backbones, which all tasks share; each task's folder has the
layouts of its models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from mindtwins.models.twins import Dialect

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

# What torch keeps beside the weights: pairs of an expression and a reason, see `Layout.ignored`.
BUFFERS = ((r".*\.num_batches_tracked", "a counter of batch norms, not a weight"),)


@dataclass(frozen=True)
class Rule:
    """A tensor of theirs and what it is here.

    Attributes:
        theirs: its name there.
        ours: names here; if there are several, the tensor is these stacked along the first axis.
        beside: on the way back, a parameter that has to be there too for the rule to hold. It
            tells apart what we call alike and they do not.
    """

    theirs: str
    ours: tuple[str, ...]
    beside: str = ""

    def under(self, theirs: str, ours: str) -> Rule:
        """The same within other modules."""
        beside = f"{ours}{self.beside}" if self.beside else ""
        return Rule(f"{theirs}{self.theirs}", tuple(f"{ours}{name}" for name in self.ours), beside)


@dataclass(frozen=True)
class ReferenceModel:
    """The plain PyTorch model that verifies a layout.

    It has its own idea of epsilons and padding, not the file's: these are part of what is verified.
    Functions are named as "module:function", since they import torch, which only verification does.

    Attributes:
        create: (variant, **architecture) -> the model.
        options: further arguments of `create`.
        rename: a state dict of the project's -> the same under the reference's names; "" where it
            has the project's.
    """

    create: str
    options: Mapping[str, object] = field(default_factory=dict)
    rename: str = ""

    def build(self, variant: str, architecture: Mapping[str, object]) -> torch.nn.Module:
        """The reference of a variant; `architecture` as in a checkpoint's metadata."""
        return _function(self.create)(variant, **architecture, **self.options)

    def renamed(self, state: dict[str, Value]) -> dict[str, Value]:
        """A state dict of the project's under the names of the reference."""
        return _function(self.rename)(state) if self.rename else state


def _function(path: str) -> Callable:
    module, name = path.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Layout:
    """One project's names for the models of one task.

    Attributes:
        project: whose names these are.
        task: what the models are for.
        table: the rules.
        dialect: what that project's models compute with these weights.
        reference: verifies files with these names.
        ignored: pairs (regular expression of their names, reason to leave those tensors out).
        dialects: what they compute where that depends on the family, by family.
        container: the key under which that project's code looks for the state dict; "" for none.
        optional: pairs (how our names begin, reason), of what the way back leaves out unless the
            weights came with it.
        by_order: for a project whose names differ from file to file: from a file's names and
            shapes, in its order, to our names; none if the file is not the project's. There is no
            way back then, and the table has the names that a converted file gets instead.
        remarks: what to tell with each conversion, a sentence each.
    """

    project: str
    task: str
    table: tuple[Rule, ...]
    dialect: Dialect
    reference: ReferenceModel
    ignored: tuple[tuple[str, str], ...] = BUFFERS
    dialects: Mapping[str, Dialect] = field(default_factory=dict)
    container: str = ""
    optional: tuple[tuple[str, str], ...] = ()
    by_order: Callable[[Mapping[str, tuple[int, ...]]], dict[str, str]] | None = None
    remarks: tuple[str, ...] = ()

    def to_ours(self, name: str) -> tuple[str, ...]:
        """Our names for what their tensor holds; none if the table has none."""
        for pattern, rule in self._forwards:
            if match := pattern.fullmatch(name):
                return tuple(ours.format(**match.groupdict()) for ours in rule.ours)
        return ()

    def to_theirs(self, name: str, names: Collection[str]) -> str | None:
        """Their name for the tensor that holds ours, among all of ours; None if there is none."""
        for pattern, rule in self._backwards:
            if match := pattern.fullmatch(name):
                indices = match.groupdict()
                if not rule.beside or rule.beside.format(**indices) in names:
                    return rule.theirs.format(**indices)
        return None

    def reason_to_ignore(self, name: str) -> str | None:
        """Why a tensor of theirs has no place in a model; None if it is not known to have none."""
        return next((why for pattern, why in self.ignored if re.fullmatch(pattern, name)), None)

    def dialect_of(self, variant: str) -> Dialect:
        """What a model of theirs computes with its weights."""
        families = (d for family, d in self.dialects.items() if family in variant.split("_"))
        return next(families, self.dialect)

    @cached_property
    def _forwards(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(rule.theirs), rule) for rule in self.table]

    @cached_property
    def _backwards(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(ours), rule) for rule in self.table for ours in rule.ours]


def _pattern(template: str) -> re.Pattern:
    """`a.{i}.{p}` -> the expression `a\\.(?P<i>\\d+)\\.(?P<p>weight|bias)`."""
    groups = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{p}": "(?P<p>weight|bias)"}
    pattern = re.escape(template)
    for placeholder, group in groups.items():
        pattern = pattern.replace(re.escape(placeholder), group)
    return re.compile(pattern)


def layer(theirs: str, ours: str = "", beside: str = "") -> tuple[Rule, ...]:
    """A linear layer or convolution; without `ours` it has the same name here."""
    return (Rule(f"{theirs}.{{p}}", (f"{ours or theirs}.{{p}}",), beside),)


def norm(theirs: str, ours: str = "") -> tuple[Rule, ...]:
    """A layer norm, whose parameters MindSpore calls gamma and beta."""
    ours = ours or theirs
    return (
        Rule(f"{theirs}.weight", (f"{ours}.gamma",)),
        Rule(f"{theirs}.bias", (f"{ours}.beta",)),
    )


def unit(convolution: str, batch_norm: str, ours: str) -> tuple[Rule, ...]:
    """A convolution without bias and the batch norm behind it."""
    return (
        Rule(f"{convolution}.weight", (f"{ours}.conv.weight",)),
        *norm(batch_norm, f"{ours}.bn"),
        Rule(f"{batch_norm}.running_mean", (f"{ours}.bn.moving_mean",)),
        Rule(f"{batch_norm}.running_var", (f"{ours}.bn.moving_variance",)),
    )


def under(theirs: str, ours: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule.under(theirs, ours) for rule in rules)


_OFFICIAL_BLOCK = (
    *norm("norm1"),
    *layer("attn.qkv"),
    *layer("attn.q"),
    *layer("attn.kv"),
    *layer("attn.proj"),
    *layer("attn.sr"),
    *norm("attn.norm"),
    *norm("norm2"),
    *layer("mlp.fc1"),
    *layer("mlp.fc2"),
)
OFFICIAL_BACKBONE = (
    *layer("patch_embeds.{i}.proj"),
    *norm("patch_embeds.{i}.norm"),
    *under("blocks.{i}.{j}.", "blocks.{i}.{j}.", _OFFICIAL_BLOCK),
    *layer("pos_block.{i}.proj.0"),
)
_MMSEGMENTATION_BLOCK = (
    *norm("norm1"),
    # A global block's attention is torch's nn.MultiheadAttention, a local one's is not.
    *layer("attn.qkv"),
    Rule("attn.attn.in_proj_{p}", ("attn.q.{p}", "attn.kv.{p}")),
    *layer("attn.attn.out_proj", "attn.proj", beside="attn.q.{p}"),
    *layer("attn.proj", beside="attn.qkv.{p}"),
    *layer("attn.sr"),
    *norm("attn.norm"),
    *norm("norm2"),
    *layer("ffn.layers.0.0", "mlp.fc1"),
    *layer("ffn.layers.1", "mlp.fc2"),
)
MMSEGMENTATION_BACKBONE = (
    *layer("patch_embeds.{i}.projection", "patch_embeds.{i}.proj"),
    *norm("patch_embeds.{i}.norm"),
    *under("layers.{i}.{j}.", "blocks.{i}.{j}.", _MMSEGMENTATION_BLOCK),
    *layer("position_encodings.{i}.proj", "pos_block.{i}.proj.0"),
)
_MMPRETRAIN_BLOCK = (
    # Attention as in the official code, the rest as in MMSegmentation.
    *(rule for rule in _OFFICIAL_BLOCK if not rule.theirs.startswith("mlp.")),
    *layer("ffn.layers.0.0", "mlp.fc1"),
    *layer("ffn.layers.1", "mlp.fc2"),
)
MMPRETRAIN_BACKBONE = (
    *layer("patch_embeds.{i}.projection", "patch_embeds.{i}.proj"),
    *norm("patch_embeds.{i}.norm"),
    *under("stages.{i}.{j}.", "blocks.{i}.{j}.", _MMPRETRAIN_BLOCK),
    *layer("position_encodings.{i}.proj", "pos_block.{i}.proj.0"),
)
