"""Greedy decoding takes the likeliest token, stops where it should, and keeps the right state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from inference.errors import OutputInvalid
from inference.runtime.engine import TensorSpec
from inference.runtime.generate import Answer, DecodingRules, Sampling, generate, generate_paths, softmax
from inference.runtime.language_cache import cache_names

EOS, SEG, VOCABULARY = 2, 5, 12


@dataclass
class Reciter:
    """Plays prefill and step: says `script` token by token; state and cache count the calls."""

    script: list[int]
    name: str = "reciter"
    calls: list[dict[str, np.ndarray]] = field(default_factory=list)
    spoil: str = ""
    inputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    outputs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(dict(feeds))
        place = len(self.calls) - 1
        logits = np.zeros((1, VOCABULARY), np.float32)
        logits[0, self.script[place]] = 5
        out = {
            "logits": logits,
            "state_embedding": np.full((1, 4), place, np.float32),
            "image_tokens": np.ones((9, 4), np.float32),
        }
        if self.spoil:
            out[self.spoil] = out[self.spoil] * np.float32("nan")
        cache = np.full((1, 1, place or 3, 1), place, np.float32)
        return {**out, **dict.fromkeys(cache_names(1, "present" if place else "prefix"), cache)}

    def warm_up(self, feeds: Mapping[str, Any]) -> None:
        self.run(feeds)


@dataclass
class Forker:
    """Prefill and step whose every token is a toss between two, and then <eos>; batches count."""

    name: str = "forker"
    steps: list[int] = field(default_factory=list)
    prefills: int = 0
    inputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    outputs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        is_step = "token_ids" in feeds
        count = len(feeds["token_ids"]) if is_step else 1
        length = feeds["past_keys.0"].shape[2] + 2 if is_step else 1
        self.steps += [count] if is_step else []
        self.prefills += not is_step
        logits = np.full((count, VOCABULARY), -50, np.float32)
        logits[:, [6, 7] if length < 6 else [EOS]] = 1
        cache = np.zeros((count, 1, length - 1 if is_step else 9, 1), np.float32)
        names = cache_names(1, "present" if is_step else "prefix")
        return {
            "logits": logits, "state_embedding": np.zeros((count, 4), np.float32),
            "image_tokens": np.ones((9, 4), np.float32), **dict.fromkeys(names, cache),
        }  # fmt: skip

    def warm_up(self, feeds: Mapping[str, Any]) -> None:
        self.run(feeds)


def test_paths_share_the_first_pass_and_every_step() -> None:
    forker = Forker()
    samplings = [None, *(Sampling(seed=seed) for seed in range(5))]
    rules = DecodingRules(EOS, SEG, 20)
    paths = generate_paths(
        forker, forker, {"pixels": np.zeros(1)}, rules=rules, clock=lambda: 0.0, samplings=samplings
    )
    assert forker.prefills == 1
    assert forker.steps == [6] * 5
    assert paths[0].token_ids == (6,) * 5  # greedy: the lower id of two equals
    assert len({path.token_ids for path in paths}) > 3
    assert all(path.is_ended and set(path.token_ids) <= {6, 7} for path in paths)
    again = generate_paths(
        forker, forker, {"pixels": np.zeros(1)}, rules=rules, clock=lambda: 0.0, samplings=samplings
    )
    assert [path.token_ids for path in again] == [path.token_ids for path in paths]


def test_a_small_nucleus_is_greedy() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.01, seed=3)
    forker, rules = Forker(), DecodingRules(EOS, SEG, 20)
    (path,) = generate_paths(
        forker, forker, {"pixels": np.zeros(1)}, rules=rules, clock=lambda: 0.0, samplings=[sampling]
    )
    assert path.token_ids == (6,) * 5


def recite(
    script: list[int], *, rules: DecodingRules | None = None, spoil: str = ""
) -> tuple[Answer, Reciter]:
    reciter = Reciter(script, spoil=spoil)
    ticks: Iterator[float] = iter(range(100))
    answer = generate(
        reciter,
        reciter,
        {"pixels": np.zeros(1)},
        rules=rules or DecodingRules(EOS, SEG, 20, (7, 8)),
        clock=lambda: float(next(ticks)),
    )
    return answer, reciter


def test_an_answer_ends_at_eos() -> None:
    answer, reciter = recite([6, 7, EOS, 9])
    assert answer.token_ids == (6, 7)
    assert answer.is_ended
    assert answer.seg_embedding is None
    assert len(reciter.calls) == 3


def test_each_step_gets_the_last_token_and_the_grown_cache() -> None:
    _, reciter = recite([6, 7, 8, EOS])
    for place, feeds in enumerate(reciter.calls[1:], start=1):
        assert feeds["token_ids"].tolist() == [[[6, 7, 8][place - 1]]]
        assert feeds["token_ids"].dtype == np.int64
        assert feeds["past_keys.0"].shape == (1, 1, place - 1, 1)
        assert feeds["prefix_keys.0"].shape == (1, 1, 3, 1)
        assert feeds["prefix_lengths"].tolist() == [3]
        assert feeds["past_lengths"].tolist() == [place - 1]
        caches = {*cache_names(1, "prefix"), *cache_names(1, "past")}
        assert set(feeds) == {"token_ids", "prefix_lengths", "past_lengths", *caches}


def test_the_seg_state_is_the_one_that_predicts_the_token() -> None:
    answer, _ = recite([6, 7, SEG, 8, SEG, EOS])
    assert answer.seg_embedding is not None
    assert answer.seg_embedding.tolist() == [[2.0] * 4, [4.0] * 4]  # of the third call and of the fifth
    assert answer.token_ids == (6, 7, SEG, 8, SEG)


def test_an_answer_may_begin_with_seg() -> None:
    answer, _ = recite([SEG, EOS])
    assert answer.seg_embedding is not None
    assert answer.seg_embedding.tolist() == [[0.0] * 4]


def test_where_only_the_region_is_wanted_it_stops_there() -> None:
    answer, reciter = recite([6, SEG, 8, EOS], rules=DecodingRules(EOS, SEG, 20, is_stopped_at_seg=True))
    assert answer.token_ids == (6, SEG)
    assert answer.is_stopped_at_seg
    assert len(reciter.calls) == 2


def test_an_endless_answer_is_cut_and_says_so() -> None:
    answer, _ = recite([6] * 30, rules=DecodingRules(EOS, SEG, 4))
    assert answer.token_ids == (6, 6, 6, 6)
    assert not answer.is_ended


def test_an_answer_of_exactly_the_longest_length_is_whole() -> None:
    answer, _ = recite([6, 6, EOS], rules=DecodingRules(EOS, SEG, 2))
    assert answer.token_ids == (6, 6)
    assert answer.is_ended


def test_probabilities_are_those_of_the_tokens_chosen() -> None:
    answer, _ = recite([6, 7, EOS])
    chosen = np.exp(5) / (np.exp(5) + VOCABULARY - 1)
    assert np.allclose(np.exp(answer.log_probabilities), [chosen, chosen])
    assert answer.label_probabilities.shape == (3, 2)
    assert np.allclose(answer.label_probabilities[0], [0.5, 0.5])
    assert np.allclose(answer.label_probabilities[1], softmax(np.array([5.0, 0.0])))


@pytest.mark.parametrize("spoil", ["logits", "state_embedding"])
def test_states_that_are_not_finite_are_refused(spoil: str) -> None:
    with pytest.raises(OutputInvalid, match=spoil):
        recite([SEG, EOS], spoil=spoil)


def test_seconds_are_told_per_stage() -> None:
    answer, _ = recite([6, EOS])
    assert (answer.prefill_s, answer.steps_s) == (1.0, 1.0)


def test_softmax_survives_large_numbers() -> None:
    assert np.allclose(softmax(np.array([1e4, 1e4, -1e4])), [0.5, 0.5, 0.0])
    assert softmax(np.array([])).size == 0
