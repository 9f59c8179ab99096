"""MedSeg-R begins as plain SAM, works without a report, and loses each modulation when told to."""

import pytest
import torch
from torch import Tensor

from inference.models.lite_trunk import TrunkConfig
from inference.models.medseg_r import (
    PAPER,
    SMALL,
    DeformableSampling,
    DynamicConvolution,
    MedSegR,
    MedSegRConfig,
    PriorConfig,
    SpatialAttention,
)
from inference.models.sam import DecoderConfig, VitConfig
from inference.models.tiny_sam import TinyConfig

TRUNK = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
PRIORS = PriorConfig(vocabulary=50, width=16, depth=1, heads=4, mlp_width=32, pooled=4, sites=(0, 1))
DECODER = DecoderConfig(mlp_width=64, mask_tokens=1, attention_downsample=4)
TINY = MedSegRConfig(
    encoder=TinyConfig(TRUNK, attention_blocks=1, neck_width=16),
    decoder=DECODER,
    priors=PRIORS,
)
VIT = MedSegRConfig(
    encoder=VitConfig(image_side=96, width=32, depth=3, heads=4, window=4, global_blocks=(1,)),
    decoder=DECODER,
    priors=PriorConfig(vocabulary=50, width=16, depth=2, heads=4, mlp_width=32, pooled=3, sites=(0, 2)),
)


def build(config: MedSegRConfig, gate: float = 0.0) -> MedSegR:
    torch.manual_seed(0)
    model = MedSegR(config).eval()
    for adapter in model.adapters.values():
        torch.nn.init.constant_(adapter.gates, gate)
    return model


def inputs(side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (2, 3, 5), generator=generator)
    return torch.randn(2, 3, side, side, generator=generator), ids


@torch.no_grad()
@pytest.mark.parametrize(("config", "side"), [(TINY, 64), (VIT, 96)])
def test_it_begins_as_plain_sam(config: MedSegRConfig, side: int) -> None:
    model, (pixels, ids) = build(config), inputs(side)
    assert torch.equal(model.embed(pixels, ids), model.image_encoder(pixels))
    assert torch.equal(model.embed(pixels, ids * 0), model.image_encoder(pixels))


@torch.no_grad()
@pytest.mark.parametrize(("config", "side"), [(TINY, 64), (VIT, 96)])
def test_each_modulation_can_be_removed(config: MedSegRConfig, side: int) -> None:
    model, (pixels, ids) = build(config, gate=0.5), inputs(side)
    whole = model.embed(pixels, ids)
    for i in range(3):
        kept = torch.ones(3)
        kept[i] = 0
        assert not torch.allclose(model.embed(pixels, ids, kept), whole)
    assert torch.equal(model.embed(pixels, ids, torch.zeros(3)), model.image_encoder(pixels))


@torch.no_grad()
@pytest.mark.parametrize("field", [0, 1, 2])
def test_each_field_steers(field: int) -> None:
    model, (pixels, ids) = build(TINY, gate=0.5), inputs(64)
    other = ids.clone()
    other[:, field] = (other[:, field] + 7) % 49 + 1
    assert not torch.allclose(model.embed(pixels, other), model.embed(pixels, ids))


@torch.no_grad()
def test_a_missing_field_is_the_learned_vector() -> None:
    model, (_, ids) = build(TINY), inputs(64)
    ids[:, 1] = 0
    read = model.cognitive.read(ids)
    torch.testing.assert_close(read[:, 1], (model.cognitive.unknown + model.cognitive.kind)[1].expand(2, -1))
    ids[:, 0, 3:] = 0  # padding does not count
    short = ids[:, :, :3]
    torch.testing.assert_close(model.cognitive.read(ids)[:, 0], model.cognitive.read(short)[:, 0])


def test_gates_learn_from_zero() -> None:
    model, (pixels, ids) = build(TINY), inputs(64)
    logits, iou = model.draw(model.embed(pixels, ids))
    assert logits.shape == (2, 1, 64, 64)
    assert iou.shape == (2, 1)
    assert model.kind(model.embed(pixels, ids)).shape == (2, 7)
    logits.square().mean().backward()
    for adapter in model.adapters.values():
        assert (adapter.gates.grad != 0).all()


@torch.no_grad()
def test_mixed_outputs_are_the_mixed_kernel() -> None:
    layer = DynamicConvolution(6, 8, 4)
    x, texture = torch.randn(2, 6, 9, 9), torch.randn(2, 8)
    shares = layer.choose(texture).softmax(-1)
    kernels = layer.kernels.weight.view(6, 4, 3, 3)
    for i in range(2):
        kernel = (kernels * shares[i].view(1, 4, 1, 1)).sum(1, keepdim=True)
        want = layer.point(torch.nn.functional.conv2d(x[i : i + 1], kernel, padding=1, groups=6))
        torch.testing.assert_close(layer(x, texture)[i : i + 1], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_that_do_not_move_are_a_convolution() -> None:
    layer = DeformableSampling(6, 4, 3.0)
    torch.nn.init.zeros_(layer.steer.weight)
    torch.nn.init.zeros_(layer.steer.bias)  # no offset, every weight a half
    x = torch.randn(1, 6, 7, 11)
    kernel = layer.weigh.weight.view(4, 4, 3, 3) / 2
    same = torch.nn.functional.conv2d(layer.down(x), kernel, layer.weigh.bias, padding=1)
    torch.testing.assert_close(layer(x, torch.randn(1, 4)), layer.up(same), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_follow_their_offsets() -> None:
    layer = DeformableSampling(1, 1, 3.0)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    for part in (layer.down, layer.up):
        torch.nn.init.ones_(part.weight)
    layer.weigh.weight[0, 4] = 2.0  # the middle tap alone, undoing the half
    layer.steer.bias[2 * 4 + 1] = torch.atanh(torch.tensor(1 / 3))  # its dx: one cell to the right
    x = torch.arange(35.0).view(1, 1, 5, 7)
    got = layer(x, torch.zeros(1, 1))
    torch.testing.assert_close(got[..., :-1], x[..., 1:], rtol=1e-4, atol=1e-4)


def test_sizes() -> None:
    with torch.device("meta"):
        paper, small = MedSegR(PAPER), MedSegR(SMALL)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in paper.named_children()}
    assert counts["image_encoder"] == 89_670_912  # SAM ViT-B
    assert sum(p.numel() for p in small.parameters()) < 12_000_000


@torch.no_grad()
def test_a_place_is_known_where_the_image_is_plain() -> None:
    torch.manual_seed(0)
    attention = SpatialAttention(8, 4)
    attention.place.weight.zero_()
    attention.place.weight[0, 1, 0, 0] = 1.0  # of the quadratic, x alone
    attention.project.weight.zero_()
    attention.mix.weight.fill_(0.1)
    wanted = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    right, left = attention(torch.ones(2, 8, 20, 20), wanted)[:, 0, 4:-4, 4:-4]  # without the padded edge
    assert (right.diff(dim=1) > 0).all()
    assert (left.diff(dim=1) < 0).all()
    assert torch.allclose(right.diff(dim=0), torch.zeros(1), atol=1e-6)
