"""Zone, shape, margin and brightness of masks whose truth is known."""

import numpy as np
import pytest

from inference.datasets.measure import measure
from inference.prompts import ZONES, Findings
from inference.zones import zone_of

HW = (240, 300)


def ellipse(centre: tuple[float, float], semi: tuple[float, float]) -> np.ndarray:
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    return ((rows - centre[0]) / semi[0]) ** 2 + ((columns - centre[1]) / semi[1]) ** 2 <= 1


def findings(mask: np.ndarray, inside: int = 40, outside: int = 120, noise: float = 0.0) -> Findings:
    rng = np.random.default_rng(0)
    grey = np.where(mask, inside, outside) + noise * rng.standard_normal(HW)
    pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return measure(mask, pixels, "breast ultrasound image", "benign")


@pytest.mark.parametrize(
    ("centre", "zone"),
    [
        ((120, 150), "centre"), ((30, 40), "upper left"), ((30, 260), "upper right"),
        ((210, 40), "lower left"),
        ((210, 260), "lower right"), ((30, 150), "upper middle"), ((210, 150), "lower middle"),
        ((120, 40), "left middle"), ((120, 260), "right middle"),
    ],
)  # fmt: skip
def test_zone_is_where_the_mask_is(centre: tuple[int, int], zone: str) -> None:
    assert findings(ellipse(centre, (20, 20))).zone == zone


def test_all_zones_are_in_the_wording() -> None:
    assert {zone_of(y, x) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)} == set(ZONES)


@pytest.mark.parametrize(
    ("semi", "shape", "orientation"),
    [
        ((40, 40), "round", "about as wide as tall"),
        ((25, 60), "oval", "wider than tall"),
        ((60, 25), "oval", "taller than wide"),
    ],
)
def test_shape_and_orientation_of_ellipses(semi: tuple[int, int], shape: str, orientation: str) -> None:
    found = findings(ellipse((120, 150), semi))
    assert (found.shape, found.orientation, found.margin) == (shape, orientation, "smooth")
    assert found.area_percent == round(100 * np.pi * semi[0] * semi[1] / (HW[0] * HW[1]))


def test_a_star_is_irregular() -> None:
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    angle, radius = np.arctan2(rows - 120, columns - 150), np.hypot(rows - 120, columns - 150)
    found = findings(radius < 45 + 18 * np.sin(9 * angle))
    assert (found.shape, found.margin) == ("irregular", "irregular")


@pytest.mark.parametrize(
    ("inside", "word"), [(40, "darker than"), (200, "brighter than"), (118, "similar to")]
)
def test_brightness_against_the_surroundings(inside: int, word: str) -> None:
    assert findings(ellipse((120, 150), (40, 40)), inside).brightness == word


@pytest.mark.parametrize(
    ("noise", "word"), [(3, "homogeneous"), (20, "moderately heterogeneous"), (40, "heterogeneous")]
)
def test_texture_follows_the_noise(noise: float, word: str) -> None:
    assert findings(ellipse((120, 150), (40, 40)), 120, 120, noise).texture == word


def test_one_pixel_can_be_measured() -> None:
    mask = np.zeros(HW, np.bool_)
    mask[0, 0] = True
    assert findings(mask).zone == "upper left"
    assert findings(mask).area_percent == 1
