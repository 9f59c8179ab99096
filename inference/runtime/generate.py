"""Decoding with a key-value cache, greedy or by sampling; returns tokens and the [SEG] hidden states.

Several answers about one image share the pass over image and question: its cache is held once, every step
runs all answers as one batch, and what each has said since has a small cache of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.runtime.engine import Array, Engine, require_output
from inference.runtime.language_cache import AnswerCache

Floats = NDArray[np.float32]
Chooser = Callable[[NDArray[np.float64]], int]


@dataclass(frozen=True)
class DecodingRules:
    """When an answer ends, and which tokens are looked at on the way."""

    eos_id: int
    seg_id: int
    max_new_tokens: int
    label_ids: tuple[int, ...] = ()  # first token of each closed label
    is_stopped_at_seg: bool = False  # where only the region is wanted
    handed_on: str = "image_tokens"  # the output of the first pass that the mask decoder needs


@dataclass(frozen=True)
class Sampling:
    """How answers other than the likeliest are drawn (temperature; nucleus, Holtzman et al. 2020)."""

    temperature: float = 0.7  # PRS-Med's released code; Sim4Seg's is not published
    top_p: float = 0.95  # likewise
    seed: int = 0


class Facts(Protocol):
    """What is known of the image while one answer is being said, and what follows for its words."""

    def begin(self, handed_on: Floats) -> None:
        """Take what the first pass hands on (`Answer.image_tokens`)."""

    def seg_said(self, state: Floats) -> None:
        """Take the state (1, 256) that predicted a [SEG], as soon as it is said."""

    def weigh(self, token_ids: Sequence[int], logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logits (V,) that the next token is chosen from, after `token_ids`."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the language model said, and the states the mask decoder needs.

    `token_ids` has no <eos>. `log_probabilities` (tokens,) are of the tokens chosen, as the model alone
    sees them. `label_probabilities`
    (tokens + 1, labels) is, before each token and at the end, the softmax restricted to the labels' first
    tokens. `seg_embedding` (K, 256) are the states that predicted each [SEG]; None where none was said.
    `image_tokens` is what the first pass hands on to the mask decoder: for Sim4Seg the projected states of
    the image positions (256, 256).
    """

    token_ids: tuple[int, ...]
    log_probabilities: NDArray[np.float64]
    label_probabilities: NDArray[np.float64]
    seg_embedding: Floats | None
    image_tokens: Floats
    is_ended: bool  # the model said <eos>; otherwise the answer was cut at its longest
    is_stopped_at_seg: bool  # [SEG] was said and no more was asked for
    prefill_s: float
    steps_s: float


@dataclass(eq=False)
class _Decoded:
    facts: Facts | None
    token_ids: list[int]
    log_probabilities: list[float]
    label_probabilities: list[NDArray[np.float64]]
    seg_embeddings: list[Floats] = field(default_factory=list)
    is_ended: bool = False
    is_stopped_at_seg: bool = False
    is_over: bool = False


def generate(
    prefill: Engine,
    step: Engine,
    feeds: dict[str, Array],
    *,
    rules: DecodingRules,
    clock: Callable[[], float],
    facts: Facts | None = None,
) -> Answer:
    """Answer greedily: one pass over image and question, then one step per token.

    `feeds` are the inputs of `prefill`: `pixels` (1, 3, side, side) float32, `text_ids` (1, T) int64.
    `facts` have a say in the words.

    Raises
    ------
    OutputInvalid
        If logits or states are not finite or not of one shape.
    """
    (answer,) = generate_paths(
        prefill, step, feeds, rules=rules, clock=clock, samplings=(None,), facts=(facts,)
    )
    return answer


