"""PRS-Med: the mask sees image and question, never the answer; and the sizes of the paper."""

import pytest
import torch
from torch import Tensor

from inference.models.lite_trunk import TrunkConfig
from inference.models.lvlm import LanguageConfig, TinyTowerConfig
from inference.models.prs_med import PAPER, SMALL, EncoderLayer, FusionConfig, PrsMed, PrsMedConfig
from inference.models.tiny_sam import TinyConfig

TRUNK = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
TINY = PrsMedConfig(
    tower=TinyTowerConfig(TRUNK, width=16, attention_blocks=1),
    language=LanguageConfig(vocabulary=768, width=32, depth=2, heads=4, mlp_width=48),
    encoder=TinyConfig(TRUNK, attention_blocks=1, neck_width=16),
    fusion=FusionConfig(head_widths=(16, 8), grid=16, stride=4, prompt_hidden=32, mlp_width=64),
    projector_layers=1,
    modalities=7,
    start_ids=(1, 3),
)
ANSWER = slice(6, 11)  # of the text; what comes before it is the question


@pytest.fixture(scope="module")
def model() -> PrsMed:
    torch.manual_seed(0)
    return PrsMed(TINY).eval()


@torch.no_grad()
def masks(model: PrsMed, text: Tensor, question: Tensor, pixels: Tensor) -> Tensor:
    states = model.read(pixels, text)
    return model.draw(model.image_encoder(pixels), *model.condition(states, question))


def exchange(lengths: tuple[int, ...] = (6, 6)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(6, 768, (len(lengths), 11), generator=generator)
    question = torch.arange(11)[None] < torch.tensor(lengths)[:, None]
    return text, question, torch.randn(len(lengths), 3, 256, 256, generator=generator)


def test_the_answer_cannot_change_the_mask(model: PrsMed) -> None:
    text, question, pixels = exchange()
    told = text.clone()
    told[:, ANSWER] = torch.randint(6, 768, (2, 5))
    assert torch.equal(masks(model, text, question, pixels), masks(model, told, question, pixels))


def test_the_question_can(model: PrsMed) -> None:
    text, question, pixels = exchange()
    asked = text.clone()
    asked[:, 2] = (asked[:, 2] + 1) % 768
    assert not torch.equal(masks(model, text, question, pixels), masks(model, asked, question, pixels))


def test_the_shorter_question_of_a_batch_sees_no_answer(model: PrsMed) -> None:
    text, question, pixels = exchange((4, 9))
    alone = masks(model, text[:1, :4], question[:1, :4], pixels[:1])
    together = masks(model, text, question, pixels)[:1]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_training_reads_what_serving_reads(model: PrsMed) -> None:
    """Teacher-forced states of the question are those of the question alone: no second pass is needed."""
    text, question, pixels = exchange()
    with torch.no_grad():
        forced = model.condition(model.read(pixels, text), question)[0]
        served = model.read(pixels, text[:, :6])
    torch.testing.assert_close(forced, served, rtol=1e-4, atol=1e-5)


def test_shapes_and_gradients(model: PrsMed) -> None:
    text, question, pixels = exchange()
    embedding = model.image_encoder(pixels)
    logits = model.draw(embedding, *model.condition(model.read(pixels, text), question))
    assert logits.shape == (2, 1, 256, 256)
    assert model.modality(embedding).shape == (2, 7)
    logits.square().mean().backward()
    assert (
        model.language_model.layers[0].self_attn.q_proj.weight.grad is not None
    )  # the mask teaches the LVLM
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_the_layer_is_torchs() -> None:
    config = FusionConfig()
    theirs = torch.nn.TransformerEncoderLayer(256, 16, 512, dropout=0.0, batch_first=True).train()
    ours = EncoderLayer(config)
    weight, bias = theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias
    for i, layer in enumerate((ours.self_attn.q_proj, ours.self_attn.k_proj, ours.self_attn.v_proj)):
        layer.weight.copy_(weight[256 * i : 256 * (i + 1)])
        layer.bias.copy_(bias[256 * i : 256 * (i + 1)])
    pairs = (
        (ours.self_attn.out_proj, theirs.self_attn.out_proj), (ours.mlp.lin1, theirs.linear1),
        (ours.mlp.lin2, theirs.linear2), (ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2),
    )  # fmt: skip
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 9, 256)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        paper, small = PrsMed(PAPER), PrsMed(SMALL)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in paper.named_children()}
    assert counts["language_model"] == 7_241_732_096  # Mistral-7B
    assert paper.tokens == 576
    assert counts["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert 4_000_000 < counts["image_encoder"] < 7_000_000
    assert 10_000_000 < sum(p.numel() for p in small.parameters()) < 25_000_000
