"""SAM's image encoder for a GPU: bfloat16, relative positions gathered inside the attention kernel.

FlexAttention adds `rel_h[q, row of k] + rel_w[q, column of k]` to each score as it is made: no matrix of
scores or of positions is ever in memory and no product is added, which is what segment-anything-fast's own
kernel does. Windows are small: there the bias is a tensor for fused attention. No padding is projected.
Checked on the CPU in tests/inference/models/test_gpu_forms.py; its speed on a GPU has not been measured.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from inference.models.sam import VitBlock, VitImageEncoder, WindowAttention, relative_positions


class FlexWindowAttention(nn.Module):
    """A `WindowAttention` whose bias is never a matrix of all scores, unless it is a small window's."""

    rows: Tensor
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
        mixed = self._in_windows(qkv) if self.window else self._over_all(qkv)
        out: Tensor = self.proj(mixed)
        return out

    def _in_windows(self, qkv: Tensor) -> Tensor:
        """What pads a window has the bias of the projection as its query, key and value."""
        batch, height, width, channels = qkv.shape
        side, bias = self.window, self.qkv.bias
        padded = F.pad(qkv - bias, (0, 0, 0, -width % side, 0, -height % side)) + bias
        down, across = padded.shape[1] // side, padded.shape[2] // side
        tiles = padded.view(batch, down, side, across, side, channels).transpose(2, 3)
        query, key, value = self._split(tiles.reshape(-1, side, side, channels))
        rows, columns = self._terms(query, (side, side))
        bias_of_all = (rows[..., :, None] + columns[..., None, :]).flatten(3)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias_of_all)
        grid = mixed.transpose(1, 2).reshape(batch, down, across, side, side, -1).transpose(2, 3)
        return grid.reshape(batch, down * side, across * side, -1)[:, :height, :width]

    def _over_all(self, qkv: Tensor) -> Tensor:
        batch, height, width, _ = qkv.shape
        query, key, value = self._split(qkv)
        rows, columns = self._terms(query, (height, width))

        def with_positions(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + rows[b, h, q, k // width] + columns[b, h, q, k % width]

        mixed: Any = flex_attention(query, key, value, score_mod=with_positions)
        out: Tensor = mixed.transpose(1, 2).reshape(batch, height, width, -1)
        return out

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, h, w, 3C) -> query, key, value, each (B, heads, h * w, Dh)."""
        parts = qkv.flatten(1, 2).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return tuple(part.contiguous() for part in parts.unbind(0))

    def _terms(self, query: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What a query adds to each row and each column of keys: (B, heads, h * w, h) and (..., w)."""
        grid = query.unflatten(2, hw)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, self.rows)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, self.columns)
        return rows.flatten(2, 3), columns.flatten(2, 3)


class FlexBlock(nn.Module):
    """A `VitBlock` with that attention."""

    def __init__(self, plain: VitBlock, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = plain.norm1, plain.norm2, plain.mlp
        self.attn = FlexWindowAttention(plain.attn, grid, plain.window)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FlexImageEncoder(nn.Module):
    """`plain` for a GPU, with its own parameters; the blocks may be in another dtype than what is outside."""

    def __init__(self, plain: VitImageEncoder) -> None:
        super().__init__()
        grid = plain.pos_embed.shape[1]
        self.patch_embed, self.pos_embed, self.neck = plain.patch_embed, plain.pos_embed, plain.neck
        self.blocks = nn.ModuleList(FlexBlock(block, grid) for block in plain.blocks)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) float32 -> image embedding (B, 256, S/16, S/16) float32."""
        x = self.patch_embed(pixels) + self.pos_embed
        x = x.to(next(self.blocks.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.float().permute(0, 3, 1, 2))
        return out


def encoder_for_gpu(plain: VitImageEncoder, device: torch.device, dtype: torch.dtype) -> FlexImageEncoder:
    """The encoder on `device`, its blocks in `dtype`; patches and neck, little work, in float32."""
    encoder = FlexImageEncoder(plain).eval().to(device)
    encoder.blocks.to(dtype)
    return encoder
