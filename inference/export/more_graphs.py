"""The graphs of PRS-Med and MedSeg-R packages, as modules whose inputs and outputs are the graphs'."""

import torch
from torch import Tensor, nn

from inference.export.graphs import (
    ExportSpec,
    ImageEncoderGraph,
    cache_of,
    flat,
    prefill_axes,
    step_spec,
)
from inference.models.medseg_r import PRIORS, MedSegR
from inference.models.prs_med import PrsMed
from inference.reports import PRIOR_TOKENS
from inference.runtime.language_cache import cache_names


class PrsPrefillGraph(nn.Module):
    """Image and question in; first logits, the cache, and the hidden sequence out."""

    def __init__(self, model: PrsMed) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, text_ids: Tensor) -> tuple[Tensor, ...]:
        """pixels (1, 3, S, S), text_ids (1, T) -> logits, hidden_states (1, S, C), keys and values."""
        _, prefix = self.model.embed_image(pixels)
        sequence = torch.cat([prefix, self.model.embed_text(text_ids)], dim=1)
        states, kept = self.model.language_model(sequence)
        return self.model.language_model.lm_head(states[:, -1]), states, *flat(kept)


class PrsStepGraph(nn.Module):
    """One token in for each path, its logits and its longer cache out; a prefix is shared."""

    def __init__(self, model: PrsMed) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """token_ids (B, 1), cache as `step_spec` has it -> logits, keys and values."""
        states, kept = self.model.language_model.step(self.model.embed_text(token_ids), cache_of(cache))
        last = states.reshape(-1, states.shape[-1])
        return self.model.language_model.lm_head(last), *flat(kept)


class FusionDecoderGraph(nn.Module):
    """Image embedding and the hidden sequence of image and question -> mask logits and kind of image."""

    def __init__(self, model: PrsMed) -> None:
        super().__init__()
        self.mask_decoder, self.modality_head = model.mask_decoder, model.modality_head

    def forward(self, image_embedding: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 256, h, w), (1, T, C) -> logits (1, 1, S, S), kind_logits (1, modalities)."""
        logits = self.mask_decoder(image_embedding, hidden_states, None)
        return logits, self.modality_head(image_embedding.mean(dim=(2, 3)))


class SegmenterGraph(nn.Module):
    """MedSeg-R whole: pixels, priors and which modulations to keep in; mask, its IoU, kind of image out."""

    def __init__(self, model: MedSegR) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, prior_ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, S, S), (1, 3, P), (3,) -> logits (1, 1, S, S), predicted IoU (1, 1), kind_logits."""
        embedding = self.model.embed(pixels, prior_ids, kept)
        logits, iou = self.model.draw(embedding)
        return logits, iou, self.model.kind(embedding)


def prs_med_specs(model: PrsMed, side: int = 256) -> dict[str, ExportSpec]:
    """The four graphs of a PRS-Med package by file name. `model` must be in eval mode."""
    language = model.config.language
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        embedding = model.image_encoder(pixels)
    return {
        "image_encoder.onnx": ExportSpec(ImageEncoderGraph(model), {"pixels": pixels}, ("image_embedding",)),
        "language_prefill.onnx": ExportSpec(
            PrsPrefillGraph(model),
            {"pixels": pixels, "text_ids": torch.tensor([[4, 7, 8, 9, 10, 11]])},
            ("logits", "hidden_states", *cache_names(language.depth, "prefix")),
            {**prefill_axes(language.depth), "hidden_states": {1: "sequence"}},
        ),
        "language_step.onnx": step_spec(PrsStepGraph(model), language, ("logits",)),
        "mask_decoder.onnx": ExportSpec(
            FusionDecoderGraph(model),
            {
                "image_embedding": embedding,
                "hidden_states": torch.randn(1, model.image_stop + 6, language.width),
            },
            ("low_res_logits", "kind_logits"),
            {"hidden_states": {1: "sequence"}},
        ),
    }


def medseg_r_specs(model: MedSegR, side: int = 256) -> dict[str, ExportSpec]:
    """The one graph of a MedSeg-R package by file name. `model` must be in eval mode."""
    inputs = {
        "pixels": torch.randn(1, 3, side, side),
        "prior_ids": torch.randint(0, 300, (1, PRIORS, PRIOR_TOKENS)),
        "kept": torch.ones(PRIORS),
    }
    outputs = ("low_res_logits", "iou_predictions", "kind_logits")
    return {"segmenter.onnx": ExportSpec(SegmenterGraph(model), inputs, outputs)}
