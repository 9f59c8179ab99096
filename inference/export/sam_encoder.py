"""SAM's ViT image encoder in the forms that graphs are made of: the same numbers, less work or less memory.

The forms differ in how the decomposed relative positions meet the scores of a global block; all are exact
in real arithmetic (inference.md, 2.1).
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inference.models.sam import VitImageEncoder, WindowAttention
from inference.models.sam_rewritten import RewrittenAttention, RewrittenEncoder

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


class GraphAttention(RewrittenAttention):
    """A `WindowAttention` whose position terms are part of queries and keys."""

    places: Tensor

    def __init__(self, plain: WindowAttention, grid: int, window: int, form: EncoderForm) -> None:
        super().__init__(plain, grid, window)
        self.form = form
        self.register_buffer("places", places_of(len(self.rows), len(self.columns)))

    def attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values of whole squares (B, h, w, 3C) -> (B, h, w, C)."""
        batch, height, width, channels = qkv.shape
        split = qkv.view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        wide_query, wide_key = augmented(query, key, (self.rows, self.columns), self.places)
        mixed = self._mixed(wide_query, wide_key, value)
        return mixed.view(batch, height, width, channels // 3)

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads, N, D) each -> (B, N, C), in this form."""
        if self.form is EncoderForm.FUSED and not self.window:
            flat = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
            fused: Tensor = FusedAttention.apply(*flat, self.heads)  # type: ignore[no-untyped-call]
            return fused
        parts: Sequence[Tensor] = (query,)
        if self.form is EncoderForm.CHUNKED and not self.window:
            parts = query.split(CHUNK, 2)
        turned = key.transpose(-1, -2)
        mixed = torch.cat([(part @ turned).softmax(-1) @ value for part in parts], 2)
        return mixed.transpose(1, 2).flatten(2)


class SamEncoderGraph(RewrittenEncoder):
    """pixels (B, 3, S, S) -> image_embedding (B, 256, S/16, S/16), with `plain`'s own parameters."""

    def __init__(self, plain: VitImageEncoder, form: EncoderForm = EncoderForm.CHUNKED) -> None:
        super().__init__(plain, partial(GraphAttention, form=form))
