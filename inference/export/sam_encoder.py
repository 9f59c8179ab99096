"""SAM's ViT image encoder in the forms that graphs are made of: the same numbers, less work or less memory.

Every form projects real tokens only: a window's padding is zero after the norm, so its queries, keys and
values are the bias of the projection, and nobody reads what it attends to. They differ in how the decomposed
relative positions meet the scores of a global block; all are exact in real arithmetic (inference.md, 2.1).
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import VitBlock, VitImageEncoder, WindowAttention, relative_positions

CHUNK = 256  # queries whose scores are alive at once; 12 heads of 256 x 4096 floats are 50 MB


class EncoderForm(StrEnum):
    """How global attention is written."""

    CHUNKED = "chunked"  # scores of some queries at a time: little memory, any runtime; the default on a CPU
    WHOLE = "whole"  # one softmax over all scores: what TensorRT and CUDA fuse
    FUSED = "fused"  # ONNX Runtime's own MultiHeadAttention: no scores in memory, CPU and CUDA


class FusedAttention(torch.autograd.Function):
    """`com.microsoft.MultiHeadAttention` in an exported graph, the plain arithmetic in PyTorch."""

    @staticmethod
    def forward(_: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Scaled queries and keys (B, N, heads * D), values (B, N, heads * Dv) -> (B, N, heads * Dv)."""
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int) -> Any:
        """The node; queries are scaled already. The exporter asks for it by this name."""
        node = g.op("com.microsoft::MultiHeadAttention", query, key, value, num_heads_i=heads, scale_f=1.0)
        node.setType(value.type())  # the exporter knows no shapes of another domain's operators
        return node


def augmented(
    query: Tensor, key: Tensor, tables: tuple[Tensor, Tensor], places: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose plain product is the scaled score with its relative positions.

    [q s, rel_h(q), rel_w(q)] . [k, onehot(row of k), onehot(column of k)]: the bias needs no matrix.

    Parameters
    ----------
    query, key
        (B, heads, h * w, D).
    tables
        Rows of the relative positions for each query-key offset, (h, h, D) and (w, w, D).
    places
        What `places_of` gives for the grid, (h * w, h + w).

    Returns
    -------
    tuple
        Two tensors (B, heads, h * w, D + h + w); the key's first axis is that of `key`.
    """
    rows, columns = position_terms(query, tables, (len(tables[0]), len(tables[1])))
    wide_query = torch.cat([query * query.shape[-1] ** -0.5, rows.flatten(2, 3), columns.flatten(2, 3)], -1)
    return wide_query, torch.cat([key, places.to(key.dtype).expand(*key.shape[:2], -1, -1)], -1)


def places_of(height: int, width: int) -> Tensor:
    """Row and column of each cell of a grid, each as a vector with a single one: (h * w, h + w)."""
    row_of = torch.eye(height).repeat_interleave(width, 0)
    return torch.cat([row_of, torch.eye(width).repeat(height, 1)], -1)


def position_terms(
    query: Tensor, tables: tuple[Tensor, Tensor], hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What a query adds to the keys of each row and of each column: (B, heads, h, w, h) and (..., w)."""
    grid = query.unflatten(2, hw)
    rows = grid @ tables[0].transpose(1, 2)
    columns = (grid.transpose(2, 3) @ tables[1].transpose(1, 2)).transpose(2, 3)
    return rows, columns


class GraphAttention(nn.Module):
    """A `WindowAttention` with its position tables made ready, on real tokens."""

    rows: Tensor
    columns: Tensor
    places: Tensor

    def __init__(self, plain: WindowAttention, grid: int, window: int, form: EncoderForm) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = plain.qkv, plain.proj, plain.heads
        self.window, self.form = window, form
        side = window or grid
        with torch.no_grad():
            self.register_buffer("rows", relative_positions(side, plain.rel_pos_h).clone())
            self.register_buffer("columns", relative_positions(side, plain.rel_pos_w).clone())
        self.register_buffer("places", places_of(side, side))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), normalised -> (B, H, W, C)."""
        qkv = self.qkv(x)
        mixed = self._in_windows(qkv) if self.window else self._over_all(qkv)
        out: Tensor = self.proj(mixed)
        return out

    def _in_windows(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3C) of real tokens -> (B, H, W, C); what pads a window has the bias as its qkv."""
        batch, height, width, channels = qkv.shape
        side, bias = self.window, self.qkv.bias
        padded = F.pad(qkv - bias, (0, 0, 0, -width % side, 0, -height % side)) + bias
        down, across = padded.shape[1] // side, padded.shape[2] // side
        tiles = padded.view(batch, down, side, across, side, channels).transpose(2, 3)
        mixed = self._attend(tiles.reshape(-1, side * side, channels))
        grid = mixed.view(batch, down, across, side, side, channels // 3).transpose(2, 3)
        return grid.reshape(batch, down * side, across * side, channels // 3)[:, :height, :width]

    def _over_all(self, qkv: Tensor) -> Tensor:
        batch, height, width, channels = qkv.shape
        mixed = self._attend(qkv.view(batch, height * width, channels))
        return mixed.view(batch, height, width, channels // 3)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(B, N, 3C) -> (B, N, C)."""
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        wide_query, wide_key = augmented(query, key, (self.rows, self.columns), self.places)
        if self.form is EncoderForm.FUSED and not self.window:
            flat = (x.transpose(1, 2).flatten(2) for x in (wide_query, wide_key, value))
            fused: Tensor = FusedAttention.apply(*flat, self.heads)  # type: ignore[no-untyped-call]
            return fused.view(qkv.shape[0], -1, qkv.shape[-1] // 3)
        parts: Sequence[Tensor] = (wide_query,)
        if self.form is EncoderForm.CHUNKED and not self.window:
            parts = wide_query.split(CHUNK, 2)
        turned = wide_key.transpose(-1, -2)
        mixed = torch.cat([(part @ turned).softmax(-1) @ value for part in parts], 2)
        return mixed.transpose(1, 2).flatten(2)


class GraphBlock(nn.Module):
    """A `VitBlock` whose attention is rewritten."""

    def __init__(self, plain: VitBlock, grid: int, form: EncoderForm) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = plain.norm1, plain.norm2, plain.mlp
        self.attn = GraphAttention(plain.attn, grid, plain.window, form)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SamEncoderGraph(nn.Module):
    """pixels (B, 3, S, S) -> image_embedding (B, 256, S/16, S/16), with `plain`'s own parameters."""

    def __init__(self, plain: VitImageEncoder, form: EncoderForm = EncoderForm.CHUNKED) -> None:
        super().__init__()
        grid = plain.pos_embed.shape[1]
        self.patch_embed, self.pos_embed, self.neck = plain.patch_embed, plain.pos_embed, plain.neck
        self.blocks = nn.ModuleList(GraphBlock(block, grid, form) for block in plain.blocks)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) float32 -> image embedding (B, 256, S/16, S/16)."""
        x = self.patch_embed(pixels) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out
