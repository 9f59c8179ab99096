"""RVLS2M against the long way round, and the cascade at both sizes."""

import numpy as np
import pytest
import torch

from inference.models.lite_trunk import TrunkConfig
from inference.models.lvlm import LanguageConfig, TinyTowerConfig
from inference.models.sam import DecoderConfig
from inference.models.sim4seg import (
    PAPER,
    SMALL,
    Sim4Seg,
    Sim4SegConfig,
    region_similarity,
    top_region,
)
from inference.models.tiny_sam import TinyConfig
from inference.training.rvls2m_bench import closed_region, direct_region, maps_of

TRUNK = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
TINY = Sim4SegConfig(
    tower=TinyTowerConfig(TRUNK, width=16, attention_blocks=1),
    language=LanguageConfig(vocabulary=40, width=32, depth=2, heads=4, mlp_width=48),
    encoder=TinyConfig(TRUNK, attention_blocks=1, neck_width=16),
    decoder=DecoderConfig(mlp_width=64, mask_tokens=1, attention_downsample=4),
    im_start=3,
)
SHAPES = [tuple(int(n) for n in np.random.default_rng(i).integers(64, 700, 2)) for i in range(36)]


@pytest.mark.parametrize("source_hw", SHAPES)
def test_closed_form_equals_the_long_way(source_hw: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(source_hw))
    tokens, seg = torch.randn(256, 32, generator=generator), torch.randn(32, generator=generator)
    similarity, region = closed_region(tokens, seg, maps_of(source_hw))
    means, mask = direct_region(tokens, seg, source_hw)
    torch.testing.assert_close(similarity, means, rtol=0, atol=2e-6)
    assert torch.equal(region, mask[::16, ::16])
    assert region.sum() == 36


def test_both_ways_guard_a_constant_map() -> None:
    tokens, seg = torch.ones(256, 8), torch.ones(8)
    assert not direct_region(tokens, seg, (300, 200))[0].any()
    assert not closed_region(tokens, seg, maps_of((300, 200)))[1].any()


def test_several_seg_tokens_need_no_weights() -> None:
    """CLIP-Surgery's weights of several text features are factors of whole maps: min-max undoes them."""
    tokens, segs = torch.randn(1, 256, 8), torch.randn(3, 8)
    everywhere = torch.ones(1, 16, 16)
    chances = (2 * tokens[:, :1] @ segs.T).softmax(-1)
    weights = (chances / chances.mean(-1, keepdim=True)).flatten()
    plain = region_similarity(tokens, segs, everywhere, None)
    weighted = region_similarity(tokens, segs * weights[:, None], everywhere, None)
    torch.testing.assert_close(weighted, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(top_region(weighted, everywhere, 36), top_region(plain, everywhere, 36))


def test_the_letterboxed_map_is_normalised_over_the_image_only() -> None:
    valid = torch.zeros(1, 16, 16)
    valid[:, :5] = 1
    tokens, seg = torch.randn(1, 256, 8), torch.randn(2, 8)
    similarity = region_similarity(tokens, seg, valid, None)
    assert similarity.shape == (2, 16, 16)
    assert similarity[:, 5:].abs().max() == 0
    assert similarity[:, :5].amin(dim=(1, 2)).tolist() == [0, 0]
    assert similarity[:, :5].amax(dim=(1, 2)).tolist() == [1, 1]
    region = top_region(similarity, valid, 36)
    assert region.sum(dim=(1, 2)).tolist() == [36, 36]
    assert region[:, 5:].sum() == 0


def test_fewer_valid_cells_than_asked_for() -> None:
    valid = torch.zeros(1, 16, 16)
    valid[:, :1, :9] = 1
    region = top_region(torch.rand(1, 16, 16) * valid + 0.1, valid, 36)
    assert torch.equal(region, valid)


def test_a_constant_map_gives_no_region_and_no_nan() -> None:
    valid = torch.ones(1, 16, 16)
    similarity = region_similarity(torch.ones(1, 256, 8), torch.ones(1, 8), valid, None)
    assert similarity.abs().max() == 0
    assert top_region(similarity, valid, 36).sum() == 0


def test_ties_go_to_the_lower_index() -> None:
    similarity = torch.zeros(1, 16, 16)
    similarity[0, 3, 3] = 1
    chosen = top_region(similarity, torch.ones(1, 16, 16), 4).flatten().nonzero().flatten().tolist()
    assert chosen == [0, 1, 2, 51]


@torch.no_grad()
def test_small_shapes_from_pixels_to_mask() -> None:
    model = Sim4Seg(TINY).eval()
    pixels = torch.randn(2, 3, 256, 256)
    _, prefix = model.embed_image(pixels)
    states, _ = model.language_model(torch.cat([prefix, model.embed_text(torch.randint(0, 40, (2, 6)))], 1))
    assert states.shape == (2, 2 + 256 + 6, 32)
    seg = model.phi(states[:, -1])
    similarity, region = model.locate(model.image_tokens(states), seg, torch.ones(2, 16, 16))
    assert similarity.shape == region.shape == (2, 16, 16)
    masks, iou = model.draw(model.image_encoder(pixels), seg, region)
    assert masks.shape == (2, 1, 256, 256)
    assert iou.shape == (2, 1)


@torch.no_grad()
def test_the_same_weights_take_half_the_size() -> None:
    model = Sim4Seg(TINY).eval()
    assert model.image_encoder(torch.randn(1, 3, 128, 128)).shape == (1, 256, 32, 32)


def test_the_papers_model_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        paper = Sim4Seg(PAPER)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in paper.named_children()}
    assert counts["image_encoder"] == 637_026_048
    assert counts["language_model"] == 6_738_415_616 + 3 * 2 * 4096  # three tokens added
    assert counts["text_hidden_fcs"] == 17_830_144  # models.md 1.2: 17.8 M
    assert counts["projector"] == 1024 * 4096 + 4096
    assert counts["mask_decoder"] == 4_058_340
    assert paper.image_stop == 258


def test_small_is_small() -> None:
    with torch.device("meta"):
        small = Sim4Seg(SMALL)
    assert 15_000_000 < sum(p.numel() for p in small.parameters()) < 30_000_000