def generate_paths(
    prefill: Engine,
    step: Engine,
    feeds: dict[str, Array],
    *,
    rules: DecodingRules,
    clock: Callable[[], float],
    samplings: Sequence[Sampling | None],
    facts: Sequence[Facts | None] | None = None,
) -> list[Answer]:
    """Several answers to one question about one image, one for each of `samplings`; None is greedy.

    Each has its own `facts`, if any.

    Raises
    ------
    OutputInvalid
        If logits or states are not finite or not of one shape.
    """
    started = clock()
    first = prefill.run(feeds)
    prefilled = clock()
    paths = [_Decoded(each, [], [], []) for each in facts or [None] * len(samplings)]
    for each in filter(None, facts or ()):
        each.begin(first[rules.handed_on])
    choosers = [_chooser(sampling) for sampling in samplings]
    out: dict[str, Array] = {
        name: np.repeat(first[name], len(paths), axis=0)
        for name in first.keys() & {"logits", "state_embedding"}
    }
    cache = AnswerCache(first, len(paths))
    widths = (first["logits"].shape[-1], first.get("state_embedding", first["logits"]).shape[-1])
    while _take_tokens(paths, out, rules, choosers, widths):
        tokens = np.array(
            [[path.token_ids[-1] if path.token_ids else rules.eos_id] for path in paths], np.int64
        )
        out = step.run(cache.feeds(tokens))
        cache.take(out)
    seconds = (prefilled - started, clock() - prefilled)
    return [_answer(path, first[rules.handed_on], seconds) for path in paths]


def _answer(path: _Decoded, handed_on: Floats, seconds: tuple[float, float]) -> Answer:
    return Answer(
        token_ids=tuple(path.token_ids),
        log_probabilities=np.array(path.log_probabilities),
        label_probabilities=np.array(path.label_probabilities),
        seg_embedding=np.concatenate(path.seg_embeddings) if path.seg_embeddings else None,
        image_tokens=handed_on,
        is_ended=path.is_ended,
        is_stopped_at_seg=path.is_stopped_at_seg,
        prefill_s=seconds[0],
        steps_s=seconds[1],
    )


def _chooser(sampling: Sampling | None) -> Chooser:
    """Which token to take of its logits (V,) float64."""
    if sampling is None:
        return lambda logits: int(np.argmax(logits))
    rng = np.random.default_rng(sampling.seed)

    def draw(logits: NDArray[np.float64]) -> int:
        chances = softmax(logits / sampling.temperature)
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        kept = order[before < sampling.top_p]  # the likeliest is always among them
        return int(rng.choice(kept, p=chances[kept] / chances[kept].sum()))

    return draw


def _take_tokens(
    paths: Sequence[_Decoded],
    out: dict[str, Array],
    rules: DecodingRules,
    choosers: Sequence[Chooser],
    widths: tuple[int, int],
) -> bool:
    """Choose a token for every path that is not over; False when all are."""
    logits = require_output("language model", "logits", out["logits"], (len(paths), widths[0]))
    for row, (path, choose) in enumerate(zip(paths, choosers, strict=True)):
        if not path.is_over:
            state = out.get("state_embedding")
            has_said_seg = _take_token(path, logits[row].astype(np.float64), rules, choose)
            if has_said_seg and state is not None:
                require_output("language model", "state_embedding", state, (len(paths), widths[1]))
                _keep_seg(path, state[row : row + 1])
    return not all(path.is_over for path in paths)


def _keep_seg(path: _Decoded, state: Floats) -> None:
    path.seg_embeddings.append(state)
    if path.facts is not None:
        path.facts.seg_said(state)


def _take_token(path: _Decoded, logits: NDArray[np.float64], rules: DecodingRules, choose: Chooser) -> bool:
    """Take one token and note what went with it; True where it was [SEG]."""
    path.label_probabilities.append(softmax(logits[list(rules.label_ids)]))
    token = choose(path.facts.weigh(path.token_ids, logits) if path.facts else logits)
    if token == rules.eos_id or len(path.token_ids) == rules.max_new_tokens:
        path.is_ended, path.is_over = token == rules.eos_id, True
        return False
    path.token_ids.append(token)
    path.log_probabilities.append(float(np.log(softmax(logits)[token])))
    is_seg = token == rules.seg_id
    path.is_stopped_at_seg = path.is_over = is_seg and rules.is_stopped_at_seg
    return is_seg


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax of `logits` (n,) float64, safe for large values; empty for none."""
    if not logits.size:
        return logits
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())
