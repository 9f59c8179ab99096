"""The GPU table's rows of the language model and of the whole chain."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from inference.export.gpu_rows import Bench, GpuRow, SamPair, cosine
from inference.export.gpu_timing import Captured
from inference.export.originals import fill
from inference.models.full_size import load_language_model
from inference.models.lvlm import LanguageModel
from inference.models.lvlm_gpu import StaticDecoder, prefix_of
from inference.runtime.gate_report import MIN_COSINE


class LanguagePair:
    """One random language model as transformers has it and as ours, behind one prefix."""

    def __init__(self, bench: Bench, paths: int) -> None:
        self.bench, self.paths, config = bench, paths, bench.sizes.language
        theirs: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=config.mlp_width,
                num_hidden_layers=config.depth, num_attention_heads=config.heads,
                rms_norm_eps=config.norm_eps, eos_token_id=None, pad_token_id=0, bos_token_id=1,
            )
        )  # fmt: skip
        self.theirs = theirs.to(bench.dtype).eval()
        if bench.device.type == "cpu":
            fill(self.theirs)  # a GPU's generator is another: transformers' own random values do there
        self.ours = LanguageModel(config).to(bench.dtype).eval()
        load_language_model(self.ours, self.theirs.state_dict())
        self.decoder = StaticDecoder(self.ours)
        self.prompt = torch.randint(2, config.vocabulary, (1, bench.sizes.prefix))
        _, kept = self.ours(self.ours.embed_tokens(self.prompt))
        self.decoder.begin(kept, paths, bench.sizes.tokens)
        token = torch.zeros(paths, 1, dtype=torch.long)
        self.step = Captured(self._next, (token,), is_compiled=True)

    def _next(self, token: Tensor) -> Tensor:
        logits, _ = self.decoder(token)
        return logits.argmax(-1, keepdim=True)

    def answer(self) -> Tensor:
        """Read the prompt once, then `tokens` tokens of each path, greedily: (N, tokens)."""
        states, kept = self.ours(self.ours.embed_tokens(self.prompt))
        self.decoder.prefix.copy_(prefix_of(kept))
        self.decoder.position.zero_()
        first = self.ours.lm_head(states[:, -1]).argmax(-1, keepdim=True)
        said = [first.expand(self.paths, -1)]
        for _ in range(self.bench.sizes.tokens - 1):
            self.step.inputs[0].copy_(said[-1])
            said.append(self.step().clone())
        return torch.cat(said, 1)

    def first_logits(self) -> Tensor:
        """Logits (1, V) after the prompt."""
        states, _ = self.ours(self.ours.embed_tokens(self.prompt))
        found: Tensor = self.ours.lm_head(states[:, -1])
        return found

    def their_answer(self) -> Tensor:
        """One generate call with its cache, greedy: (1, tokens)."""
        tokens = self.bench.sizes.tokens
        out: Any = self.theirs.generate(
            self.prompt, attention_mask=torch.ones_like(self.prompt), do_sample=False,
            max_new_tokens=tokens, min_new_tokens=tokens,
        )  # fmt: skip
        found: Tensor = out[:, self.prompt.shape[1] :]
        return found


def language_rows(bench: Bench) -> Iterator[GpuRow]:
    """One path against one generate call, several against as many; text first."""
    sizes = bench.sizes
    alone = LanguagePair(bench, 1)
    close = cosine(alone.first_logits(), alone.theirs(alone.prompt).logits[:, -1])
    same = (alone.answer() == alone.their_answer()).float().mean().item()
    parity = f"logits' cosine {close:.5f}, {100 * same:.0f} % of greedy tokens equal"
    word = str(bench.dtype).removeprefix("torch.")
    row = GpuRow(
        f"language model, {sizes.tokens} tokens, batch 1", "transformers generate, eager, its cache on",
        target=3.0, aim=None, dtype=word, parity=parity,
    )  # fmt: skip
    if close < MIN_COSINE:
        yield GpuRow(**vars(row) | {"note": "refused: it does not pass the gate"})
        return
    measured, ours = bench.compare(row, alone.answer, alone.their_answer)
    weights = sum(each.numel() * each.element_size() for each in alone.decoder.parameters())
    floor_s = sizes.tokens * weights / (bench.ceilings.copy_gb_per_s * 1e9)
    rate = f"{sizes.tokens / ours.median_s:.0f} tokens/s; floor: weights once a token at the copy's rate"
    yield GpuRow(**vars(measured) | {"roof_share": floor_s / ours.median_s, "note": rate})
    del alone
    together = LanguagePair(bench, sizes.paths)
    row = GpuRow(
        f"{sizes.paths} reasoning paths, one image", f"{sizes.paths} generate calls", target=6.0, aim=15.0,
        dtype=word, batch=sizes.paths, parity=row.parity, note="greedy: all paths say the same",
    )  # fmt: skip
    yield bench.compare(row, together.answer, together.their_answer, sizes.paths)[0]


def chain_row(bench: Bench) -> GpuRow:
    """A CT: every slice encoded, key slices read in all paths, masks of all slices.

    The peer goes slice by slice and path by path, for `peer_slices` slices; its time is reckoned up.
    """
    sizes = bench.sizes
    sam = SamPair(bench, next(iter(sizes.vits.values())))
    language = LanguagePair(bench, sizes.paths)
    batches = -(-sizes.slices // sizes.batch)

    def ours() -> None:
        for _ in range(sizes.key_slices):
            language.answer()
        for _ in range(batches):
            sam.encode_and_decode()

    def slice_by_slice() -> None:
        region = sam.regions(sam.seg[:1])
        for _ in range(sizes.peer_slices):
            embedding = sam.theirs.image_encoder(sam.pixels[:1])
            sam.reference.decode(embedding, sam.seg[:1], region)

    row = GpuRow(
        f"{sizes.slices}-slice CT, {sizes.key_slices} key slices, {sizes.paths} paths, whole chain",
        "the same slice by slice, path by path", target=15.0, dtype=str(bench.dtype).removeprefix("torch."),
        batch=sizes.batch, parity="of the parts, above",
        note=f"the peer's parts are measured on {sizes.peer_slices} slice and one path, and multiplied",
    )  # fmt: skip
    images, _ = bench.compare(row, ours, slice_by_slice, sizes.slices / sizes.peer_slices)
    words, _ = bench.compare(row, ours, language.their_answer, sizes.key_slices * sizes.paths)
    assert images.peer_s is not None  # noqa: S101 - just measured
    assert words.peer_s is not None  # noqa: S101 - likewise
    assert words.ours_s is not None  # noqa: S101 - likewise
    peer_s = images.peer_s + words.peer_s
    return GpuRow(**vars(words) | {"peer_s": peer_s, "times": peer_s / words.ours_s})
