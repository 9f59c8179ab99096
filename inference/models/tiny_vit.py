"""TinySAM's own image encoder, TinyViT, with the parameter names of the public checkpoints.

Written from the paper (Wu et al., arXiv 2207.10666) and the facts of the public code: TinySAM and
MobileSAM share it, with a stride of 1 in the last merge so that the embedding is (256, S/16, S/16).
Checked in numbers against MobileSAM's in tests/inference/models/test_full_size.py. Inference and
fine-tuning only: no stochastic depth.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import LayerNorm2d


@dataclass(frozen=True)
class TinyVitConfig:
    """Size of TinyViT; the defaults are `tiny_vit_5m` as TinySAM and MobileSAM use it."""

    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)  # tokens
    mlp_ratio: int = 4
    out_channels: int = 256


class ConvBn(nn.Sequential):
    """Convolution without bias, then batch norm; named `c` and `bn` as in the checkpoints."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


class PatchStem(nn.Module):
    """Two strided convolutions: stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBn(3, width // 2, 3, 2), nn.GELU(), ConvBn(width // 2, width, 3, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, S/4, S/4)."""
        out: Tensor = self.seq(pixels)
        return out


class MbConv(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018) whose activation follows the sum."""

    def __init__(self, width: int, expand: int = 4) -> None:
        super().__init__()
        hidden = width * expand
        self.conv1 = ConvBn(width, hidden, 1)
        self.conv2 = ConvBn(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBn(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class PatchMerging(nn.Module):
    """To the next stage's width, and to half the size where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(inputs, outputs, 1)
        self.conv2 = ConvBn(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvBn(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class BiasAttention(nn.Module):
    """Self-attention in one window, with a learned bias for each distance (|dy|, |dx|)."""

    bias_index: Tensor  # (N, N) int64

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # Distances are numbered as the checkpoints meet them in the first row of pairs: rows first.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        ys, xs = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ys, xs = ys.flatten(), xs.flatten()
        apart = (ys[:, None] - ys).abs() * window + (xs[:, None] - xs).abs()
        self.register_buffer("bias_index", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        # A head's queries, keys and values lie side by side, unlike SAM's.
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = qkv.unbind(0)
        bias = self.attention_biases[:, self.bias_index]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class NormMlp(nn.Module):
    """Norm and two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyVitBlock(nn.Module):
    """Windowed attention, a depth-wise convolution, an MLP."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.window = window
        self.attn = BiasAttention(width, heads, window)
        self.mlp = NormMlp(width, mlp_ratio * width)
        self.local_conv = ConvBn(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.local_conv(x + self._windowed(x))
        tokens = x.flatten(2).transpose(1, 2)
        out = tokens + self.mlp(tokens)
        return out.transpose(1, 2).reshape(x.shape)

    def _windowed(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side = self.window
        x = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = x.shape[2] // side, x.shape[3] // side
        tiles = x.view(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        mixed = self.attn(tiles.reshape(-1, side * side, channels))
        grid = mixed.view(batch, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
        return grid.reshape(batch, channels, rows * side, columns * side)[..., :height, :width]


class TinyVitLayer(nn.Module):
    """One stage: its blocks, then the merge into the next."""

    def __init__(self, config: TinyVitConfig, index: int) -> None:
        super().__init__()
        width = config.widths[index]
        block = (config.heads[index], config.windows[index], config.mlp_ratio)
        self.blocks = nn.ModuleList(
            MbConv(width) if index == 0 else TinyVitBlock(width, *block) for _ in range(config.depths[index])
        )
        self.downsample = (
            None if index == 3 else PatchMerging(width, config.widths[index + 1], 1 if index == 2 else 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVitImageEncoder(nn.Module):
    """TinyViT with SAM's neck."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__()
        out = config.out_channels
        self.patch_embed = PatchStem(config.widths[0])
        self.layers = nn.ModuleList(TinyVitLayer(config, index) for index in range(4))
        self.neck = nn.Sequential(
            nn.Conv2d(config.widths[3], out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), S a multiple of 16 -> image embedding (B, 256, S/16, S/16)."""
        x = self.patch_embed(pixels)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.neck(x)
        return out
