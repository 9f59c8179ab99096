"""SAM's image encoder for a GPU: bfloat16, relative positions gathered inside the attention kernel.

FlexAttention adds `rel_h[q, row of k] + rel_w[q, column of k]` to each score as it is made: no matrix of
scores or of positions is ever in memory and no product is added, which is what segment-anything-fast's own
kernel does. Windows are small: there the bias is a tensor for fused attention.
Checked on the CPU in tests/inference/models/test_gpu_forms.py; its speed on a GPU has not been measured.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from inference.models.sam import VitImageEncoder
from inference.models.sam_rewritten import RewrittenAttention, RewrittenEncoder


class FlexWindowAttention(RewrittenAttention):
    """A `WindowAttention` whose bias is never a matrix of all scores, unless it is a small window's."""

    def attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values of whole squares (B, h, w, 3C) -> (B, h, w, C)."""
        batch, height, width, _ = qkv.shape
        query, key, value = self._split(qkv)
        rows, columns = self._terms(query, (height, width))
        mixed = _in_window if self.window else _over_all
        out = mixed(query, key, value, rows, columns)
        return out.transpose(1, 2).reshape(batch, height, width, -1)

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


def _in_window(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    bias_of_all = (rows[..., :, None] + columns[..., None, :]).flatten(3)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias_of_all)


def _over_all(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    width = columns.shape[-1]

    def with_positions(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + rows[b, h, q, k // width] + columns[b, h, q, k % width]

    mixed: Any = flex_attention(query, key, value, score_mod=with_positions)
    out: Tensor = mixed
    return out


def encoder_for_gpu(plain: VitImageEncoder, device: torch.device, dtype: torch.dtype) -> RewrittenEncoder:
    """The encoder on `device`, its blocks in `dtype`; patches and neck, little work, in float32."""
    encoder = RewrittenEncoder(plain, FlexWindowAttention).eval().to(device)
    encoder.blocks.to(dtype)
    return encoder
