"""Semantic FPN and UPerNet on Twins in plain PyTorch, written from MMSegmentation's definition.

It shares no code with `mindtwins.segmentation`: maps are (N, C, H, W), and global attention is
torch's own `nn.MultiheadAttention`. State-dict keys are MMSegmentation's, to the letter.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindtwins.reference.twins import _SR_RATIOS, _TABLE, LSA, TwinsReference

# Twins alone is published on 150 classes with these widths; those of svt_tiny are ours.
_WIDTHS = {"fpn": (128, 0), "upernet": (512, 256)}
_TINY_WIDTHS = {"fpn": (64, 0), "upernet": (64, 32)}


class PatchEmbed(nn.Module):
    def __init__(self, inputs: int, dim: int, patch: int, rounding: str, epsilon: float) -> None:
        super().__init__()
        self.patch, self.rounding = patch, rounding
        self.projection = nn.Conv2d(inputs, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = image.shape[-2:]
        if self.rounding == "ceil":
            image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        image = self.projection(image)
        return self.norm(image.flatten(2).transpose(1, 2)), (image.shape[2], image.shape[3])


class ConditionalPositionEncoding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, size)
        return (self.proj(image) + image).flatten(2).transpose(1, 2)


class GSA(nn.Module):
    def __init__(self, dim: int, heads: int, sr_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.sr_ratio = sr_ratio
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        context = tokens
        if self.sr_ratio > 1:
            image = tokens.transpose(1, 2).unflatten(2, size)
            context = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        return self.attn(tokens, context, context, need_weights=False)[0]


class FFN(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=epsilon)
        self.ffn = FFN(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn(self.norm2(x))


class Backbone(nn.Module):
    """Four maps (N, C, H, W); an SVT normalizes each once more before the next stage sees it."""

    def __init__(
        self,
        name: str,
        in_channels: int,
        window_padding: str,
        patch_rounding: str,
        block_epsilon: float,
        embed_epsilon: float,
    ) -> None:
        super().__init__()
        family, dims, heads, ratios, depths = _TABLE[name]
        inputs = (in_channels, *dims)
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(inputs[i], dims[i], 4 if i == 0 else 2, patch_rounding, embed_epsilon)
            for i in range(4)
        )
        self.position_encodings = nn.ModuleList(ConditionalPositionEncoding(dim) for dim in dims)
        self.layers = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = []
            for j in range(depths[i]):
                if family == "svt" and j % 2 == 0:
                    attention: nn.Module = LSA(dim, heads[i], window_padding)
                else:
                    attention = GSA(dim, heads[i], _SR_RATIOS[i], embed_epsilon)
                blocks.append(Block(attention, dim, ratios[i], block_epsilon))
            self.layers.append(nn.ModuleList(blocks))
        if family == "svt":
            self.norm_list = nn.ModuleList(nn.LayerNorm(dim, eps=block_epsilon) for dim in dims)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = []
        for i, blocks in enumerate(self.layers):
            tokens, size = self.patch_embeds[i](image)
            for j, block in enumerate(blocks.children()):
                tokens = block(tokens, size)
                if j == 0:
                    tokens = self.position_encodings[i](tokens, size)
            if hasattr(self, "norm_list"):
                tokens = self.norm_list[i](tokens)
            image = tokens.transpose(1, 2).unflatten(2, size)
            maps.append(image)
        return maps


class OfficialBackbone(TwinsReference):
    """The same under the official segmentation code's names."""

    def __init__(
        self,
        name: str,
        in_channels: int,
        window_padding: str,
        patch_rounding: str,
        block_epsilon: float,
        embed_epsilon: float,
    ) -> None:
        dialect = (window_padding, patch_rounding, block_epsilon, embed_epsilon)
        super().__init__(name, 0, in_channels, True, *dialect)
        family, dims = _TABLE[name][:2]
        if family == "svt":
            self.norm_list = nn.ModuleList(nn.LayerNorm(dim, eps=block_epsilon) for dim in dims)


class BackboneReference(Backbone):
    """The backbone of a classifier under MMSegmentation's names, with the classifier's norm."""

    def __init__(self, name: str, in_channels: int) -> None:
        # "none": at sizes that need no padding, which is where this is compared.
        super().__init__(name, in_channels, "none", "floor", 1e-6, 1e-5)
        if hasattr(self, "norm_list"):
            del self.norm_list
        self.norm = nn.LayerNorm(_TABLE[name][1][-1], eps=1e-6)

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """The maps, and as "logits" the pooled features."""
        maps = self(image)
        tokens = self.norm(maps[-1].flatten(2).transpose(1, 2))
        return {f"stage{i}": x for i, x in enumerate(maps, 1)} | {"logits": tokens.mean(1)}


