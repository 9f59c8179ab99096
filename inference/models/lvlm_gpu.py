"""The language model for a GPU: one prefix for all paths, caches of fixed size, a step that can be captured.

Every tensor of a step has the same shape at every step and the position is a tensor on the device, so the
step can be compiled once and captured as one CUDA graph. Query, key and value are one product, gate and up
another: at batch 1 a step is bound by reading weights and by starting kernels. The state that predicts a
token is an output of the step, so the state behind [SEG] costs no second pass.
Checked on the CPU in tests/inference/models/test_gpu_forms.py; its speed on a GPU has not been measured.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.lvlm import Kept, LanguageBlock, LanguageModel, rotate


class StaticLayer(nn.Module):
    """A `LanguageBlock` for single new tokens of N paths, on caches whose size never changes."""

    def __init__(self, plain: LanguageBlock) -> None:
        super().__init__()
        attention, mlp = plain.self_attn, plain.mlp
        self.per_head, self.repeats = attention.per_head, attention.repeats
        self.input_layernorm, self.post_attention_layernorm = (
            plain.input_layernorm,
            plain.post_attention_layernorm,
        )
        self.o_proj, self.down_proj = attention.o_proj, mlp.down_proj
        self.widths = [layer.out_features for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
        joined = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = nn.Parameter(torch.cat([layer.weight for layer in joined]), requires_grad=False)
        gates = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.gate_up = nn.Parameter(gates, requires_grad=False)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], prefix: Tensor, said: Tensor, position: Tensor
    ) -> Tensor:
        """x (N, 1, C), prefix (2, H, S, Dh), said (2, N, H, T, Dh), position (1,) in `said` -> (N, 1, C).

        Writes this token's key and value into `said`.
        """
        parts = F.linear(self.input_layernorm(x), self.qkv).split(self.widths, -1)
        query, key, value = (part.unflatten(-1, (-1, self.per_head)).transpose(1, 2) for part in parts)
        query, key = rotate(query, *tables), rotate(key, *tables)
        said[0].index_copy_(2, position, key)
        said[1].index_copy_(2, position, value)
        x = x + self.o_proj(self._attend(query, prefix, said, position).transpose(1, 2).flatten(2))
        gate, up = F.linear(self.post_attention_layernorm(x), self.gate_up).chunk(2, -1)
        out: Tensor = x + self.down_proj(F.silu(gate) * up)
        return out

    def _attend(self, query: Tensor, prefix: Tensor, said: Tensor, position: Tensor) -> Tensor:
        """(N, heads, 1, Dh): softmax over the shared prefix and what this path has said so far."""
        paths, heads = query.shape[:2]
        grouped = query[:, :, 0].unflatten(1, (heads // self.repeats, self.repeats)) * self.per_head**-0.5
        together = grouped.transpose(0, 1).flatten(1, 2)  # (H, N r, Dh): all paths meet the prefix at once
        before = (together @ prefix[0].transpose(1, 2)).unflatten(1, (paths, -1)).transpose(0, 1)
        since = grouped @ said[0].transpose(2, 3)
        is_later = torch.arange(said.shape[3], device=query.device) > position
        since = since.masked_fill(is_later, -torch.inf)
        weights = torch.cat([before, since], -1).float().softmax(-1).to(query.dtype)
        early, late = weights.split([prefix.shape[2], said.shape[3]], -1)
        mixed = (early.transpose(0, 1).flatten(1, 2) @ prefix[1]).unflatten(1, (paths, -1)).transpose(0, 1)
        return (mixed + late @ said[1]).flatten(1, 2).unsqueeze(2)


class StaticDecoder(nn.Module):
    """N reasoning paths behind one prefix, up to `longest` tokens each, one batch a step."""

    prefix: Tensor
    said: Tensor
    position: Tensor

    def __init__(self, plain: LanguageModel) -> None:
        super().__init__()
        self.config = plain.config
        self.embed_tokens, self.norm, self.lm_head = plain.embed_tokens, plain.norm, plain.lm_head
        self.layers = nn.ModuleList(StaticLayer(layer) for layer in plain.blocks)

    def begin(self, kept: Sequence[Kept], paths: int, longest: int) -> None:
        """Take each layer's keys and values (1, H, S, Dh) of image and question as all paths' prefix."""
        self.prefix = prefix_of(kept)
        layers, _, heads, _, per_head = self.prefix.shape
        self.said = self.prefix.new_zeros(layers, 2, paths, heads, longest, per_head)
        self.position = torch.zeros(1, dtype=torch.long, device=self.prefix.device)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """One token of each path (N, 1) -> logits (N, V) and states (N, C); the position moves on by one."""
        tables = self._tables()
        x = self.embed_tokens(token_ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, tables, self.prefix[i], self.said[i], self.position)
        states = self.norm(x)[:, -1]
        self.position.add_(1)  # on the device, so that a captured step moves on as well
        return self.lm_head(states), states

    def _tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin (1, Dh) of the position that is next."""
        half = torch.arange(0, self.config.per_head, 2, dtype=torch.float32, device=self.position.device)
        inverse = self.config.rope_base ** (-half / self.config.per_head)
        angles = (self.position + self.prefix.shape[3])[:, None] * inverse
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def prefix_of(kept: Sequence[Kept]) -> Tensor:
    """Keys and values (1, H, S, Dh) of each layer as one tensor (L, 2, H, S, Dh)."""
    return torch.stack([torch.cat(layer) for layer in kept])
