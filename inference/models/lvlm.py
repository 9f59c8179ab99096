"""LVLM: vision tower, projector, language model. Shared by sim4seg and prs_med.

The language model has LLaMA's form (Touvron et al., arXiv 2302.13971), with Mistral's grouped keys
(Jiang et al., arXiv 2310.06825) where `kv_heads` says so, and the parameter names of the public
checkpoints; the tower is CLIP's ViT (Radford et al. 2021) or a small convolutional one.
Checked in numbers against `transformers` in tests/inference/models/test_lvlm.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.lite_trunk import LiteTrunk, TrunkConfig
from inference.models.tiny_sam import GridAttention, ResidualBlock


@dataclass(frozen=True)
class LanguageConfig:
    """Size of the language model; the defaults are LLaMA-7B's. No sliding window: Mistral 0.2 has none."""

    vocabulary: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    mlp_width: int = 11008
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    kv_heads: int = 0  # heads of keys and values; 0 is as many as queries have
    head_width: int = 0  # 0 is width / heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, as the cache holds them."""
        return self.kv_heads or self.heads

    @property
    def per_head(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads


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

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    width: int = 256
    heads: int = 4
    attention_blocks: int = 2
    grid: int = 16

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.grid**2


Kept = tuple[Tensor, Tensor]  # keys and values (B, key heads, T, Dh) of one layer


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


def rotary_tables(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (..., head_width) of `positions` (...) in the sequence (Su et al. 2021)."""
    inverse = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = positions[..., None].float() * inverse
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, Dh) by its positions; halves, not pairs, as in the public checkpoints."""
    half = int(x.shape[-1]) // 2  # a constant of a graph
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class LayerCache(NamedTuple):
    """Keys and values that one layer keeps: of G prefixes, and of what each of B sequences said since."""

    prefix_keys: Tensor  # (G, key heads, S, Dh)
    prefix_values: Tensor
    keys: Tensor  # (B, key heads, T, Dh); T may be 0
    values: Tensor


class Cache(NamedTuple):
    """What came before, of all layers.

    A prefix (image and question) is held once, whatever the number of its reasoning paths: each is that of
    B / G sequences in turn. Shorter prefixes are filled up at their end, shorter answers at their beginning.
    A tensor for each layer: to take one out of all costs a copy of the whole at every step.
    """

    layers: Sequence[LayerCache]
    prefix_lengths: Tensor  # (G,) int64, 1..S
    lengths: Tensor  # (B,) int64, 0..T

    def positions(self) -> Tensor:
        """Of the next token of each sequence (B,)."""
        before = self.prefix_lengths[:, None]
        return (before + self.lengths.reshape(self.prefix_lengths.shape[0], -1)).flatten()

    def layout(self) -> "Layout":
        """How the cache is arranged, for all layers."""
        first = self.layers[0]
        longest, length = first.prefix_keys.shape[2], first.keys.shape[2]
        is_beyond = torch.arange(longest) >= self.prefix_lengths[:, None]
        is_before = torch.arange(length + 1) < length - self.lengths[:, None]
        hidden = [torch.where(each, -torch.inf, 0.0)[:, None, None] for each in (is_beyond, is_before)]
        return Layout(self.prefix_lengths.shape[0], longest, hidden[0], hidden[1])


class Layout(NamedTuple):
    """What is the same for all layers of a `Cache`: in a graph it is found once."""

    groups: int  # G
    longest: int  # S
    prefix_filling: Tensor  # (G, 1, 1, S), added to the scores: -inf where a prefix is filled up
    filling: Tensor  # (B, 1, 1, T + 1), likewise


def attend_cached(query: Tensor, cache: LayerCache, layout: Layout) -> Tensor:
    """Attention of one new token each, query (B, heads, 1, Dh), over one layer's cache -> the same shape.

    The queries of all sequences of a prefix meet it in one matrix product.
    """
    groups, length = layout.groups, layout.longest
    heads, key_heads, per_head = (int(each) for each in (query.shape[1], cache.keys.shape[1], query.shape[3]))
    repeats = heads // key_heads
    grouped = query.reshape(-1, key_heads, repeats, per_head) * per_head**-0.5

    def together(x: Tensor, width: int) -> Tensor:  # (B, key heads, r, n) -> (G, key heads, B/G r, n)
        by_group = x.reshape(groups, -1, key_heads, repeats, width).transpose(1, 2)
        return by_group.reshape(groups, key_heads, -1, width)

    def apart(x: Tensor, width: int) -> Tensor:
        by_group = x.reshape(groups, key_heads, -1, repeats, width).transpose(1, 2)
        return by_group.reshape(-1, key_heads, repeats, width)

    before = together(grouped, per_head) @ cache.prefix_keys.transpose(2, 3) + layout.prefix_filling
    since = grouped @ cache.keys.transpose(2, 3) + layout.filling
    weights = torch.cat([apart(before, length), since], dim=-1).softmax(dim=-1)
    early, late = weights[..., :length], weights[..., length:]
    mixed = apart(together(early, length) @ cache.prefix_values, per_head) + late @ cache.values
    return mixed.reshape(-1, heads, 1, per_head)


class CausalAttention(nn.Module):
    """Self-attention with rotary positions and a key-value cache."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.per_head = config.per_head
        self.repeats = config.heads // config.key_heads
        inner, narrow = config.heads * config.per_head, config.key_heads * config.per_head
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, narrow, bias=False)
        self.v_proj = nn.Linear(config.width, narrow, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Kept]:
        """x (B, T, C), causal -> (B, T, C), keys and values (B, key heads, T, Dh)."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.per_head)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *tables), rotate(key, *tables)
        wide_key, wide_value = key, value
        if self.repeats > 1:
            wide_key, wide_value = (x.repeat_interleave(self.repeats, dim=1) for x in (key, value))
        mixed = F.scaled_dot_product_attention(query, wide_key, wide_value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (key, value)

    def step(
        self, x: Tensor, tables: tuple[Tensor, Tensor], cache: LayerCache, layout: Layout
    ) -> tuple[Tensor, Kept]:
        """One new token each, x (B, 1, C) -> (B, 1, C), keys and values with it (B, key heads, T + 1, Dh).

        Shapes are constants but for one of each: in a graph a length that is asked for costs an operator.
        """
        query, key, value = (
            layer(x).reshape(-1, layer.out_features // self.per_head, 1, self.per_head)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *tables), rotate(key, *tables)
        key, value = torch.cat([cache.keys, key], dim=2), torch.cat([cache.values, value], dim=2)
        mixed = attend_cached(query, cache._replace(keys=key, values=value), layout)
        return self.o_proj(mixed.reshape(-1, 1, self.o_proj.in_features)), (key, value)


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

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Kept]:
        """x (B, T, C) -> (B, T, C), and this layer's keys and values."""
        attended, kept = self.self_attn(self.input_layernorm(x), tables)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept

    def step(
        self, x: Tensor, tables: tuple[Tensor, Tensor], cache: LayerCache, layout: Layout
    ) -> tuple[Tensor, Kept]:
        """One new token each, x (B, 1, C) -> (B, 1, C), and this layer's keys and values with it."""
        attended, kept = self.self_attn.step(self.input_layernorm(x), tables, cache, layout)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class LanguageModel(nn.Module):
    """LLaMA-form decoder. `forward` gives states; `lm_head` turns states into logits."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(LanguageBlock(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)

    @property
    def blocks(self) -> list[LanguageBlock]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, LanguageBlock)]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Kept]]:
        """Embeddings (B, T, C) -> states after the final norm (B, T, C); each layer's keys and values."""
        tables = self._tables(torch.arange(x.shape[1]))
        kept: list[Kept] = []
        for layer in self.blocks:
            x, of_layer = layer(x, tables)
            kept.append(of_layer)
        return self.norm(x), kept

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, list[Kept]]:
        """One new token each: as `forward`, for embeddings (B, 1, C) behind what `cache` holds.

        The keys and values are those of the answers, the new token's among them; of the prefixes none.
        """
        tables, layout = self._tables(cache.positions()[:, None, None]), cache.layout()
        kept: list[Kept] = []
        for layer, held in zip(self.blocks, cache.layers, strict=True):
            x, of_layer = layer.step(x, tables, held, layout)
            kept.append(of_layer)
        return self.norm(x), kept

    def _tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_tables(positions, self.config.per_head, self.config.rope_base)


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
        _, _, middle, deep = config.trunk.outputs
        self.trunk = LiteTrunk(config.trunk)
        self.attention = nn.Sequential(
            *(GridAttention(deep, config.heads) for _ in range(config.attention_blocks))
        )
        self.lateral = nn.Conv2d(middle, config.width, 1)
        self.descend = nn.Conv2d(deep, config.width, 1)
        self.mix = ResidualBlock(config.width)
        self.positions = nn.Parameter(torch.randn(1, config.tokens, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 256, 256) -> tokens (B, 256, width), rows first."""
        _, _, middle, deepest = self.trunk(pixels)
        deep = self.descend(self.attention(deepest))
        deep = F.interpolate(deep, scale_factor=2.0, mode="nearest")
        tokens = self.mix(self.lateral(middle) + deep).flatten(2).transpose(1, 2)
        out: Tensor = self.norm(tokens) + self.positions
        return out


class Lvlm(nn.Module):
    """Tower, projector and language model: the sequence is `start_ids`, the image, then text."""

    def __init__(
        self,
        tower: ClipConfig | TinyTowerConfig,
        language: LanguageConfig,
        start_ids: tuple[int, ...],
        projector_layers: int = 1,
    ) -> None:
        super().__init__()
        self.start_ids = start_ids
        self.tokens = tower.tokens
        is_small = isinstance(tower, TinyTowerConfig)
        self.vision_tower: nn.Module = TinyTower(tower) if is_small else ClipTower(tower)  # type: ignore[arg-type]
        self.projector = projector(tower.width, language.width, projector_layers)
        self.language_model = LanguageModel(language)

    @property
    def image_start(self) -> int:
        """Index of the first image token in the language model's sequence."""
        return len(self.start_ids)

    @property
    def image_stop(self) -> int:
        """Index after the last image token in the language model's sequence."""
        return self.image_start + self.tokens

    def embed_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, S, S) -> tower tokens (B, n, W); sequence of start and image (B, start + n, C)."""
        tokens = self.vision_tower(pixels)
        ids = torch.tensor([self.start_ids], device=pixels.device)
        first = self.language_model.embed_tokens(ids).expand(pixels.shape[0], -1, -1)
        return tokens, torch.cat([first.to(tokens.dtype), self.projector(tokens)], dim=1)

    def embed_text(self, text_ids: Tensor) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, C)."""
        out: Tensor = self.language_model.embed_tokens(text_ids)
        return out


def projector(inputs: int, outputs: int, layers: int) -> nn.Module:
    """LLaVA's join: one linear layer, or `mlp2x_gelu` and deeper ones as LLaVA 1.5 builds them."""
    if layers == 1:
        return nn.Linear(inputs, outputs)
    parts: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(layers - 1):
        parts += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*parts)
