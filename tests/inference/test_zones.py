"""Where a mask lies, and how sure that is: both rules, at and beside the borders of zones."""

import numpy as np
import pytest

from inference.positions import CENTRE, QUADRANTS
from inference.prompts import ZONES
from inference.zones import (
    SPREAD,
    box_of,
    centroid_of,
    percent_chances,
    percent_of,
    position_chances,
    zone_chances,
    zone_of,
    zone_of_box,
)

HW = (100, 200)


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(HW, np.bool_)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


@pytest.mark.parametrize("y", [0.1, 1 / 3, 0.5, 0.66, 0.9])
@pytest.mark.parametrize("x", [0.02, 0.34, 2 / 3, 0.99])
def test_the_likeliest_of_nine_zones_is_the_rule_s(y: float, x: float) -> None:
    chances = zone_chances(y, x)
    assert set(chances) == set(ZONES)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert chances[zone_of(y, x)] >= max(chances.values()) - 1e-9


def test_at_a_border_both_zones_are_as_likely() -> None:
    chances = zone_chances(0.5, 1 / 3)
    assert chances["left middle"] == pytest.approx(0.5)
    assert chances["centre"] == pytest.approx(0.5)
    beside = zone_chances(0.5, 1 / 3 + 3 * SPREAD)
    assert beside["centre"] > 0.99


@pytest.mark.parametrize(
    "mask",
    [
        block(5, 5, 20, 30), block(5, 150, 20, 190), block(70, 5, 90, 30), block(70, 150, 90, 190),
        block(40, 90, 60, 110), block(0, 0, 99, 199),
    ],
)  # fmt: skip
def test_the_likeliest_of_five_zones_is_the_rule_s(mask: np.ndarray) -> None:
    box = box_of(mask)
    assert box is not None
    chances = position_chances(box, HW)
    assert set(chances) == {CENTRE, *QUADRANTS}
    assert sum(chances.values()) == pytest.approx(1.0)
    assert max(chances, key=lambda word: chances[word]) == zone_of_box(box, HW)


def test_a_box_that_ends_at_the_centre_leaves_it_open() -> None:
    box = box_of(block(10, 20, 50, 100))
    assert box is not None
    chances = position_chances(box, HW)
    assert 0.2 < chances[CENTRE] < 0.8
    assert chances[CENTRE] + chances["upper left"] > 0.999


def test_percents_are_centred_on_the_area() -> None:
    mask = block(0, 0, 29, 99)  # 15 percent
    chances = percent_chances(mask)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert max(chances, key=lambda word: chances[word]) == f"{percent_of(mask)} percent" == "15 percent"
    assert chances["14 percent"] == pytest.approx(chances["16 percent"])


def test_a_speck_is_one_percent_and_nothing_is_nowhere() -> None:
    assert percent_of(block(0, 0, 0, 0)) == 1
    nothing = np.zeros(HW, np.bool_)
    assert centroid_of(nothing) is None
    assert box_of(nothing) is None
