"""A second target: in another zone, whole, apart from the first, and meant as often as it."""

from pathlib import Path

import numpy as np
import pytest

from inference.datasets.distractors import with_distractor
from inference.datasets.m3ds import Record
from inference.datasets.sample import Sample
from inference.zones import centroid_of, zone_of

RECORD = Record("busbra", "train", "b1", Path("b1.png"), Path("b1-mask.png"), "benign", "p1")


def blob(top: int, left: int, size: int, grey: int, background: int) -> Sample:
    pixels = np.full((128, 128, 3), background, np.uint8)
    mask = np.zeros((128, 128), np.bool_)
    mask[top : top + size, left : left + size] = True
    pixels[mask] = grey
    return Sample(pixels, mask, RECORD)


@pytest.fixture
def drawn() -> list[Sample]:
    here, there = blob(10, 12, 20, 200, 60), blob(90, 80, 16, 140, 40)
    rng = np.random.default_rng(0)
    made = [with_distractor(here, there, rng) for _ in range(40)]
    return [each for each in made if each is not None]


def test_it_lies_in_another_zone_and_either_may_be_meant(drawn: list[Sample]) -> None:
    assert len(drawn) == 40
    sizes = {int(each.mask.sum()) for each in drawn}
    assert sizes == {20 * 20, 16 * 16}
    assert 10 <= sum(each.mask.sum() == 400 for each in drawn) <= 30
    meant_here = next(each for each in drawn if each.mask.sum() == 400)
    assert meant_here.mask[10:30, 12:32].all()
    for each in drawn:
        if each.mask.sum() == 256:
            assert not each.mask[10:30, 12:32].any()
            y, x = centroid_of(each.mask) or (0, 0)
            assert zone_of(y, x) != "upper left"


def test_the_image_shows_both_and_no_seam_of_another_brightness(drawn: list[Sample]) -> None:
    for each in drawn:
        assert (each.pixels[10:30, 12:32] == 200).all()
        pasted = each.mask if each.mask.sum() == 256 else each.pixels[..., 0] == 160
        assert (each.pixels[pasted] == 160).all()  # 140 on 40, put on 60
        rest = each.pixels.copy()
        rest[10:30, 12:32] = rest[pasted] = 60
        assert ((rest >= 60) & (rest <= 160)).all()  # a seam between the two, and nothing darker or brighter


def test_nothing_is_put_where_there_is_no_room() -> None:
    rng = np.random.default_rng(1)
    small, large = blob(50, 50, 20, 200, 60), blob(5, 5, 100, 140, 40)
    assert with_distractor(small, large, rng) is None
    assert with_distractor(large, small, rng) is None  # no other zone is free
    nothing = Sample(small.pixels, np.zeros_like(small.mask), small.record)
    assert with_distractor(small, nothing, rng) is None
    assert with_distractor(nothing, small, rng) is None
