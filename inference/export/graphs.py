"""The four graphs of a Sim4Seg package, as modules whose inputs and outputs are the graphs'."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from inference.models.lvlm import Cache, LanguageConfig
from inference.models.sim4seg import Sim4Seg, region_similarity, top_region


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

    def forward(self, pixels: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """pixels (1, 3, S, S), text_ids (1, T) -> logits, keys, values, image_tokens, state_embedding."""
        _, prefix = self.model.embed_image(pixels)
        sequence = torch.cat([prefix, self.model.embed_text(text_ids)], dim=1)
        states, keys, values = self.model.language_model(sequence)
        last = states[:, -1]
        logits = self.model.language_model.lm_head(last)
        return logits, keys, values, self.model.image_tokens(states)[0], self.model.phi(last)


class LanguageStepGraph(nn.Module):
    """One token in for each path, its logits, its state and its longer cache out; the prefix is shared."""

    def __init__(self, model: Sim4Seg) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, *cache: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """token_ids (B, 1), cache as `Cache` -> logits, keys, values, state_embedding."""
        embedded = self.model.embed_text(token_ids)
        states, keys, values = self.model.language_model(embedded, Cache(*cache))
        last = states[:, -1]
        return self.model.language_model.lm_head(last), keys, values, self.model.phi(last)


PATHS: dict[int, str] = {0: "batch"}
STEP_AXES: dict[str, dict[int, str]] = {
    "token_ids": PATHS,
    "prefix_keys": {3: "prefix"},
    "prefix_values": {3: "prefix"},
    "past_keys": {1: "batch", 3: "past"},
    "past_values": {1: "batch", 3: "past"},
    "logits": PATHS,
    "present_keys": {1: "batch", 3: "present"},
    "present_values": {1: "batch", 3: "present"},
    "state_embedding": PATHS,
}


def step_spec(module: nn.Module, config: LanguageConfig, outputs: tuple[str, ...]) -> ExportSpec:
    """A language step's graph: token and cache in, `outputs` out, any number of paths."""

    def part(length: int) -> Tensor:
        return torch.randn(config.depth, 1, config.key_heads, length, config.per_head)

    inputs = {
        "token_ids": torch.tensor([[7]]),
        "prefix_keys": part(9),
        "prefix_values": part(9),
        "past_keys": part(4),
        "past_values": part(4),
    }
    axes = {name: STEP_AXES[name] for name in (*inputs, *outputs)}
    return ExportSpec(module, inputs, outputs, axes)


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
