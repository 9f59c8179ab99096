"""PosMed, earlier called MMRS (PRS-Med): images, masks, position question and answer.

PosMed itself is not used: this is the same view - question, position, answer, mask - of any data set
with masks. The position is the released generator's rule (models.md 2.4): "centre" where the bounding box
holds the image's centre, otherwise the quadrant of the box's centre; for a pair of lungs the quadrants of
the first and the last connected component. Wordings are ours (inference/positions.py).
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from tokenizers import Tokenizer
from torch import Tensor

from inference.datasets.frames import read_image, read_mask
from inference.datasets.m3ds import KINDS, Record, load_records
from inference.datasets.sample import Sample
from inference.positions import (
    ABSENT_ANSWERS,
    CENTRE,
    CENTRE_ANSWERS,
    FAR_ANSWERS,
    NEAR_ANSWERS,
    QUESTIONS,
    write_position,
    write_two_positions,
)
from inference.prompts import EOS, IM_END, SPECIAL_TOKENS, TARGETS, prompt_text
from inference.zones import NEAR, box_of, distance_from_centre, holds_centre, quadrant, zone_of_mask

PAIRED_TARGETS = frozenset({"lung", "lungs"})
COLUMNS = ("image_path", "image_name", "split", "question", "position", "answer")
EIGHT_NEIGHBOURS = np.ones((3, 3), np.int64)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Exchange:
    """One question about place, and its answer."""

    question: str
    position: str  # the zone, two joined by "; " for a pair, or "no mask"
    answer: str  # starts with a space


@dataclass(frozen=True)
class PositionBatch:
    """What follows the image: <im_end>, question, cue, answer, <eos>; then padding."""

    ids: Tensor  # (B, T) int64
    weights: Tensor  # (B, T - 1) float32: loss weight of predicting ids[:, 1:]; 0 outside the answer
    question: Tensor  # (B, T) bool: the tokens the mask may depend on; never the answer's


def zones_of_pair(mask: Mask) -> tuple[str, str] | None:
    """The zones of the first and the last connected component (8 neighbours); None with fewer than two.

    A zone is the component's centroid's quadrant, with " centre" behind it where the component's bounding
    box holds the image's centre.
    """
    labels, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
    if count < 2:
        return None
    return _zone_of_component(labels == 1), _zone_of_component(labels == count)


def _zone_of_component(component: Mask) -> str:
    rows, columns = np.nonzero(component)
    hw = (component.shape[0], component.shape[1])
    place = quadrant(rows.mean(), columns.mean(), hw)
    box = int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())
    return f"{place} {CENTRE}" if holds_centre(box, hw) else place


def is_near_centre(mask: Mask) -> bool:
    """Whether the bounding box's centre is less than a fifth of the width from the image's (empty: False)."""
    box = box_of(mask)
    return box is not None and distance_from_centre(box, (mask.shape[0], mask.shape[1])) < NEAR


def exchange_of(mask: Mask, modality: str, rng: Generator, target: str | None = None) -> Exchange:
    """A question and its answer about `mask` (h, w) as it now lies; `target` None is the modality's."""
    named = target or TARGETS[modality] or "lesion"
    question = str(rng.choice(QUESTIONS)).format(target=named, modality=modality)
    pair = zones_of_pair(mask) if named in PAIRED_TARGETS else None
    if pair is not None:
        return Exchange(question, "; ".join(pair), write_two_positions(named, pair))
    zone = zone_of_mask(mask)
    if zone is None:
        return Exchange(question, "no mask", write_position(str(rng.choice(ABSENT_ANSWERS)), named))
    wordings = CENTRE_ANSWERS if zone == CENTRE else (NEAR_ANSWERS if is_near_centre(mask) else FAR_ANSWERS)
    return Exchange(question, zone, write_position(str(rng.choice(wordings)), named, zone))


def encode_positions(
    samples: Sequence[Sample], tokenizer: Tokenizer, rng: Generator, zone_weight: float = 1.0
) -> tuple[PositionBatch, list[Exchange]]:
    """Tokens of a random position question about each sample, and what was asked and answered.

    Tokens of the zone's words, and the answer's first, weigh `zone_weight`: they carry the answer.
    """
    exchanges = [exchange_of(s.mask, KINDS[s.record.dataset].modality, rng) for s in samples]
    rows = [_encode(exchange, tokenizer, zone_weight) for exchange in exchanges]
    longest = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    weights = torch.zeros(len(rows), longest - 1)
    question = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (row, row_weights, asked) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row) - 1] = torch.tensor(row_weights[1:])
        question[i, :asked] = True
    return PositionBatch(ids, weights, question), exchanges


def _encode(
    exchange: Exchange, tokenizer: Tokenizer, zone_weight: float
) -> tuple[list[int], list[float], int]:
    """Ids, their loss weights, and how many of them are the question."""
    im_end, eos = (SPECIAL_TOKENS.index(token) for token in (IM_END, EOS))
    question = [im_end, *tokenizer.encode(prompt_text(exchange.question)).ids]
    encoded = tokenizer.encode(exchange.answer)
    spans = [
        (start, start + len(zone))
        for zone in exchange.position.split("; ")
        if (start := exchange.answer.find(zone)) >= 0
    ]
    weights = [
        zone_weight if any(a < stop and b > start for a, b in spans) else 1.0
        for start, stop in encoded.offsets
    ]
    weights[0] = zone_weight
    return [*question, *encoded.ids, eos], [0.0] * len(question) + weights + [1.0], len(question)


def write_table(records: Sequence[Record], path: Path, seed: int = 0) -> None:
    """The view as a table with the released data's columns; rows without a mask are left out, as there."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for record in records:
            if record.mask is None:
                continue
            mask = read_mask(record, read_image(record).shape[:2])
            one = exchange_of(mask, KINDS[record.dataset].modality, rng)
            writer.writerow(
                (record.image, record.name, record.split, one.question, one.position, one.answer.strip())
            )


def main() -> None:
    """Write the PosMed view of a data folder as one CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    write_table(load_records(options.data), options.out)


if __name__ == "__main__":
    main()
