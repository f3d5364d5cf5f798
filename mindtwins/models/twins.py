"""Twins: PCPVT and SVT (Chu et al. 2021, "Twins: Revisiting the Design of Spatial Attention in
Vision Transformers", https://arxiv.org/abs/2104.13840).

Read it beside the paper: patch embedding and conditional position encoding (section 3.1), locally
grouped and global sub-sampled attention (section 3.2), the four stages (tables 1 and 2). Names of
cells and parameters are those of the official PyTorch code, so that its checkpoints fit.

Tokens are channels-last maps (B, H, W, C) throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindtwins.errors import UserError
from mindtwins.layers import (
    CrossAttention,
    Dense,
    DenseGELU,
    DepthwiseConv3x3,
    LayerNorm,
    PatchConv,
    WindowAttention,
    add_branch,
    add_global_attention,
    add_mlp,
    add_mlp_to_learn,
    add_subsampled_attention,
    add_window_attention,
    can_join,
    channels_first,
    channels_last,
    crop_top_left,
    decided_in_python,
    draw_drop_path_mask,
    pad_bottom_right,
)

PATCH_SIZES = (4, 2, 2, 2)
WINDOW = 7
MINIMUM_SIZE = 32  # the product of the patch sizes: below, the last stage has no token
WINDOW_PADDINGS = ("none", "zeros", "mask")
PATCH_ROUNDINGS = ("floor", "ceil")


@dataclass(frozen=True)
class Dialect:
    """In what the published implementations of one architecture differ.

    Attributes:
        window_padding: what happens to a map that is no multiple of the attention window.
            "none": an error (official classification code). "zeros": padded with zeros at the
            bottom and the right, padded tokens attended to (timm, official detection). "mask": as
            zeros, with -1000 between real and padded tokens (official segmentation,
            MMSegmentation), quirk included: see `padding_mask`.
        patch_rounding: "floor" drops rows and columns that fill no patch (official, timm); "ceil"
            pads them with zeros to a whole one (MMSegmentation).
        block_epsilon: of the norms before attention and MLP, after a stage, and of the final norm.
        embed_epsilon: of the norms after the patch embedding and after the sub-sampling.
        sr_epsilon: of those after the sub-sampling where it is another (MMPretrain's PCPVT).
    """

    window_padding: str = "zeros"
    patch_rounding: str = "floor"
    block_epsilon: float = 1e-6
    embed_epsilon: float = 1e-5
    sr_epsilon: float | None = None

    def __post_init__(self) -> None:
        for field, choices in (
            ("window_padding", WINDOW_PADDINGS),
            ("patch_rounding", PATCH_ROUNDINGS),
        ):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(choices)}"
                )


class PatchEmbedding(nn.Cell):
    """Patches of `patch_size` x `patch_size` projected to `channels`, then normalized."""

    def __init__(
        self, in_channels: int, channels: int, patch_size: int, rounding: str, epsilon: float
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pads_to_whole_patch = rounding == "ceil"
        self.proj = PatchConv(in_channels, channels, patch_size)
        self.norm = LayerNorm(channels, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        if self.pads_to_whole_patch:
            x = pad_bottom_right(x, -x.shape[1] % self.patch_size, -x.shape[2] % self.patch_size)
        return self.norm(self.proj(x))

    def size_of(self, side: int) -> int:
        """How many patches a side of so many pixels has."""
        if self.pads_to_whole_patch:
            side += -side % self.patch_size
        return side // self.patch_size


class PositionEncoding(nn.Cell):
    """PEG, the position encoding generator: a depthwise 3x3 convolution plus identity.

    Chu et al. 2021, "Conditional Positional Encodings for Vision Transformers". One in each
    stage, after its first block (Twins, section 3.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.CellList([DepthwiseConv3x3(channels)])

    def construct(self, x: Tensor) -> Tensor:
        return self.proj[0](x) + x


class GlobalSubsampledAttention(nn.Cell):
    """GSA: every token attends to a map sub-sampled by `sr_ratio` (section 3.2).

    The map is summarized by a convolution with kernel = stride = sr_ratio and a norm; with
    sr_ratio 1 this is plain attention.
    """

    def __init__(self, channels: int, heads: int, sr_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.channels = channels
        self.heads = heads
        self.subsamples = sr_ratio > 1
        self.q = Dense(channels, channels)
        self.kv = Dense(channels, 2 * channels)
        self.attend = CrossAttention(heads)
        self.proj = Dense(channels, channels)
        if self.subsamples:
            self.sr = PatchConv(channels, channels, sr_ratio)
            self.norm = LayerNorm(channels, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        summary = self.norm(self.sr(x)) if self.subsamples else x
        return self.proj(self.attend(self.q(x), self.kv(summary)))

    def joined_cells(self) -> dict[nn.Cell, type[nn.Cell]]:
        """The cells that `add_to` stands for."""
        dense, reduction = dict.fromkeys((self.q, self.kv, self.proj), Dense), {}
        if self.subsamples:
            reduction = {self.sr: PatchConv, self.norm: LayerNorm}
        return {self.attend: CrossAttention, **dense, **reduction}

    def add_to(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """`x + self(norm(x))` as one operation."""
        cells = (norm, self.q, self.kv, self.attend, self.proj)
        if self.subsamples:
            return add_subsampled_attention(x, *cells, self.sr, self.norm)
        return add_global_attention(x, *cells)


_NO_WHOLE_WINDOWS = (
    f"a {{}} x {{}} map is no multiple of the {WINDOW} x {WINDOW} window: choose another input "
    "size, or window_padding 'zeros' or 'mask'"
)


class LocallyGroupedAttention(nn.Cell):
    """LSA: tokens attend within their 7 x 7 window (section 3.2)."""

    def __init__(self, channels: int, heads: int, padding: str) -> None:
        super().__init__()
        self.channels = channels
        self.heads = heads
        self.padding = padding
        self.qkv = Dense(channels, 3 * channels)
        self.attend = WindowAttention(heads, WINDOW)
        self.proj = Dense(channels, channels)

    def extend_repr(self) -> str:
        return f"padding={self.padding}"

    def construct(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        mask = self.mask_of(height, width)
        # Padding comes before the projection: a padded token's query, key and value are the bias.
        x = pad_bottom_right(x, -height % WINDOW, -width % WINDOW)
        out = self.attend(self.qkv(x), mask)
        return self.proj(crop_top_left(out, height, width))

    def mask_of(self, height: int, width: int) -> Tensor | None:
        """What is added to the scores of the windows of such a map.

        Raises:
            ValueError: it is no multiple of the window and may not be padded.
        """
        bottom, right = -height % WINDOW, -width % WINDOW
        if self.padding == "none" and bottom + right > 0:
            raise ValueError(_NO_WHOLE_WINDOWS.format(height, width))
        if self.padding == "mask":
            return _mask(height + bottom, width + right, bottom, right)
        return None

    def joined_cells(self) -> dict[nn.Cell, type[nn.Cell]]:
        """The cells that `add_to` stands for."""
        return {self.qkv: Dense, self.attend: WindowAttention, self.proj: Dense}

    def add_to(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """`x + self(norm(x))` as one operation."""
        mask = self.mask_of(x.shape[1], x.shape[2])
        return add_window_attention(x, norm, self.qkv, self.attend, self.proj, mask)


def padding_mask(rows: int, columns: int, bottom: int, right: int) -> np.ndarray:
    """Scores to add so that real and padded tokens of a window ignore each other.

    The reference marks the padded rows as `[-bottom:]` and the columns as `[-right:]`. With a pad
    of 0 that slice is everything, so when only one axis is padded all tokens look alike and
    nothing is masked. The weights were trained and scored that way, so it is kept.

    Args:
        rows, columns: size of the padded map.
        bottom, right: how many of its rows and columns are padding.

    Returns:
        (1, windows, 1, 49, 49) float32 of 0 and -1000.
    """
    padded = np.zeros((rows, columns), bool)
    padded[-bottom:, :] = True
    padded[:, -right:] = True
    windows = padded.reshape(rows // WINDOW, WINDOW, columns // WINDOW, WINDOW)
    windows = windows.transpose(0, 2, 1, 3).reshape(1, -1, 1, WINDOW * WINDOW)
    differ = windows[..., :, None] != windows[..., None, :]
    return np.where(differ, np.float32(-1000), np.float32(0))


@ops.constexpr
def _mask(rows: int, columns: int, bottom: int, right: int) -> Tensor | None:
    """The mask as a constant of the graph; None where it would be zero everywhere."""
    mask = padding_mask(rows, columns, bottom, right)
    return Tensor(mask) if mask.any() else None


class MLP(nn.Cell):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = DenseGELU(channels, hidden)
        self.fc2 = Dense(hidden, channels)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class Block(nn.Cell):
    """Attention and MLP, each on normalized tokens and added to its input (equation 3).

    Blocks that print alike are compiled once ("lazy inline"), which halves the time to build a
    graph; whatever changes a block's computation must therefore be among its arguments or in the
    `extend_repr` of its attention's cells.
    """

    # As they are defined here, whatever stands under these names later.
    _joinable = (LocallyGroupedAttention, GlobalSubsampledAttention, MLP)

    @ms.lazy_inline(policy="front")
    def __init__(self, attention: nn.Cell, channels: int, mlp_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, epsilon)
        self.attn = attention
        self.norm2 = LayerNorm(channels, epsilon)
        self.mlp = MLP(channels, mlp_ratio * channels)

    @decided_in_python
    def joins_attention(self) -> bool:
        """Whether the first branch is one operation: in evaluation, where there is a kernel."""
        if self.training or type(self.attn) not in self._joinable:
            return False
        return can_join(self.attn, {self.norm1: LayerNorm, **self.attn.joined_cells()})

    @decided_in_python
    def joins_mlp(self) -> bool:
        """Whether the second branch is one operation: where there is a kernel."""
        mlp = self.mlp
        if type(mlp) not in self._joinable:
            return False
        return can_join(mlp, {self.norm2: LayerNorm, mlp.fc1: DenseGELU, mlp.fc2: Dense})

    def construct(
        self, x: Tensor, attn_drop_path: Tensor | None, mlp_drop_path: Tensor | None
    ) -> Tensor:
        if self.joins_attention and attn_drop_path is None:
            x = self.attn.add_to(x, self.norm1)
        else:
            x = add_branch(x, self.attn(self.norm1(x)), attn_drop_path)
        if self.joins_mlp and self.training:
            return add_mlp_to_learn(x, self.norm2, self.mlp.fc1, self.mlp.fc2, mlp_drop_path)
        if self.joins_mlp and mlp_drop_path is None:
            return add_mlp(x, self.norm2, self.mlp.fc1, self.mlp.fc2)
        return add_branch(x, self.mlp(self.norm2(x)), mlp_drop_path)


class Backbone(nn.Cell):
    """Four stages: patch embedding, blocks, and the position encoding after the first block.

    Every block of a PCPVT is global; in an SVT blocks alternate, local first (section 3.2).

    Args:
        family: "pcpvt" or "svt".
        embed_dims, num_heads, mlp_ratios, depths, sr_ratios: one value per stage.
        in_channels: of the image.
        drop_path_rate: probability to drop a branch of the last block; it grows linearly from 0.
        dialect: conventions in which implementations differ.
        normalizes_stages: one more norm after each stage, before the next one sees the map, as the
            SVT has it in dense prediction (official detection and segmentation code).
    """

    def __init__(
        self,
        family: str,
        embed_dims: tuple[int, ...],
        num_heads: tuple[int, ...],
        mlp_ratios: tuple[int, ...],
        depths: tuple[int, ...],
        sr_ratios: tuple[int, ...],
        in_channels: int,
        drop_path_rate: float,
        dialect: Dialect,
        normalizes_stages: bool = False,
    ) -> None:
        super().__init__()
        self.depths = depths
        self.dialect = dialect
        self.in_channels = in_channels
        self.normalizes_stages = normalizes_stages
        # One rate per residual branch: two a block.
        rates = np.linspace(0, drop_path_rate, sum(depths)).repeat(2)
        self.drop_path_rates = tuple(rates.tolist())
        self.drops_paths = drop_path_rate > 0
        self.rates = Tensor(rates[:, None], ms.float32)

        def attention(stage: int, index: int) -> nn.Cell:
            channels, heads = embed_dims[stage], num_heads[stage]
            if family == "svt" and index % 2 == 0:
                return LocallyGroupedAttention(channels, heads, dialect.window_padding)
            epsilon = dialect.embed_epsilon if dialect.sr_epsilon is None else dialect.sr_epsilon
            return GlobalSubsampledAttention(channels, heads, sr_ratios[stage], epsilon)

        inputs = (in_channels, *embed_dims)
        self.patch_embeds = nn.CellList(
            [
                PatchEmbedding(
                    inputs[stage], channels, patch, dialect.patch_rounding, dialect.embed_epsilon
                )
                for stage, (channels, patch) in enumerate(zip(embed_dims, PATCH_SIZES, strict=True))
            ]
        )
        self.blocks = nn.CellList(
            [
                nn.CellList(
                    [
                        Block(
                            attention(stage, index),
                            channels,
                            mlp_ratios[stage],
                            dialect.block_epsilon,
                        )
                        for index in range(depths[stage])
                    ]
                )
                for stage, channels in enumerate(embed_dims)
            ]
        )
        self.pos_block = nn.CellList([PositionEncoding(channels) for channels in embed_dims])
        if normalizes_stages:
            self.norm_list = nn.CellList(
                [LayerNorm(channels, dialect.block_epsilon) for channels in embed_dims]
            )

    def stages(self, x: Tensor, drop_path_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) -> the four stages' token maps (N, H_i, W_i, C_i).

        `drop_path_mask`, of shape (2 * blocks, N), holds the factors of `add_branch`; without it
        they are drawn in the graph while training.
        """
        x = channels_last(x)
        if drop_path_mask is None and self.training and self.drops_paths:
            drop_path_mask = draw_drop_path_mask(self.rates, x.shape[0])
        branches = None if drop_path_mask is None else ops.split(drop_path_mask, 1, 0)
        stages: tuple[Tensor, ...] = ()
        branch = 0
        for stage, depth in enumerate(self.depths):
            x = self.patch_embeds[stage](x)
            for index in range(depth):
                if branches is None:
                    x = self.blocks[stage][index](x, None, None)
                else:
                    x = self.blocks[stage][index](x, branches[branch], branches[branch + 1])
                branch += 2
                if index == 0:
                    x = self.pos_block[stage](x)
            if self.normalizes_stages:
                x = self.norm_list[stage](x)
            stages = (*stages, x)
        return stages

    def check_size(self, height: int, width: int) -> None:
        """Raise unless the maps of such images fill the windows that may not be padded.

        Raises:
            UserError: one does not.
        """
        for embedding, blocks in zip(self.patch_embeds, self.blocks, strict=True):
            height, width = embedding.size_of(height), embedding.size_of(width)
            needs_whole = any(getattr(block.attn, "padding", "") == "none" for block in blocks)
            if needs_whole and (height % WINDOW or width % WINDOW):
                raise UserError(_NO_WHOLE_WINDOWS.format(height, width))

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = checked_images(x, self.in_channels)
        if -1 not in x.shape:
            self.check_size(*x.shape[2:])
        return super().__call__(x, *args)


class FeatureExtractor(Backbone):
    """The backbone for dense prediction: images (N, C, H, W) -> four maps (N, C_i, H_i, W_i).

    The maps have strides 4, 8, 16 and 32 and carry no final norm.
    """

    def construct(self, x: Tensor, drop_path_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        return _channels_first(self.stages(x, drop_path_mask))


class Classifier(Backbone):
    """The backbone with a norm, the mean over tokens and a linear head; no class token.

    Images (N, C, H, W) -> logits (N, num_classes), or with num_classes 0 the pooled features
    (N, embed_dims[-1]).
    """

    def __init__(self, num_classes: int, **backbone: Any) -> None:
        super().__init__(**backbone)
        channels = backbone["embed_dims"][-1]
        self.norm = LayerNorm(channels, backbone["dialect"].block_epsilon)
        self.head = Dense(channels, num_classes) if num_classes else nn.Identity()

    def classify(self, tokens: Tensor) -> Tensor:
        """The last stage's tokens (N, H, W, C) -> logits (N, num_classes)."""
        return self.head(self.norm(tokens).mean((1, 2)))

    def construct(self, x: Tensor, drop_path_mask: Tensor | None = None) -> Tensor:
        return self.classify(self.stages(x, drop_path_mask)[-1])


class ClassifierOutputs(nn.Cell):
    """A classifier that shows its stage maps (N, C_i, H_i, W_i) too: four maps, then the logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the classifier's names
        self.classifier = classifier

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        stages = self.classifier.stages(x)
        return (*_channels_first(stages), self.classifier.classify(stages[-1]))


def _channels_first(stages: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    maps: tuple[Tensor, ...] = ()
    for tokens in stages:
        maps = (*maps, channels_first(tokens))
    return maps


def checked_images(x: Tensor, channels: int) -> Tensor:
    """The images `x` as float32, if a model with `channels` input channels takes them.

    How precisely it computes is the model's affair (`set_precision`), not the images'.

    Raises:
        TypeError: not a tensor of float32 or float16.
        ValueError: not (N, channels, H, W), or a side below 32 pixels.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"images must be a mindspore.Tensor, not {type(x).__name__}")
    if x.dtype not in (ms.float32, ms.float16):
        raise TypeError(f"images must be float32 or float16, not {str(x.dtype).lower()}")
    if x.ndim != 4:
        raise ValueError(f"images must have 4 dimensions (N, C, H, W), not shape {x.shape}")
    if x.shape[1] != channels:
        raise ValueError(
            f"images must have {channels} channels in dimension 1 (N, C, H, W), not shape {x.shape}"
        )
    # A dimension that is only known when the graph runs is -1.
    if any(0 <= side < MINIMUM_SIZE for side in x.shape[2:]):
        raise ValueError(f"images must be at least 32 x 32 pixels, not {x.shape[2]} x {x.shape[3]}")
    return x if x.dtype == ms.float32 else ops.cast(x, ms.float32)
