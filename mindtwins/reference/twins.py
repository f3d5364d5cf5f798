"""Twins in plain PyTorch, written from the paper and the official code's definition.

It shares no code with `mindtwins.models`: tokens are sequences (B, N, C), convolutions are torch's,
heads are unpacked by `reshape` and `unbind`. State-dict keys are the official ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PATCH_SIZES = (4, 2, 2, 2)
_WINDOW = 7

# family, embed dims, heads, mlp ratios, depths, sr ratios: tables 1 and 2 of the paper.
_TABLE = {
    "pcpvt_small": ("pcpvt", (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 4, 6, 3)),
    "pcpvt_base": ("pcpvt", (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 4, 18, 3)),
    "pcpvt_large": ("pcpvt", (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (3, 8, 27, 3)),
    "svt_small": ("svt", (64, 128, 256, 512), (2, 4, 8, 16), (4, 4, 4, 4), (2, 2, 10, 4)),
    "svt_base": ("svt", (96, 192, 384, 768), (3, 6, 12, 24), (4, 4, 4, 4), (2, 2, 18, 2)),
    "svt_large": ("svt", (128, 256, 512, 1024), (4, 8, 16, 32), (4, 4, 4, 4), (2, 2, 18, 2)),
    "svt_tiny": ("svt", (32, 64, 96, 128), (1, 2, 3, 4), (4, 4, 4, 4), (1, 2, 2, 1)),
}
_SR_RATIOS = (8, 4, 2, 1)


class PatchEmbed(nn.Module):
    def __init__(self, inputs: int, dim: int, patch: int, rounding: str, epsilon: float) -> None:
        super().__init__()
        self.patch, self.rounding = patch, rounding
        self.proj = nn.Conv2d(inputs, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.rounding == "ceil":
            height, width = image.shape[-2:]
            image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        image = self.proj(image)
        return self.norm(image.flatten(2).transpose(1, 2)), (image.shape[2], image.shape[3])


class PEG(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, size)
        return (self.proj(image) + image).flatten(2).transpose(1, 2)


class GSA(nn.Module):
    def __init__(self, dim: int, heads: int, sr_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.heads, self.scale, self.sr_ratio = heads, (dim // heads) ** -0.5, sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        batch, count, dim = tokens.shape
        query = self.q(tokens).reshape(batch, count, self.heads, -1).transpose(1, 2)
        context = tokens
        if self.sr_ratio > 1:
            image = tokens.transpose(1, 2).unflatten(2, size)
            context = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        keys_values = self.kv(context).reshape(batch, -1, 2, self.heads, dim // self.heads)
        key, value = keys_values.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, count, dim))


class LSA(nn.Module):
    def __init__(self, dim: int, heads: int, padding: str) -> None:
        super().__init__()
        self.heads, self.scale, self.padding = heads, (dim // heads) ** -0.5, padding
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        (batch, _, dim), (height, width), window = tokens.shape, size, _WINDOW
        bottom, right = -height % window, -width % window
        if self.padding == "none" and (bottom or right):
            raise ValueError(f"{height} x {width} is no multiple of {window}")
        image = F.pad(tokens.unflatten(1, size), (0, 0, 0, right, 0, bottom))
        rows, columns = (height + bottom) // window, (width + right) // window

        def windows(image: Tensor) -> Tensor:  # (B, H, W, C) -> (B, rows * columns, 49, C)
            image = image.reshape(image.shape[0], rows, window, columns, window, -1)
            return image.transpose(2, 3).reshape(image.shape[0], rows * columns, window**2, -1)

        packed = self.qkv(windows(image))
        packed = packed.reshape(batch, rows * columns, window**2, 3, self.heads, -1)
        query, key, value = packed.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = query @ key.transpose(-2, -1) * self.scale
        if self.padding == "mask" and (bottom or right):
            # As the official segmentation code slices: -0 selects everything.
            padded = torch.zeros(1, height + bottom, width + right, 1)
            padded[:, -bottom:] = 1
            padded[:, :, -right:] = 1
            padded = windows(padded).squeeze(-1)
            differs = padded.unsqueeze(2) - padded.unsqueeze(3) != 0
            scores = scores + (differs * -1000.0).unsqueeze(2).to(scores)
        out = (scores.softmax(-1) @ value).transpose(2, 3)
        out = out.reshape(batch, rows, columns, window, window, dim).transpose(2, 3)
        out = out.reshape(batch, height + bottom, width + right, dim)[:, :height, :width]
        return self.proj(out.flatten(1, 2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=epsilon)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x))


class TwinsReference(nn.Module):
    """Backbone and classifier; see `create_reference`."""

    norm_list: nn.ModuleList  # set by the SVT of the segmentation code alone, a subclass

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int,
        features_only: bool,
        window_padding: str,
        patch_rounding: str,
        block_epsilon: float,
        embed_epsilon: float,
    ) -> None:
        super().__init__()
        family, dims, heads, ratios, depths = _TABLE[name]
        self.features_only = features_only
        inputs = (in_channels, *dims[:-1])
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(inputs[i], dims[i], _PATCH_SIZES[i], patch_rounding, embed_epsilon)
            for i in range(4)
        )
        self.pos_block = nn.ModuleList(PEG(dim) for dim in dims)
        self.blocks = nn.ModuleList()
        for i, depth in enumerate(depths):
            stage = nn.ModuleList()
            for j in range(depth):
                if family == "svt" and j % 2 == 0:
                    attention: nn.Module = LSA(dims[i], heads[i], window_padding)
                else:
                    attention = GSA(dims[i], heads[i], _SR_RATIOS[i], embed_epsilon)
                stage.append(Block(attention, dims[i], ratios[i], block_epsilon))
            self.blocks.append(stage)
        if not features_only:
            self.norm = nn.LayerNorm(dims[-1], eps=block_epsilon)
            self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def features(self, image: Tensor) -> list[Tensor]:
        """The four stage maps (N, C, H, W)."""
        maps = []
        for i, blocks in enumerate(self.blocks):
            tokens, size = self.patch_embeds[i](image)
            for j, block in enumerate(blocks.children()):
                tokens = block(tokens, size)
                if j == 0:
                    tokens = self.pos_block[i](tokens, size)
            if hasattr(self, "norm_list"):
                tokens = self.norm_list[i](tokens)
            image = tokens.transpose(1, 2).unflatten(2, size)
            maps.append(image)
        return maps

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        maps = self.features(image)
        return maps if self.features_only else self._classify(maps[-1])

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """All that parity compares: "stage1" to "stage4" (N, C, H, W) and "logits"."""
        maps = self.features(image)
        named = {f"stage{i}": tensor for i, tensor in enumerate(maps, 1)}
        return named if self.features_only else named | {"logits": self._classify(maps[-1])}

    def _classify(self, image: Tensor) -> Tensor:
        return self.head(self.norm(image.flatten(2).transpose(1, 2)).mean(1))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create_reference(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
    window_padding: str = "zeros",
    patch_rounding: str = "floor",
    block_epsilon: float = 1e-6,
    embed_epsilon: float = 1e-5,
) -> TwinsReference:
    """The PyTorch reference of a variant, in evaluation mode; arguments as `create_model`."""
    return TwinsReference(
        name,
        num_classes,
        in_channels,
        features_only,
        window_padding,
        patch_rounding,
        block_epsilon,
        embed_epsilon,
    ).eval()
