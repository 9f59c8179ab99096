import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from dicom_node.regions import MAX_POINTS, measure, outline, outlines
from tests.builders import make_ellipse


def signed_area(line: NDArray[np.float64]) -> float:
    x, y = line[:, 0], line[:, 1]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_one_pixel_is_its_square() -> None:
    mask = np.zeros((5, 6), bool)
    mask[2, 3] = True
    line = outline(mask)
    assert {tuple(point) for point in line.tolist()} == {(3, 2), (4, 2), (4, 3), (3, 3)}
    assert (line[0] == line[-1]).all()


def test_pixels_that_touch_by_a_corner_are_two_parts() -> None:
    mask = np.eye(2, dtype=bool)
    assert len(outlines(mask)) == 2


def test_a_hole_runs_the_other_way_and_is_not_the_outline() -> None:
    mask = make_ellipse((60, 60), (30, 30), (25, 25)) & ~make_ellipse((60, 60), (30, 30), (20, 20))
    areas = sorted(signed_area(line) for line in outlines(mask))
    assert areas[0] < 0 < areas[1]
    assert signed_area(outline(mask)) == pytest.approx(
        make_ellipse((60, 60), (30, 30), (25, 25)).sum(), rel=0.02
    )


def test_the_largest_part_is_outlined() -> None:
    mask = make_ellipse((80, 80), (20, 20), (5, 5)) | make_ellipse((80, 80), (55, 50), (15, 12))
    line = outline(mask)
    assert line[:, 1].min() > 35


def test_a_ragged_border_is_bounded() -> None:
    mask = np.random.default_rng(3).random((200, 200)) < 0.7
    assert len(outline(mask)) <= MAX_POINTS


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_the_outlines_enclose_the_mask(mask: NDArray[np.bool_]) -> None:
    """Simplified by at most 0.4 pixels, small borders stay exactly on the pixel edges."""
    lines = outlines(mask)
    assert bool(lines) == bool(mask.any())
    for line in lines:
        assert (line[0] == line[-1]).all()
        assert line.min() >= 0
        assert line[:, 0].max() <= mask.shape[1]
        assert line[:, 1].max() <= mask.shape[0]
    assert sum(signed_area(line) for line in lines) == pytest.approx(mask.sum(), abs=0.5 * mask.sum() + 1)


def test_axes_and_area_take_the_spacing_of_each_direction() -> None:
    mask = make_ellipse((101, 101), (50, 50), (40, 20))
    sizes = measure(mask, (0.5, 2.0))
    assert sizes.area_px == mask.sum()
    assert sizes.area_mm2 == pytest.approx(mask.sum() * 1.0)
    assert sizes.long_axis == pytest.approx(80.0, rel=0.04)
    assert sizes.short_axis == pytest.approx(40.0, rel=0.04)
    assert not measure(mask, None).is_calibrated
