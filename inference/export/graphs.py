"""The four graphs of a Sim4Seg package, as modules whose inputs and outputs are the graphs'."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from inference.models.lvlm import Cache, Kept, LanguageConfig, LayerCache
from inference.models.sim4seg import Sim4Seg, region_similarity, top_region
from inference.runtime.language_cache import cache_names, of_layer


@dataclass(frozen=True)
class ExportSpec:
    """One graph: its module, example inputs by name, output names, and which axes may vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    domains: dict[str, int] = field(
        default_factory=dict
    )  # of operators that are not ONNX's, and their version


class HasImageEncoder(Protocol):
    """A model whose image encoder stands alone."""

    image_encoder: nn.Module


class ImageEncoderGraph(nn.Module):
    """pixels -> image_embedding."""

    def __init__(self, model: HasImageEncoder) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """(1, 3, S, S) -> (1, 256, h, w)."""
        out: Tensor = self.image_encoder(pixels)
        return out


class LanguagePrefillGraph(nn.Module):
    """Image and question in, first logits and the cache out."""

    def __init__(self, model: Sim4Seg) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, text_ids: Tensor) -> tuple[Tensor, ...]:
        """pixels (1, 3, S, S), text_ids (1, T) -> logits, image_tokens, state_embedding, keys and values."""
        _, prefix = self.model.embed_image(pixels)
        sequence = torch.cat([prefix, self.model.embed_text(text_ids)], dim=1)
        states, kept = self.model.language_model(sequence)
        last = states[:, -1]
        logits = self.model.language_model.lm_head(last)
        return logits, self.model.image_tokens(states)[0], self.model.phi(last), *flat(kept)


class LanguageStepGraph(nn.Module):
    """One token in for each path, its logits, its state and its longer cache out; a prefix is shared."""

    def __init__(self, model: Sim4Seg) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """token_ids (B, 1), cache as `step_spec` has it -> logits, state_embedding, keys and values."""
        embedded = self.model.embed_text(token_ids)
        states, kept = self.model.language_model.step(embedded, cache_of(cache))
        last = states.reshape(-1, states.shape[-1])
        return self.model.language_model.lm_head(last), self.model.phi(last), *flat(kept)


def flat(kept: Sequence[Kept]) -> tuple[Tensor, ...]:
    """Keys and values, layer after layer."""
    return tuple(part for layer in kept for part in layer)


def cache_of(parts: Sequence[Tensor]) -> Cache:
    """The `Cache` of a step graph's inputs, in their order."""
    prefix_lengths, lengths, *rest = parts
    layers = [LayerCache(*rest[start : start + 4]) for start in range(0, len(rest), 4)]
    return Cache(layers, prefix_lengths, lengths)


PATHS: dict[int, str] = {0: "batch"}
PREFIX_AXES: dict[int, str] = {0: "prefixes", 2: "prefix"}
STEP_AXES: dict[str, dict[int, str]] = {
    "prefix_keys": PREFIX_AXES,
    "prefix_values": PREFIX_AXES,
    "past_keys": {0: "batch", 2: "past"},
    "past_values": {0: "batch", 2: "past"},
    "present_keys": {0: "batch", 2: "present"},
    "present_values": {0: "batch", 2: "present"},
    "prefix_lengths": {0: "prefixes"},
}


def step_spec(module: nn.Module, config: LanguageConfig, outputs: tuple[str, ...]) -> ExportSpec:
    """A language step's graph: token and cache in, `outputs` and the longer cache out, for any paths."""

    def part(count: int, length: int) -> Tensor:
        return torch.randn(count, config.key_heads, length, config.per_head)

    inputs = {
        "token_ids": torch.tensor([[7], [8], [9], [10]]),
        "prefix_lengths": torch.tensor([9, 8]),
        "past_lengths": torch.tensor([4, 3, 2, 1]),
    }
    for layer in range(config.depth):
        inputs |= {name: part(2, 9) for name in of_layer(layer, "prefix")}
        inputs |= {name: part(4, 4) for name in of_layer(layer, "past")}
    outputs = (*outputs, *cache_names(config.depth, "present"))
    axes = {name: STEP_AXES.get(name.rpartition(".")[0] or name, PATHS) for name in (*inputs, *outputs)}
    return ExportSpec(module, inputs, outputs, axes)


def prefill_axes(depth: int) -> dict[str, dict[int, str]]:
    """Which axes of the text and the cache of a first pass may vary."""
    return {"text_ids": {1: "text"}, **{name: {2: "prefix"} for name in cache_names(depth, "prefix")}}


class MaskDecoderGraph(nn.Module):
    """RVLS2M and the mask decoder; positions and the two dense entries are constants of the graph."""

    positions: Tensor
    step: Tensor  # from the entry outside the region to the one inside
    outside: Tensor

    def __init__(self, model: Sim4Seg, embedding_hw: tuple[int, int]) -> None:
        super().__init__()
        self.mask_decoder = model.mask_decoder
        self.top_k = model.config.top_k
        height, width = embedding_hw
        self.repeats = height // model.config.grid, width // model.config.grid
        with torch.no_grad():
            nothing = model.prompt_encoder.no_mask(1, 1).flatten()
            outside, inside = model.prompt_encoder.mask_entries() if self.top_k else (nothing, nothing)
            self.register_buffer("positions", model.prompt_encoder.pe_layer(height, width))
            self.register_buffer("outside", outside[None, :, None, None].clone())
            self.register_buffer("step", (inside - outside)[None, :, None, None].clone())

    def forward(
        self, image_embedding: Tensor, image_tokens: Tensor, seg_embedding: Tensor, valid_cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(1, 256, h, w), (256, 256), (N, 256), (16, 16) -> logits, predicted IoU, similarity, region."""
        valid = valid_cells[None]
        similarity = region_similarity(image_tokens[None], seg_embedding, valid, None)
        region = top_region(similarity, valid, self.top_k)
        bits = region[:, None].repeat_interleave(self.repeats[0], 2).repeat_interleave(self.repeats[1], 3)
        dense = self.outside + bits * self.step
        masks, iou = self.mask_decoder(image_embedding, self.positions, seg_embedding[:, None], dense)
        return masks, iou, similarity, region
