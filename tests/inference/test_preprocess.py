"""The way into the square and back out of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, ResizeLongestSide, fit, normalise_and_pad

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


@given(sizes)
def test_longest_side_fills_the_square(source_hw: tuple[int, int]) -> None:
    height, width = ResizeLongestSide(source_hw, 256).inner_hw
    assert max(height, width) == 256
    assert min(height, width) >= 1


def test_halves_round_up_as_in_sam() -> None:
    assert ResizeLongestSide((5, 512), 256).inner_hw == (3, 256)  # 2.5


def test_padding_is_zero_after_normalisation() -> None:
    frame, square = fit(np.full((100, 200, 3), 255, np.uint8), 256)
    assert frame.inner_hw == (128, 256)
    assert square.shape == (1, 3, 256, 256)
    assert square.dtype == np.float32
    assert not square[0, :, 128:].any()
    expected = (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(square[0, :, 60, 60], expected, rtol=1e-5)


def test_unpad_undoes_padding() -> None:
    frame = ResizeLongestSide((300, 150), 256)
    logits = np.arange(256 * 256, dtype=np.float32).reshape(1, 256, 256)
    assert frame.unpad(logits).shape == (1, 256, 128)
    with pytest.raises(ValueError, match="logits must end in"):
        frame.unpad(logits[:, :255])


@pytest.mark.parametrize(
    ("source_hw", "rows", "columns"),
    [((256, 256), 16, 16), ((128, 256), 8, 16), ((500, 100), 16, 3), ((1, 900), 1, 16)],
)
def test_valid_cells_have_their_centre_in_the_image(
    source_hw: tuple[int, int], rows: int, columns: int
) -> None:
    valid = ResizeLongestSide(source_hw, 256).valid_cells(16)
    assert valid.dtype == np.float32
    assert valid.sum() == rows * columns
    assert valid[:rows, :columns].all()


def test_wrong_pixels_are_refused() -> None:
    frame = ResizeLongestSide((10, 20), 256)
    with pytest.raises(ValueError, match="expected uint8"):
        frame.resize(np.zeros((20, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        frame.resize(np.zeros((10, 20, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="within 256"):
        normalise_and_pad(np.zeros((300, 20, 3), np.uint8), 256)
    with pytest.raises(ValueError, match="cannot be fitted"):
        ResizeLongestSide((0, 5), 256)
