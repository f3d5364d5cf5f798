"""The Twins classifier in plain PyTorch as MMPretrain defines it, under that project's names."""

from __future__ import annotations

from torch import Tensor, nn

from mindtwins.reference.segmentation import FFN, ConditionalPositionEncoding, PatchEmbed
from mindtwins.reference.twins import _SR_RATIOS, _TABLE, GSA, LSA, _initialize


class EncoderLayer(nn.Module):
    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=epsilon)
        self.ffn = FFN(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn(self.norm2(x))


class TwinsBackbone(nn.Module):
    """The four stages; `epsilon` is of all norms but those of the patch embedding."""

    def __init__(self, name: str, in_channels: int, epsilon: float) -> None:
        super().__init__()
        family, dims, heads, ratios, depths = _TABLE[name]
        inputs = (in_channels, *dims)
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(inputs[i], dims[i], 4 if i == 0 else 2, "ceil", 1e-5) for i in range(4)
        )
        self.position_encodings = nn.ModuleList(ConditionalPositionEncoding(dim) for dim in dims)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            layers = nn.ModuleList()
            for j in range(depths[i]):
                is_local = family == "svt" and j % 2 == 0
                attention = (
                    LSA(dim, heads[i], "mask")
                    if is_local
                    else GSA(dim, heads[i], _SR_RATIOS[i], epsilon)
                )
                layers.append(EncoderLayer(attention, dim, ratios[i], epsilon))
            self.stages.append(layers)
        self.norm_after_stage3 = nn.LayerNorm(dims[-1], eps=epsilon)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """The four maps (N, C, H, W), and the normalized tokens (N, H * W, C) of the last."""
        maps = []
        for i, layers in enumerate(self.stages):
            tokens, size = self.patch_embeds[i](image)
            for j, layer in enumerate(layers.children()):
                tokens = layer(tokens, size)
                if j == 0:
                    tokens = self.position_encodings[i](tokens, size)
            image = tokens.transpose(1, 2).unflatten(2, size)
            maps.append(image)
        return maps, self.norm_after_stage3(tokens)


class LinearClsHead(nn.Module):
    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(features)


class MMPretrainReference(nn.Module):
    """See `create_mmpretrain_reference`."""

    def __init__(self, name: str, num_classes: int, in_channels: int, epsilon: float) -> None:
        super().__init__()
        self.backbone = TwinsBackbone(name, in_channels, epsilon)
        self.head = LinearClsHead(_TABLE[name][1][-1], num_classes)
        self.apply(_initialize)

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """The maps as "stage1" to "stage4" (N, C, H, W), and "logits"."""
        maps, tokens = self.backbone(image)
        named = {f"stage{i}": x for i, x in enumerate(maps, 1)}
        return named | {"logits": self.head(tokens.mean(1))}

    def forward(self, image: Tensor) -> Tensor:
        return self.stages(image)["logits"]


def create_mmpretrain_reference(
    name: str, num_classes: int = 1000, in_channels: int = 3
) -> MMPretrainReference:
    """MMPretrain's classifier, in evaluation mode.

    It computes with the epsilons of MMPretrain's configurations: 1e-6 in a PCPVT, 1e-5 in an SVT.
    """
    epsilon = 1e-6 if _TABLE[name][0] == "pcpvt" else 1e-5
    return MMPretrainReference(name, num_classes, in_channels, epsilon).eval()
