"""LVLM: vision tower, projector, language model. Shared by sim4seg and prs_med.

The language model has LLaMA's form (Touvron et al., arXiv 2302.13971) and the parameter names of
the public checkpoints; the tower is CLIP's ViT (Radford et al. 2021) or a small convolutional one.
Checked in numbers against `transformers` in tests/inference/models/test_lvlm.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.tiny_sam import ConvNorm, GridAttention, ResidualBlock


@dataclass(frozen=True)
class LanguageConfig:
    """Size of the language model; the defaults are LLaMA-7B's."""

    vocabulary: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    mlp_width: int = 11008
    norm_eps: float = 1e-6
    rope_base: float = 10000.0


@dataclass(frozen=True)
class ClipConfig:
    """Size of CLIP's vision tower; the defaults are ViT-L/14 at 224 pixels."""

    side: int = 224  # pixels
    patch_side: int = 14  # pixels
    width: int = 1024
    depth: int = 24
    heads: int = 16
    select_layer: int = -2  # hidden state that LLaVA reads

    @property
    def tokens(self) -> int:
        """Image tokens, without the class token."""
        return int((self.side // self.patch_side) ** 2)


@dataclass(frozen=True)
class TinyTowerConfig:
    """Size of the small tower: one token per 16 x 16 pixels of the 256-pixel square."""

    widths: tuple[int, int, int, int] = (48, 96, 192, 256)  # at strides 4, 8, 16, 32
    width: int = 256
    heads: int = 4
    attention_blocks: int = 2
    grid: int = 16

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.grid**2


class RmsNorm(nn.Module):
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normal.to(x.dtype)


def rotary_tables(
    start: Tensor | int, length: Tensor | int, head_width: int, base: float
) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_width) of positions start .. start + length - 1 (Su et al. 2021)."""
    inverse = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    positions = torch.arange(length, dtype=torch.float32) + start  # type: ignore[arg-type]
    angles = positions[:, None] * inverse[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, Dh) by its positions; halves, not pairs, as in the public checkpoints."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


class CausalAttention(nn.Module):
    """Self-attention with rotary positions and a key-value cache."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> (B, T, C), keys and values (B, H, S + T, Dh).

        With a `past` only one new token may come, so no mask is needed there.
        """
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *tables), rotate(key, *tables)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), key, value


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LanguageBlock(nn.Module):
    """Attention, then MLP, each behind a norm and beside the identity."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = CausalAttention(config)
        self.mlp = GatedMlp(config)
        self.input_layernorm = RmsNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RmsNorm(config.width, config.norm_eps)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> (B, T, C) and this layer's keys and values."""
        attended, keys, values = self.self_attn(self.input_layernorm(x), tables, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class LanguageModel(nn.Module):
    """LLaMA-form decoder. `forward` gives states; `lm_head` turns states into logits."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(LanguageBlock(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(
        self, x: Tensor, past_keys: Tensor | None = None, past_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layers on embeddings.

        Parameters
        ----------
        x
            Embeddings (B, T, C); T = 1 where a past is given.
        past_keys, past_values
            (L, B, H, S, Dh) of what came before, or None at the start.

        Returns
        -------
        tuple
            States after the final norm (B, T, C); keys and values (L, B, H, S + T, Dh).
        """
        start = 0 if past_keys is None else past_keys.shape[3]
        tables = rotary_tables(
            start, x.shape[1], self.config.width // self.config.heads, self.config.rope_base
        )
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            past = None if past_keys is None or past_values is None else (past_keys[i], past_values[i])
            x, key, value = layer(x, tables, past)
            keys.append(key)
            values.append(value)
        return self.norm(x), torch.stack(keys), torch.stack(values)


class ClipBlock(nn.Module):
    """CLIP's encoder layer, with its quick GELU."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        normal = self.layer_norm1(x)
        query, key, value = (
            layer(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.layer_norm2(x))
        return x + self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class ClipTower(nn.Module):
    """CLIP's ViT; gives the patch tokens of one inner layer, as LLaVA reads them."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_side, config.patch_side, bias=False)
        self.position_embedding = nn.Embedding(config.tokens + 1, config.width)
        self.pre_layrnorm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(ClipBlock(config) for _ in range(config.depth))
        self.post_layernorm = nn.LayerNorm(config.width)  # of the checkpoint; not read here

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, side, side) -> tokens (B, tokens, width), rows first."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        x = self.pre_layrnorm(torch.cat([first, patches], dim=1) + self.position_embedding.weight)
        for layer in self.layers[: self.config.depth + 1 + self.config.select_layer]:
            x = layer(x)
        out: Tensor = x[:, 1:]
        return out


class TinyTower(nn.Module):
    """Small tower: down to stride 32 for context, back up to stride 16 for place."""

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__()
        a, b, c, d = config.widths
        self.stem = nn.Sequential(ConvNorm(3, 24, 2), nn.ReLU(), ConvNorm(24, a, 2), nn.ReLU())
        self.stride8 = nn.Sequential(ConvNorm(a, b, 2), nn.ReLU(), ResidualBlock(b))
        self.stride16 = nn.Sequential(ConvNorm(b, c, 2), nn.ReLU(), ResidualBlock(c), ResidualBlock(c))
        self.stride32 = nn.Sequential(
            ConvNorm(c, d, 2),
            nn.ReLU(),
            ResidualBlock(d),
            *(GridAttention(d, config.heads) for _ in range(config.attention_blocks)),
        )
        self.lateral = nn.Conv2d(c, config.width, 1)
        self.descend = nn.Conv2d(d, config.width, 1)
        self.mix = ResidualBlock(config.width)
        self.positions = nn.Parameter(torch.randn(1, config.tokens, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 256, 256) -> tokens (B, 256, width), rows first."""
        middle = self.stride16(self.stride8(self.stem(pixels)))
        deep = F.interpolate(self.descend(self.stride32(middle)), scale_factor=2.0, mode="nearest")
        tokens = self.mix(self.lateral(middle) + deep).flatten(2).transpose(1, 2)
        out: Tensor = self.norm(tokens) + self.positions
        return out
