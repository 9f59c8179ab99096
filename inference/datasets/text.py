"""Queries and answers as token ids, padded into one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor

from inference.datasets.m3ds import GENERIC_QUERIES, KINDS
from inference.datasets.measure import answer_of
from inference.datasets.sample import Sample
from inference.prompts import (
    DIAGNOSIS_CUE,
    EOS,
    IM_END,
    NO_REGION_SENTENCE,
    REGION_SENTENCE,
    SEG,
    SPECIAL_TOKENS,
    SegPlace,
    prompt_text,
)

GENERIC_SHARE = 0.25  # of the queries; ours
SLOPPY_SHARE = 0.15  # of the queries are typed without capitals and stops; ours


@dataclass(frozen=True)
class TextBatch:
    """What follows the image: <im_end>, query, cue, answer, <eos>; then padding."""

    ids: Tensor  # (B, T) int64
    weights: Tensor  # (B, T - 1) float32: loss weight of predicting ids[:, 1:]; 0 outside the answer
    seg_index: Tensor  # (B,) int64: the token before [SEG], whose state predicts it; 0 where there is none
    has_seg: Tensor  # (B,) bool


def choose_query(dataset: str, rng: Generator) -> str:
    """One of the wordings a radiologist might use."""
    own = KINDS[dataset].queries
    query = str(rng.choice(GENERIC_QUERIES if rng.random() < GENERIC_SHARE else own))
    return query.lower().rstrip(".?") if rng.random() < SLOPPY_SHARE else query


def encode_batch(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    rng: Generator,
    label_weight: float,
    seg_place: SegPlace = "before",
) -> TextBatch:
    """Tokens of a random query and the measured answer of each sample."""
    rows = [_encode(sample, tokenizer, rng, label_weight, seg_place) for sample in samples]
    longest = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    weights = torch.zeros(len(rows), longest - 1)
    for i, (row, row_weights, _) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row) - 1] = torch.tensor(row_weights[1:])
    seg_index = torch.tensor([index for _, _, index in rows])
    return TextBatch(ids, weights, seg_index.clamp(min=0), seg_index >= 0)


def _encode(
    sample: Sample, tokenizer: Tokenizer, rng: Generator, label_weight: float, seg_place: SegPlace
) -> tuple[list[int], list[float], int]:
    """Ids, the loss weight of each id, and the index before [SEG] (-1 where there is none)."""
    im_end, eos, seg = (SPECIAL_TOKENS.index(token) for token in (IM_END, EOS, SEG))
    question = [im_end, *tokenizer.encode(prompt_text(choose_query(sample.record.dataset, rng))).ids]
    text = answer_of(sample, seg_place)
    encoded = tokenizer.encode(text)
    label_start = text.find(DIAGNOSIS_CUE)
    label_start = label_start + len(DIAGNOSIS_CUE) if label_start >= 0 else len(text)
    label_stop = text.find(".", label_start)
    answer_weights = [
        label_weight if label_start <= start < label_stop else 1.0 for start, _ in encoded.offsets
    ]
    choice = max(text.find(REGION_SENTENCE), text.find(NO_REGION_SENTENCE))
    # "It" or "There": whether anything is outlined at all
    answer_weights[next(i for i, (_, stop) in enumerate(encoded.offsets) if stop > choice)] = label_weight
    ids = [*question, *encoded.ids, eos]
    weights = [0.0] * len(question) + answer_weights + [1.0]
    return ids, weights, ids.index(seg) - 1 if seg in ids else -1