class ConvModule(nn.Module):
    """Convolution; with `normalized`, without bias and then batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, normalized: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not normalized)
        if normalized:
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.bn(x)) if hasattr(self, "bn") else x


def _resize(image: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(image, like.shape[-2:], mode="bilinear", align_corners=False)


class FPN(nn.Module):
    def __init__(self, dims: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1, False) for dim in dims)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, False) for _ in dims)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [conv(image) for conv, image in zip(self.lateral_convs, maps, strict=True)]
        for i in (2, 1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], maps[i].shape[-2:], mode="nearest")
        return [conv(image) for conv, image in zip(self.fpn_convs, maps, strict=True)]


class FPNHead(nn.Module):
    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for i in range(4):
            layers: list[nn.Module] = []
            for k in range(max(1, i)):
                layers.append(ConvModule(inputs if k == 0 else channels, channels, 3))
                if i > 0:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        total = self.scale_heads[0](maps[0])
        for head, image in zip(self.scale_heads[1:], maps[1:], strict=True):
            total = total + _resize(head(image), total)
        return self.conv_seg(self.dropout(total))


class UPerHead(nn.Module):
    def __init__(self, dims: tuple[int, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvModule(dims[-1], channels, 1))
            for bins in (1, 2, 3, 6)
        )
        self.bottleneck = ConvModule(dims[-1] + 4 * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in dims[:-1])
        self.fpn_bottleneck = ConvModule(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        pooled = [_resize(module(maps[-1]), maps[-1]) for module in self.psp_modules]
        top = self.bottleneck(torch.cat([maps[-1], *pooled], 1))
        maps = [conv(image) for conv, image in zip(self.lateral_convs, maps[:-1], strict=True)]
        maps.append(top)
        for i in (2, 1, 0):
            maps[i] = maps[i] + _resize(maps[i + 1], maps[i])
        maps = [*(self.fpn_convs[i](maps[i]) for i in range(3)), top]
        joined = torch.cat([_resize(image, maps[0]) for image in maps], 1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))


class FCNHead(nn.Module):
    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inputs, channels, 3))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(maps[2])))


class SegmentationReference(nn.Module):
    """See `create_segmentation_reference`."""

    def __init__(
        self,
        head: str,
        dims: tuple[int, ...],
        backbone: nn.Module,
        num_classes: int,
        neck_channels: int,
        channels: int,
        auxiliary_channels: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if head == "fpn":
            self.neck = FPN(dims, neck_channels)
            self.decode_head: nn.Module = FPNHead(neck_channels, channels, num_classes)
        else:
            self.decode_head = UPerHead(dims, channels, num_classes)
            self.auxiliary_head = FCNHead(dims[2], auxiliary_channels, num_classes)
        self.apply(_initialize)

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """All that parity compares: "stage1" to "stage4", "neck1" to "neck4" (FPN), "logits" and
        "auxiliary" (UPerNet)."""
        maps = self.backbone(image)
        outputs = {f"stage{i}": x for i, x in enumerate(maps, 1)}
        if hasattr(self, "neck"):
            maps = self.neck(maps)
            outputs |= {f"neck{i}": x for i, x in enumerate(maps, 1)}
        outputs["logits"] = self.decode_head(maps)
        if hasattr(self, "auxiliary_head"):
            outputs["auxiliary"] = self.auxiliary_head(maps)
        return outputs

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (N, classes, H, W); in training also the auxiliary ones, as a tuple."""
        outputs = self.stages(image)
        if not self.training:
            return outputs["logits"]
        return tuple(outputs[name] for name in ("logits", "auxiliary") if name in outputs)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def create_segmentation_reference(
    name: str,
    num_classes: int = 150,
    in_channels: int = 3,
    channels: int | None = None,
    auxiliary_channels: int | None = None,
    window_padding: str = "mask",
    patch_rounding: str = "ceil",
    block_epsilon: float = 1e-5,
    embed_epsilon: float = 1e-5,
    official_names: bool = False,
) -> SegmentationReference:
    """The PyTorch reference of a segmentor, in evaluation mode; arguments as `create_segmentor`.

    With `official_names` the backbone has the names of the official segmentation code.
    """
    head, variant = name.split("_", 1)
    tiny = variant == "svt_tiny"
    widths = (_TINY_WIDTHS if tiny else _WIDTHS)[head]
    backbone = (OfficialBackbone if official_names else Backbone)(
        variant, in_channels, window_padding, patch_rounding, block_epsilon, embed_epsilon
    )
    return SegmentationReference(
        head,
        _TABLE[variant][1],
        backbone,
        num_classes,
        neck_channels=64 if tiny else 256,
        channels=channels or widths[0],
        auxiliary_channels=auxiliary_channels or widths[1],
    ).eval()


def create_backbone_reference(
    name: str, num_classes: int = 0, in_channels: int = 3
) -> BackboneReference:
    """What MMSegmentation's key converter makes of a classifier, in evaluation mode.

    Raises:
        ValueError: `num_classes` is not 0; it leaves the head out.
    """
    if num_classes:
        raise ValueError(f"a backbone has no head of {num_classes} classes")
    return BackboneReference(name, in_channels).eval()


def rename_sssegmentation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of sssegmentation's UPerNet under MMSegmentation's names."""
    parts: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("backbone_net", "backbone", {}),
        (r"ppm_net\.branches\.(\d)", r"decode_head.psp_modules.\1.1", {"1": "conv", "2": "bn"}),
        (r"ppm_net\.bottleneck", "decode_head.bottleneck", {"0": "conv", "1": "bn"}),
        (r"(lateral|fpn)_convs\.(\d)", r"decode_head.\1_convs.\2", {"0": "conv", "1": "bn"}),
        (r"decoder(?=\.4)", "decode_head", {"4": "conv_seg"}),
        ("decoder", "decode_head.fpn_bottleneck", {"0": "conv", "1": "bn"}),
        (r"auxiliary_decoder(?=\.4)", "auxiliary_head", {"4": "conv_seg"}),
        ("auxiliary_decoder", "auxiliary_head.convs.0", {"0": "conv", "1": "bn"}),
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement, layers in parts:
            if match := re.match(rf"{pattern}\.", name):
                layer, *rest = name[match.end() :].split(".")
                module = match.expand(replacement)
                renamed[".".join((module, layers.get(layer, layer), *rest))] = tensor
                break
        else:
            raise KeyError(name)
    return renamed
