"""Masks kept as bits come back as they were, and join into one run of bits."""

import numpy as np
import pytest

from dicom_node.mask_stack import MaskStack, join_bits
from tests import builders


@pytest.mark.parametrize("size", [(8, 16), (25, 37), (3, 1)])
def test_masks_come_back_as_they_were(size: tuple[int, int]) -> None:
    random = np.random.default_rng(5)
    masks = [random.random(size) < share for share in (0.5, 0.0, 1.0, 0.1)]
    stack = MaskStack.of(masks)
    assert len(stack) == 4
    assert all((kept == mask).all() for kept, mask in zip(stack, masks, strict=True))
    assert stack.areas_px == tuple(int(mask.sum()) for mask in masks)
    assert stack.marked == [index for index, mask in enumerate(masks) if mask.any()]
    assert [mask.sum() for mask in stack[2:0:-1]] == [size[0] * size[1], 0]


@pytest.mark.parametrize("size", [(8, 16), (25, 37)])
@pytest.mark.parametrize("count", [1, 7, 8, 17])
def test_bits_join_as_if_all_pixels_were_packed_at_once(size: tuple[int, int], count: int) -> None:
    masks = np.random.default_rng(count).random((count, *size)) < 0.4
    masks[count // 2] = False
    stack = MaskStack.of(list(masks))
    joined = join_bits([stack.bits(index) for index in range(count)], size[0] * size[1])
    assert joined == np.packbits(masks, bitorder="little").tobytes()


def test_a_mask_may_be_replaced_and_taken_back() -> None:
    stack = MaskStack((25, 37), 2)
    assert not stack[0].any()
    stack.put(0, builders.make_ellipse((25, 37), (11, 16), (3, 5)))
    assert stack.marked == [0]
    stack.put(0, np.zeros((25, 37), bool))
    assert stack.marked == []


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(37, 25\) cannot be that of a frame of \(25, 37\)"):
        MaskStack((25, 37), 1).put(0, np.ones((37, 25), bool))
