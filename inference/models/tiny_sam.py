"""TinySAM image encoder: convolutions and a few attention blocks in place of SAM's ViT.

No absolute positions, so the same weights take 128 and 256 pixels. The embedding has stride 4
(SAM's has 16): at 256 pixels it is (256, 64, 64), the very shape SAM's decoder expects at 1024.
Design ours; sizes chosen for two CPU cores (models.md asks for a light encoder).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import LayerNorm2d, MlpBlock


@dataclass(frozen=True)
class TinyConfig:
    """Widths and depths of the four stages at strides 4, 8, 16, 32, and of the neck."""

    widths: tuple[int, int, int, int] = (48, 96, 192, 256)
    depths: tuple[int, int, int, int] = (2, 2, 3, 2)
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
    """Four stages, then a neck that adds them up at stride 4."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        first = config.widths[0]
        self.stem = nn.Sequential(ConvNorm(3, 32, 2), nn.ReLU(), ConvNorm(32, first, 2), nn.ReLU())
        self.stages = nn.ModuleList(self._stage(config, i) for i in range(4))
        self.attention = nn.Sequential(
            *(GridAttention(config.widths[3], config.heads) for _ in range(config.attention_blocks))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, config.neck_width, 1) for width in config.widths)
        self.fuse = nn.Sequential(ConvNorm(config.neck_width, config.neck_width), nn.ReLU())
        self.neck = nn.Sequential(
            nn.Conv2d(config.neck_width, config.out_channels, 1, bias=False), LayerNorm2d(config.out_channels)
        )

    @staticmethod
    def _stage(config: TinyConfig, index: int) -> nn.Sequential:
        width = config.widths[index]
        down = [] if index == 0 else [ConvNorm(config.widths[index - 1], width, 2), nn.ReLU()]
        return nn.Sequential(*down, *(ResidualBlock(width) for _ in range(config.depths[index])))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), S a multiple of 32 -> image embedding (B, 256, S/4, S/4)."""
        features: list[Tensor] = []
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[3] = self.attention(features[3])
        merged = self.laterals[3](features[3])
        for lateral, feature in zip(self.laterals[2::-1], features[2::-1], strict=True):
            merged = lateral(feature) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
        out: Tensor = self.neck(self.fuse(merged))
        return out
