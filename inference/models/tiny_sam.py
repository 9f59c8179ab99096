"""TinySAM image encoder: EfficientNet-Lite0 and a few attention blocks in place of SAM's ViT.

No absolute positions, so the same weights take 128 and 256 pixels. The embedding has stride 4
(SAM's has 16): at 256 pixels it is (256, 64, 64), the very shape SAM's decoder expects at 1024.
Design ours; sizes chosen for two CPU cores (models.md asks for a light encoder).
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.lite_trunk import LiteTrunk, TrunkConfig
from inference.models.sam import LayerNorm2d, MlpBlock, Modulate


@dataclass(frozen=True)
class TinyConfig:
    """Size of the trunk, of the attention on its deepest features, and of the neck."""

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    attention_blocks: int = 2
    heads: int = 4
    neck_width: int = 96
    out_channels: int = 256


class ConvNorm(nn.Sequential):
    """3x3 convolution and batch norm; the norm is folded into the convolution at export."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width)
        nn.init.zeros_(self.second.get_parameter("1.weight"))  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class GridAttention(nn.Module):
    """Transformer block on a small grid; positions come from the convolutions' zero padding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MlpBlock(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        tokens = tokens + self.proj(mixed.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).unflatten(-1, (height, width))


class TinyImageEncoder(nn.Module):
    """The trunk's four features, added up by a neck at stride 4."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, neck = config.trunk.outputs, config.neck_width
        self.trunk = LiteTrunk(config.trunk)
        self.attention = nn.Sequential(
            *(GridAttention(widths[3], config.heads) for _ in range(config.attention_blocks))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in widths)
        self.fuse = nn.Sequential(ConvNorm(neck, neck), nn.ReLU())
        self.neck = nn.Sequential(
            nn.Conv2d(neck, config.out_channels, 1, bias=False), LayerNorm2d(config.out_channels)
        )

    def forward(self, pixels: Tensor, modulate: Modulate | None = None) -> Tensor:
        """Normalised pixels (B, 3, S, S), S a multiple of 32 -> image embedding (B, 256, S/4, S/4).

        `modulate(i, x)` may change the features (B, C, h, w) before stage i of the trunk.
        """
        features = self.trunk(pixels, modulate)
        merged = self.laterals[3](self.attention(features[3]))
        for lateral, feature in zip(self.laterals[2::-1], features[2::-1], strict=True):
            merged = lateral(feature) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
        out: Tensor = self.neck(self.fuse(merged))
        return out
