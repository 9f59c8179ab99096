"""Our language model and tower against `transformers`, and the cache against the full pass."""

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from inference.models.lvlm import (
    Cache,
    ClipConfig,
    ClipTower,
    LanguageConfig,
    LanguageModel,
    LayerCache,
    TinyTower,
    TinyTowerConfig,
)

TINY = LanguageConfig(vocabulary=40, width=32, depth=3, heads=4, mlp_width=48)


def llama(config: LanguageConfig) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=config.mlp_width,
            rms_norm_eps=config.norm_eps,
        )
    )  # fmt: skip


@torch.no_grad()
def test_language_model_equals_llama() -> None:
    theirs = llama(TINY).eval()
    ours = LanguageModel(TINY).eval()
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()})
    ids = torch.randint(0, 40, (2, 17))
    states, _ = ours(ours.embed_tokens(ids))
    torch.testing.assert_close(ours.lm_head(states), theirs(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [0, 1])
def test_steps_that_share_a_prefix_equal_the_full_pass(kv_heads: int) -> None:
    model = LanguageModel(replace(TINY, kv_heads=kv_heads)).eval()
    prefix, said = torch.randint(0, 40, (1, 7)), torch.randint(0, 40, (3, 5))
    full, full_kept = model(model.embed_tokens(torch.cat([prefix.expand(3, -1), said], 1)))
    _, read = model(model.embed_tokens(prefix))
    kept = [(keys[:, :, :0].expand(3, -1, -1, -1),) * 2 for keys, _ in read]
    parts = []
    for i in range(5):
        layers = [LayerCache(*before, *since) for before, since in zip(read, kept, strict=True)]
        cache = Cache(layers, torch.tensor([7]), torch.full((3,), i))
        states, kept = model.step(model.embed_tokens(said[:, i : i + 1]), cache)
        parts.append(states)
    torch.testing.assert_close(torch.cat(parts, 1), full[:, 7:], rtol=1e-4, atol=1e-5)
    for ours, whole in zip(kept, full_kept, strict=True):
        expected = [part[:, :, 7:] for part in whole]
        torch.testing.assert_close(list(ours), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("paths", [1, 2])
def test_answers_of_several_lengths_behind_several_prefixes_take_a_step_together(paths: int) -> None:
    """What fills a cache up has no say, whatever it is."""
    model = LanguageModel(replace(TINY, kv_heads=2)).eval()
    lengths, said = [7, 4, 9], [3, 0, 5]
    rows = [
        torch.randint(0, 40, (paths, before + since + 1)) for before, since in zip(lengths, said, strict=True)
    ]
    for row, before in zip(rows, lengths, strict=True):
        row[:, :before] = row[:1, :before]
    full = [model(model.embed_tokens(row)) for row in rows]
    layers = []
    for layer in range(TINY.depth):
        wide = torch.full((2, 3, 2, 9, TINY.per_head), 1e3)
        late = torch.full((2, 3 * paths, 2, 5, TINY.per_head), -1e3)
        for i, (_, kept) in enumerate(full):
            for kind, part in enumerate(kept[layer]):
                wide[kind, i, :, : lengths[i]] = part[0, :, : lengths[i]]
                late[kind, i * paths : (i + 1) * paths, :, 5 - said[i] :] = part[:, :, lengths[i] : -1]
        layers.append(LayerCache(*wide, *late))
    tokens = torch.cat([row[:, -1:] for row in rows])
    since = torch.tensor(said).repeat_interleave(paths)
    states, kept = model.step(model.embed_tokens(tokens), Cache(layers, torch.tensor(lengths), since))
    last = torch.cat([each[0][:, -1] for each in full])
    torch.testing.assert_close(states[:, 0], last, rtol=1e-4, atol=1e-5)
    for layer in range(TINY.depth):
        keys = torch.cat([each[1][layer][0][:, :, -1] for each in full])
        torch.testing.assert_close(kept[layer][0][:, :, -1], keys, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_state_does_not_see_what_follows() -> None:
    model = LanguageModel(TINY).eval()
    embedded = model.embed_tokens(torch.randint(0, 40, (1, 9)))
    changed = embedded.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(model(changed)[0][:, :6], model(embedded)[0][:, :6])


@torch.no_grad()
def test_tower_equals_clip() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                image_size=28, patch_size=7,
            )
        ).eval()  # fmt: skip
    ours = ClipTower(ClipConfig(side=28, patch_side=7, width=32, depth=4, heads=4)).eval()
    ours.load_state_dict(
        {our_clip_name(name): value for name, value in theirs.state_dict().items() if "_ids" not in name}
    )
    pixels = torch.randn(2, 3, 28, 28)
    want = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(ours(pixels), want, rtol=1e-4, atol=1e-4)


def our_clip_name(name: str) -> str:
    name = name.removeprefix("vision_model.")
    for part in ("embeddings.", "encoder.", "self_attn.", "mlp."):
        name = name.replace(part, "") if not name.startswith("patch") else name
    return name


def test_the_papers_sizes_are_those_of_the_public_models() -> None:
    with torch.device("meta"):
        ours, theirs = LanguageModel(LanguageConfig()), llama(LanguageConfig())
        tower, clip = ClipTower(ClipConfig()), CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                patch_size=14,
            )
        )  # fmt: skip
    assert count(ours) == count(theirs) == 6_738_415_616
    assert count(tower) == count(clip)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def test_tiny_tower_gives_a_token_per_cell() -> None:
    tower = TinyTower(TinyTowerConfig()).eval()
    assert tower(torch.randn(1, 3, 256, 256)).shape == (1, 256, 256)
