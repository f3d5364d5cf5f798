"""Tables of names: how other projects call the parameters of a Twins model, and how this one does.

A table is a list of rules, read forwards when converting from PyTorch and backwards when going
back. In names `{i}` stands for a stage or a level, `{j}` for a block or a layer and `{p}` for
"weight" or "bias".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

from mindtwins.errors import UserError
from mindtwins.models.twins import Dialect


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
class Layout:
    """One project's names for the models of one task.

    Attributes:
        project: whose names these are.
        task: "classification" or "segmentation".
        table: the rules.
        dialect: what that project's models compute with these weights.
        ignored: pairs (regular expression of their names, reason to leave those tensors out).
    """

    project: str
    task: str
    table: tuple[Rule, ...]
    dialect: Dialect
    ignored: tuple[tuple[str, str], ...] = ()

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


def _layer(theirs: str, ours: str = "", beside: str = "") -> tuple[Rule, ...]:
    """A linear layer or convolution; without `ours` it has the same name here."""
    return (Rule(f"{theirs}.{{p}}", (f"{ours or theirs}.{{p}}",), beside),)


def _norm(theirs: str, ours: str = "") -> tuple[Rule, ...]:
    """A layer norm, whose parameters MindSpore calls gamma and beta."""
    ours = ours or theirs
    return (
        Rule(f"{theirs}.weight", (f"{ours}.gamma",)),
        Rule(f"{theirs}.bias", (f"{ours}.beta",)),
    )


def _unit(convolution: str, norm: str, ours: str) -> tuple[Rule, ...]:
    """A convolution without bias and the batch norm behind it."""
    return (
        Rule(f"{convolution}.weight", (f"{ours}.conv.weight",)),
        *_norm(norm, f"{ours}.bn"),
        Rule(f"{norm}.running_mean", (f"{ours}.bn.moving_mean",)),
        Rule(f"{norm}.running_var", (f"{ours}.bn.moving_variance",)),
    )


def _under(theirs: str, ours: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule.under(theirs, ours) for rule in rules)


_OFFICIAL_BLOCK = (
    *_norm("norm1"),
    *_layer("attn.qkv"),
    *_layer("attn.q"),
    *_layer("attn.kv"),
    *_layer("attn.proj"),
    *_layer("attn.sr"),
    *_norm("attn.norm"),
    *_norm("norm2"),
    *_layer("mlp.fc1"),
    *_layer("mlp.fc2"),
)
_OFFICIAL_BACKBONE = (
    *_layer("patch_embeds.{i}.proj"),
    *_norm("patch_embeds.{i}.norm"),
    *_under("blocks.{i}.{j}.", "blocks.{i}.{j}.", _OFFICIAL_BLOCK),
    *_layer("pos_block.{i}.proj.0"),
)
_MMSEGMENTATION_BLOCK = (
    *_norm("norm1"),
    # A global block's attention is torch's nn.MultiheadAttention, a local one's is not.
    *_layer("attn.qkv"),
    Rule("attn.attn.in_proj_{p}", ("attn.q.{p}", "attn.kv.{p}")),
    *_layer("attn.attn.out_proj", "attn.proj", beside="attn.q.{p}"),
    *_layer("attn.proj", beside="attn.qkv.{p}"),
    *_layer("attn.sr"),
    *_norm("attn.norm"),
    *_norm("norm2"),
    *_layer("ffn.layers.0.0", "mlp.fc1"),
    *_layer("ffn.layers.1", "mlp.fc2"),
)
_MMSEGMENTATION_BACKBONE = (
    *_layer("patch_embeds.{i}.projection", "patch_embeds.{i}.proj"),
    *_norm("patch_embeds.{i}.norm"),
    *_under("layers.{i}.{j}.", "blocks.{i}.{j}.", _MMSEGMENTATION_BLOCK),
    *_layer("position_encodings.{i}.proj", "pos_block.{i}.proj.0"),
)
_STAGE_NORMS = _norm("norm_list.{i}")


def _mmsegmentation_unit(theirs: str) -> tuple[Rule, ...]:
    return _unit(f"{theirs}.conv", f"{theirs}.bn", theirs)


_MMSEGMENTATION_HEADS = (
    *_layer("neck.lateral_convs.{i}.conv"),
    *_layer("neck.fpn_convs.{i}.conv"),
    *_mmsegmentation_unit("decode_head.scale_heads.{i}.{j}"),
    *_mmsegmentation_unit("decode_head.psp_modules.{i}.1"),
    *_mmsegmentation_unit("decode_head.bottleneck"),
    *_mmsegmentation_unit("decode_head.lateral_convs.{i}"),
    *_mmsegmentation_unit("decode_head.fpn_convs.{i}"),
    *_mmsegmentation_unit("decode_head.fpn_bottleneck"),
    *_layer("decode_head.conv_seg"),
    *_mmsegmentation_unit("auxiliary_head.convs.{i}"),
    *_layer("auxiliary_head.conv_seg"),
)
_SSSEGMENTATION_HEADS = (
    *_unit("ppm_net.branches.{i}.1", "ppm_net.branches.{i}.2", "decode_head.psp_modules.{i}.1"),
    *_unit("ppm_net.bottleneck.0", "ppm_net.bottleneck.1", "decode_head.bottleneck"),
    *_unit("lateral_convs.{i}.0", "lateral_convs.{i}.1", "decode_head.lateral_convs.{i}"),
    *_unit("fpn_convs.{i}.0", "fpn_convs.{i}.1", "decode_head.fpn_convs.{i}"),
    *_unit("decoder.0", "decoder.1", "decode_head.fpn_bottleneck"),
    *_layer("decoder.4", "decode_head.conv_seg"),
    *_unit("auxiliary_decoder.0", "auxiliary_decoder.1", "auxiliary_head.convs.0"),
    *_layer("auxiliary_decoder.4", "auxiliary_head.conv_seg"),
)

_BUFFERS = ((r".*\.num_batches_tracked", "a counter of batch norms, not a weight"),)
_CLASSIFIER = (
    (r"backbone\.(norm|head)\.(weight|bias)", "of the classifier, which segmentation does not use"),
)

_OFFICIAL_SEGMENTATION = Dialect("mask", "floor", block_epsilon=1e-6, embed_epsilon=1e-5)
_MMSEGMENTATION = Dialect("mask", "ceil", block_epsilon=1e-5, embed_epsilon=1e-5)

_OFFICIAL = Layout(
    "official",
    "classification",
    (*_OFFICIAL_BACKBONE, *_norm("norm"), *_layer("head")),
    Dialect(),
    _BUFFERS,
)
LAYOUTS = (
    _OFFICIAL,
    # timm kept the official classification code's names.
    replace(_OFFICIAL, project="timm"),
    # What MMSegmentation's twins2mmseg makes of an official classification checkpoint: its
    # backbone and the norm behind it, without the head.
    Layout(
        "mmsegmentation",
        "classification",
        (*_MMSEGMENTATION_BACKBONE, *_norm("norm")),
        Dialect(),
        _BUFFERS,
    ),
    Layout(
        "mmsegmentation",
        "segmentation",
        (
            *_under("backbone.", "backbone.", (*_MMSEGMENTATION_BACKBONE, *_STAGE_NORMS)),
            *_MMSEGMENTATION_HEADS,
        ),
        _MMSEGMENTATION,
        _BUFFERS,
    ),
    Layout(
        "sssegmentation",
        "segmentation",
        (
            *_under("backbone_net.", "backbone.", (*_MMSEGMENTATION_BACKBONE, *_STAGE_NORMS)),
            *_SSSEGMENTATION_HEADS,
        ),
        _MMSEGMENTATION,
        _BUFFERS,
    ),
    # The official segmentation code is built on MMSegmentation 0.x.
    Layout(
        "official",
        "segmentation",
        (
            *_under("backbone.", "backbone.", (*_OFFICIAL_BACKBONE, *_STAGE_NORMS)),
            *_MMSEGMENTATION_HEADS,
        ),
        _OFFICIAL_SEGMENTATION,
        (*_BUFFERS, *_CLASSIFIER),
    ),
)
PROJECTS = tuple(dict.fromkeys(layout.project for layout in LAYOUTS))


def find_layout(project: str, task: str) -> Layout:
    """A project's names for the models of a task.

    Raises:
        UserError: it has none.
    """
    for layout in LAYOUTS:
        if (layout.project, layout.task) == (project, task):
            return layout
    others = [layout.project for layout in LAYOUTS if layout.task == task]
    raise UserError(
        f"{project} has no names for models of {task}: choose one of {', '.join(others)}"
    )


def recognize_layout(names: Collection[str]) -> Layout:
    """The layout that has a place for most of these names of theirs."""
    return max(LAYOUTS, key=lambda layout: sum(bool(layout.to_ours(name)) for name in names))
