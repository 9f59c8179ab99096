"""The way back from the padded square is the inverse of the way in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.postprocess import mask_at_source
from inference.preprocess import fit

SIDE = 256
SHAPES = [(256, 256), (512, 512), (300, 200), (200, 300), (1000, 340), (97, 601), (128, 128), (61, 33)]


def ellipse(source_hw: tuple[int, int]) -> np.ndarray:
    height, width = source_hw
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((rows / height - 0.4) / 0.25) ** 2 + ((columns / width - 0.6) / 0.2) ** 2 < 1


def logits_of(mask: np.ndarray) -> np.ndarray:
    """What a perfect mask decoder would give: the mask through preprocess, as logits in the padded square."""
    pixels = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    _, square = fit(pixels, SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return square[0, 0]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("source_hw", SHAPES)
def test_a_mask_comes_back_where_it_was(source_hw: tuple[int, int]) -> None:
    mask = ellipse(source_hw)
    found = mask_at_source(logits_of(mask), source_hw)
    assert found.shape == source_hw
    assert found.dtype == np.bool_
    assert dice(found, mask) > 0.985


@pytest.mark.parametrize("source_hw", [(1024, 512), (768, 1024)])
def test_an_edge_is_not_shifted_by_half_a_model_pixel(source_hw: tuple[int, int]) -> None:
    mask = np.zeros(source_hw, bool)
    mask[source_hw[0] // 2 :, :] = True
    found = mask_at_source(logits_of(mask), source_hw)
    first_row = int(np.argmax(found[:, source_hw[1] // 2]))
    assert abs(first_row - source_hw[0] // 2) <= 1


def test_padding_never_reaches_the_mask() -> None:
    logits = np.full((SIDE, SIDE), -1.0, np.float32)
    logits[:, 130:] = 9.0  # the image is 128 model pixels wide: all of this is padding
    assert not mask_at_source(logits, (512, 256)).any()


def test_a_logit_of_zero_is_background() -> None:
    assert not mask_at_source(np.zeros((SIDE, SIDE), np.float32), (256, 256)).any()


def test_a_single_pixel_is_kept() -> None:
    logits = np.full((SIDE, SIDE), -5.0, np.float32)
    logits[7, 9] = 5.0
    found = mask_at_source(logits, (SIDE, SIDE))
    assert np.argwhere(found).tolist() == [[7, 9]]


def test_logits_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="logits must end in"):
        mask_at_source(np.zeros((SIDE, 100), np.float32), (256, 256))


@given(st.integers(1, 700), st.integers(1, 700))
def test_every_source_shape_comes_back(height: int, width: int) -> None:
    found = mask_at_source(np.ones((SIDE, SIDE), np.float32), (height, width))
    assert found.shape == (height, width)
    assert found.all()
