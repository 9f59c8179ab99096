"""The graphs of a full-size SAM: encoder in the form asked for, decoder with RVLS2M or with given regions."""

import torch
from torch import Tensor, nn

from inference.export.graphs import ExportSpec
from inference.export.packed_masks import PackedMasks
from inference.export.sam_decoder import SharedMaskDecoder
from inference.export.sam_encoder import EncoderForm, SamEncoderGraph
from inference.models.sam import VitImageEncoder
from inference.models.sim4seg import region_similarity, top_region

PROMPTS = {0: "prompts"}


class RegionDecoderGraph(nn.Module):
    """RVLS2M and the mask decoder in one graph, with the names that a sim4seg package serves."""

    def __init__(self, decoder: SharedMaskDecoder, top_k: int) -> None:
        super().__init__()
        self.decoder, self.top_k = decoder, top_k

    def forward(
        self, image_embedding: Tensor, image_tokens: Tensor, seg_embedding: Tensor, valid_cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(1, C, h, w), (g * g, C), (P, C), (g, g) -> logits, predicted IoU, similarity, region."""
        valid = valid_cells[None]
        similarity = region_similarity(image_tokens[None], seg_embedding, valid, None)
        region = top_region(similarity, valid, self.top_k)
        return *self.decoder(image_embedding, seg_embedding, region), similarity, region


class BitsDecoderGraph(nn.Module):
    """Prompts with regions of their own in, masks as bits out: what leaves a GPU is 1/128 of float logits."""

    def __init__(self, decoder: SharedMaskDecoder, side: int) -> None:
        super().__init__()
        self.decoder, self.packed = decoder, PackedMasks(4 * decoder.hw[0], side)

    def forward(
        self, image_embedding: Tensor, seg_embedding: Tensor, region: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(1, C, h, w), (P, C), (P, g, g), 0 or 1 -> bits (P, side, side / 8) uint8, predicted IoU (P, 1)."""
        logits, iou = self.decoder(image_embedding, seg_embedding, region)
        return self.packed(logits), iou


def encoder_spec(encoder: VitImageEncoder, form: EncoderForm, batch: int = 1) -> ExportSpec:
    """The image encoder on `batch` images at the side its weights were made for."""
    side = encoder.pos_embed.shape[1] * encoder.patch_embed.proj.stride[0]
    pixels = torch.randn(batch, 3, side, side)
    domains = {"com.microsoft": 1} if form is EncoderForm.FUSED else {}
    return ExportSpec(
        SamEncoderGraph(encoder, form), {"pixels": pixels}, ("image_embedding",), domains=domains
    )


def region_decoder_spec(decoder: SharedMaskDecoder, grid: int, top_k: int) -> ExportSpec:
    """The decoder that finds its regions itself."""
    width = decoder.outside.shape[0]
    inputs = {
        "image_embedding": torch.randn(1, width, *decoder.hw),
        "image_tokens": torch.randn(grid**2, width),
        "seg_embedding": torch.randn(2, width),
        "valid_cells": torch.ones(grid, grid),
    }
    outputs = ("low_res_logits", "iou_predictions", "similarity", "region")
    axes = dict.fromkeys(("seg_embedding", *outputs), PROMPTS)
    return ExportSpec(RegionDecoderGraph(decoder, top_k), inputs, outputs, axes)


def bits_decoder_spec(
    decoder: SharedMaskDecoder, grid: int, side: int, prompts: int | None = None
) -> ExportSpec:
    """The decoder that is given its regions; `prompts` fixes their number (CUDA graphs want that)."""
    width = decoder.outside.shape[0]
    count = prompts or 2
    inputs = {
        "image_embedding": torch.randn(1, width, *decoder.hw),
        "seg_embedding": torch.randn(count, width),
        "region": torch.randint(0, 2, (count, grid, grid)).float(),
    }
    outputs = ("mask_bits", "iou_predictions")
    axes = {} if prompts else dict.fromkeys(("seg_embedding", "region", *outputs), PROMPTS)
    return ExportSpec(BitsDecoderGraph(decoder, side), inputs, outputs, axes)
