"""Greedy decoding with a key-value cache; returns tokens and the [SEG] hidden state."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.runtime.engine import Array, Engine, require_output

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DecodingRules:
    """When an answer ends, and which tokens are looked at on the way."""

    eos_id: int
    seg_id: int
    max_new_tokens: int
    label_ids: tuple[int, ...] = ()  # first token of each closed label
    is_stopped_at_seg: bool = False  # where only the region is wanted


@dataclass(frozen=True, eq=False)
class Answer:
    """What the language model said, and the states the mask decoder needs.

    `token_ids` has no <eos>. `log_probabilities` (tokens,) are of the tokens chosen. `label_probabilities`
    (tokens + 1, labels) is, before each token and at the end, the softmax restricted to the labels' first
    tokens. `seg_embedding` (1, 256) is the state that predicted the first [SEG]; None where none was said.
    `image_tokens` (256, 256) are the projected states of the image positions.
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
    token_ids: list[int]
    log_probabilities: list[float]
    label_probabilities: list[NDArray[np.float64]]
    seg_embedding: Floats | None = None
    is_ended: bool = False
    is_stopped_at_seg: bool = False


def generate(
    prefill: Engine,
    step: Engine,
    feeds: dict[str, Array],
    *,
    rules: DecodingRules,
    clock: Callable[[], float],
) -> Answer:
    """Answer greedily: one pass over image and question, then one step per token.

    `feeds` are the inputs of `prefill`: `pixels` (1, 3, side, side) float32, `text_ids` (1, T) int64.

    Raises
    ------
    OutputInvalid
        If logits or states are not finite or not of one shape.
    """
    started = clock()
    out = prefill.run(feeds)
    prefilled = clock()
    width = out["logits"].shape[-1]
    decoded = _Decoded([], [], [])
    cache = (out["past_keys"], out["past_values"])
    while not _take_token(decoded, out, rules, (width, out["image_tokens"].shape[-1])):
        token = np.array([[decoded.token_ids[-1]]], np.int64)
        out_step = step.run({"token_ids": token, "past_keys": cache[0], "past_values": cache[1]})
        cache = (out_step["present_keys"], out_step["present_values"])
        out = {**out_step, "image_tokens": out["image_tokens"]}
    return Answer(
        token_ids=tuple(decoded.token_ids),
        log_probabilities=np.array(decoded.log_probabilities),
        label_probabilities=np.array(decoded.label_probabilities),
        seg_embedding=decoded.seg_embedding,
        image_tokens=out["image_tokens"],
        is_ended=decoded.is_ended,
        is_stopped_at_seg=decoded.is_stopped_at_seg,
        prefill_s=prefilled - started,
        steps_s=clock() - prefilled,
    )


def _take_token(
    decoded: _Decoded, out: dict[str, Array], rules: DecodingRules, widths: tuple[int, int]
) -> bool:
    """Choose the likeliest token and note what went with it; True when the answer is over."""
    logits = require_output("language model", "logits", out["logits"], (1, widths[0]))[0].astype(np.float64)
    decoded.label_probabilities.append(softmax(logits[list(rules.label_ids)]))
    token = int(np.argmax(logits))
    if token == rules.eos_id:
        decoded.is_ended = True
        return True
    if len(decoded.token_ids) == rules.max_new_tokens:
        return True
    decoded.token_ids.append(token)
    decoded.log_probabilities.append(float(np.log(softmax(logits)[token])))
    if token == rules.seg_id and decoded.seg_embedding is None:
        state = out["state_embedding"]
        decoded.seg_embedding = require_output("language model", "state_embedding", state, (1, widths[1]))
        decoded.is_stopped_at_seg = rules.is_stopped_at_seg
    return decoded.is_stopped_at_seg


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax of `logits` (n,) float64, safe for large values; empty for none."""
    if not logits.size:
        return logits
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())
