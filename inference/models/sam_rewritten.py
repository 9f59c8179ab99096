"""SAM's ViT image encoder with its attention written otherwise: what the forms for graphs and GPUs share.

Every form projects real tokens only: a window's padding is zero after the norm, so its queries, keys and
values are the bias of the projection, and nobody reads what it attends to. All parameters are the plain
encoder's own.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import VitBlock, VitImageEncoder, WindowAttention, relative_positions


class RewrittenAttention(nn.Module):
    """A `WindowAttention` with its position tables made ready, on real tokens; `attend` is the form's own."""

    rows: Tensor  # (side, side, D): what a query adds to the keys of each row
    columns: Tensor

    def __init__(self, plain: WindowAttention, grid: int, window: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads, self.window = plain.qkv, plain.proj, plain.heads, window
        side = window or grid
        with torch.no_grad():
            self.register_buffer("rows", relative_positions(side, plain.rel_pos_h).clone())
            self.register_buffer("columns", relative_positions(side, plain.rel_pos_w).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), normalised -> (B, H, W, C)."""
        qkv = self.qkv(x)
        mixed = self._in_windows(qkv) if self.window else self.attend(qkv)
        out: Tensor = self.proj(mixed)
        return out

    def attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values of whole squares (B, h, w, 3C) -> (B, h, w, C)."""
        raise NotImplementedError

    def _in_windows(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3C) of real tokens -> (B, H, W, C); what pads a window has the bias as its qkv."""
        batch, height, width, channels = qkv.shape
        side, bias = self.window, self.qkv.bias
        padded = F.pad(qkv - bias, (0, 0, 0, -width % side, 0, -height % side)) + bias
        down, across = padded.shape[1] // side, padded.shape[2] // side
        tiles = padded.view(batch, down, side, across, side, channels).transpose(2, 3)
        mixed = self.attend(tiles.reshape(-1, side, side, channels))
        grid = mixed.view(batch, down, across, side, side, channels // 3).transpose(2, 3)
        return grid.reshape(batch, down * side, across * side, channels // 3)[:, :height, :width]


Rewrite = Callable[
    [WindowAttention, int, int], RewrittenAttention
]  # plain, side of the grid, window (0: none)


class RewrittenBlock(nn.Module):
    """A `VitBlock` whose attention is rewritten."""

    def __init__(self, plain: VitBlock, grid: int, rewrite: Rewrite) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = plain.norm1, plain.norm2, plain.mlp
        self.attn = rewrite(plain.attn, grid, plain.window)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RewrittenEncoder(nn.Module):
    """`plain` with rewritten blocks; these may be in another dtype than what is outside of them."""

    def __init__(self, plain: VitImageEncoder, rewrite: Rewrite) -> None:
        super().__init__()
        grid = plain.pos_embed.shape[1]
        self.patch_embed, self.pos_embed, self.neck = plain.patch_embed, plain.pos_embed, plain.neck
        self.blocks = nn.ModuleList(RewrittenBlock(block, grid, rewrite) for block in plain.blocks)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) float32 -> image embedding (B, 256, S/16, S/16) float32."""
        x = self.patch_embed(pixels) + self.pos_embed
        x = x.to(next(self.blocks.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.float().permute(0, 3, 1, 2))
        return out
