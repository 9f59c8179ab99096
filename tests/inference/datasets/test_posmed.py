"""The paper's zones on made-up masks, and the wordings that carry them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from inference.datasets.frames import open_frames
from inference.datasets.m3ds import load_records
from inference.datasets.posmed import (
    COLUMNS,
    encode_positions,
    exchange_of,
    is_near_centre,
    write_table,
    zones_of_pair,
)
from inference.datasets.sample import frame_sample
from inference.positions import (
    ABSENT_ANSWERS,
    CENTRE_ANSWERS,
    FAR_ANSWERS,
    NEAR_ANSWERS,
    POSITIONS,
    QUESTIONS,
    parse_position,
    write_position,
)
from inference.prompts import TARGETS
from inference.settings import PACKAGES
from inference.zones import zone_of_mask
from tests.inference.datasets import tiny_data


def box(*edges: int, hw: tuple[int, int] = (100, 200)) -> np.ndarray:
    top, bottom, left, right = edges
    mask = np.zeros(hw, np.bool_)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "zone"),
    [
        (box(5, 20, 5, 30), "upper left"),
        (box(5, 20, 150, 190), "upper right"),
        (box(70, 90, 5, 30), "lower left"),
        (box(70, 90, 150, 190), "lower right"),
        (box(40, 60, 90, 110), "centre"),
        (box(50, 50, 100, 100), "centre"),  # one pixel, the very middle
        (box(51, 99, 0, 199), "lower left"),  # its box ends just below the middle; its own middle is 99.5
        (box(0, 99, 0, 199), "centre"),
        (np.zeros((9, 9), np.bool_), None),
    ],
)
def test_zone_of_one_target(mask: np.ndarray, zone: str | None) -> None:
    assert zone_of_mask(mask) == zone


def test_zones_of_two_lungs() -> None:
    lungs = box(20, 45, 10, 60) | box(55, 90, 120, 190)
    assert zones_of_pair(lungs) == ("upper left", "lower right")
    across = box(20, 76, 80, 110) | box(5, 10, 150, 190)
    assert zones_of_pair(across) == ("upper right", "upper left centre")  # row order: the speck comes first
    assert zones_of_pair(box(20, 45, 10, 60)) is None


def test_touching_corners_are_one_component() -> None:
    mask = box(10, 20, 10, 20) | box(21, 30, 21, 30)
    assert zones_of_pair(mask) is None


def test_the_wordings_are_many_and_no_two_alike() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) >= 50
    answers = [*NEAR_ANSWERS, *FAR_ANSWERS, *CENTRE_ANSWERS, *ABSENT_ANSWERS]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("zone", POSITIONS)
def test_what_is_written_is_read(zone: str) -> None:
    for target in filter(None, TARGETS.values()):
        for template in (*NEAR_ANSWERS, *FAR_ANSWERS, *CENTRE_ANSWERS):
            parsed = parse_position(write_position(template, target, zone))
            assert parsed.zones == (zone,)
            assert parsed.is_well_formed
        for template in ABSENT_ANSWERS:
            parsed = parse_position(write_position(template, target))
            assert parsed.is_absent
            assert parsed.is_well_formed


@pytest.mark.parametrize("text", ["", "It is large.", "No lesion is seen in this image. It is upper left."])
def test_what_says_neither_or_both_is_not_well_formed(text: str) -> None:
    assert not parse_position(text).is_well_formed


def test_the_answer_fits_the_mask() -> None:
    rng = np.random.default_rng(0)
    far, near = box(5, 12, 5, 12), box(52, 58, 104, 112)
    assert is_near_centre(near)
    assert not is_near_centre(far)
    for mask, wordings in ((far, FAR_ANSWERS), (near, NEAR_ANSWERS)):
        one = exchange_of(mask, "bone radiograph", rng)
        assert one.answer in [write_position(w, "fracture", one.position) for w in wordings]
    lungs = exchange_of(box(20, 45, 10, 60) | box(55, 90, 120, 190), "chest radiograph", rng, "lungs")
    assert lungs.position == "upper left; lower right"
    assert parse_position(lungs.answer).zones == ("upper left", "lower right")
    assert exchange_of(np.zeros((9, 9), np.bool_), "bone radiograph", rng).position == "no mask"


def test_a_batch_marks_the_question_and_weighs_the_zone(tmp_path: Path) -> None:
    records = load_records(tiny_data.write(tmp_path / "data"))
    frames = open_frames(records, tmp_path / "cache", 256)
    samples = [frame_sample(records[i], frames, i) for i in (0, 4)]  # a lesion, and no fracture
    tokenizer = Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json"))
    batch, exchanges = encode_positions(samples, tokenizer, np.random.default_rng(0), 7.0)
    for i, exchange in enumerate(exchanges):
        asked = int(batch.question[i].sum())
        assert batch.question[i, :asked].all()
        assert (batch.weights[i, : asked - 1] == 0).all()
        heavy = batch.ids[i, 1:][batch.weights[i] > 5].tolist()
        said = tokenizer.decode(heavy)
        assert exchange.position in said or exchange.position == "no mask"
    assert exchanges[1].position == "no mask"
    assert batch.ids.shape[1] == batch.question.shape[1] == batch.weights.shape[1] + 1
    assert torch.equal(batch.question, batch.question.cummin(1).values)  # no question behind an answer


def test_the_view_as_a_table(tmp_path: Path) -> None:
    records = load_records(tiny_data.write(tmp_path / "data"))
    write_table(records, tmp_path / "posmed.csv")
    lines = (tmp_path / "posmed.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + sum(record.mask is not None for record in records)
