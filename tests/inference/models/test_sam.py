"""Our SAM modules against `segment_anything`, number for number."""

from typing import Any

import pytest
import torch
from torch import nn

from inference.models.sam import (
    DecoderConfig,
    MaskDecoder,
    PromptEncoder,
    VitConfig,
    VitImageEncoder,
)

SMALL_VIT = VitConfig(
    image_side=96, width=32, depth=3, heads=4, window=4, global_blocks=(1,), out_channels=16
)


def fill(module: nn.Module, seed: int) -> None:
    """Random weights everywhere, also where both sides start from zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


@torch.no_grad()
def test_vit_equals_segment_anything(reference: Any) -> None:
    theirs = reference.ImageEncoderViT(
        img_size=96, patch_size=16, embed_dim=32, depth=3, num_heads=4, out_chans=16, use_rel_pos=True,
        window_size=4, global_attn_indexes=(1,),
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    fill(theirs, 1)
    ours = VitImageEncoder(SMALL_VIT)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [1, 3])
def test_mask_decoder_equals_segment_anything(reference: Any, prompts: int) -> None:
    theirs = reference.MaskDecoder(
        transformer_dim=64,
        transformer=reference.TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=48, num_heads=8),
        num_multimask_outputs=3,
        iou_head_hidden_dim=64,
    )
    fill(theirs, 2)
    ours = MaskDecoder(DecoderConfig(width=64, mlp_width=48))
    ours.load_state_dict(theirs.state_dict())
    image, image_pe, dense = (
        torch.randn(1, 64, 8, 8),
        torch.randn(1, 64, 8, 8),
        torch.randn(prompts, 64, 8, 8),
    )
    sparse = torch.randn(prompts, 1, 64)
    want = theirs(
        image_embeddings=image, image_pe=image_pe, sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense, multimask_output=False,
    )  # fmt: skip
    got = ours(image, image_pe, sparse, dense)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_prompt_encoder_equals_segment_anything(reference: Any) -> None:
    theirs = reference.PromptEncoder(
        embed_dim=64, image_embedding_size=(8, 6), input_image_size=(128, 96), mask_in_chans=16
    )
    fill(theirs, 3)
    ours = PromptEncoder(64)
    known = {name: value for name, value in theirs.state_dict().items() if "point" not in name}
    ours.load_state_dict(known)
    mask = torch.rand(2, 1, 32, 24).round()
    sparse, dense = theirs(points=None, boxes=None, masks=mask)
    assert sparse.shape[1] == 0
    torch.testing.assert_close(ours.embed_mask(mask), dense)
    torch.testing.assert_close(ours.no_mask(8, 6)[0], theirs(points=None, boxes=None, masks=None)[1][0])
    torch.testing.assert_close(ours.pe_layer(8, 6), theirs.get_dense_pe())


@torch.no_grad()
def test_two_entries_are_the_whole_dense_prompt() -> None:
    encoder = PromptEncoder()
    fill(encoder, 4)
    region = (torch.rand(3, 16, 16) > 0.8).float()
    mask = region.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    torch.testing.assert_close(
        encoder.embed_region(region, 64, 64), encoder.embed_mask(mask), rtol=1e-5, atol=1e-5
    )


def test_vit_h_has_the_parameters_of_the_public_model(reference: Any) -> None:
    with torch.device("meta"):
        ours = VitImageEncoder(VitConfig())
        theirs = reference.ImageEncoderViT(
            img_size=1024, patch_size=16, embed_dim=1280, depth=32, num_heads=16, out_chans=256,
            use_rel_pos=True, window_size=14, global_attn_indexes=(7, 15, 23, 31),
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        )  # fmt: skip
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 637_026_048
