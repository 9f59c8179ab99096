"""SEG, its three forms: how the pixels of masks are written in each, and what else differs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from highdicom.seg import SegmentationTypeValues
from numpy.typing import DTypeLike, NDArray

from dicom_node.forms.form import Form
from dicom_node.mask_stack import MaskStack, join_bits

FULL: Final = 255  # of a FRACTIONAL pixel: OHIF shows only nothing and all

Stacks = Sequence[MaskStack]  # one a segment, all of the same frames


@dataclass(frozen=True)
class Place:
    """A frame of the SEG: which segment it shows (None: all of them), and which frame of the series."""

    segment: int | None  # from 0
    index: int


@dataclass(frozen=True)
class Encoding:
    """How one form of SEG holds masks."""

    kind: SegmentationTypeValues
    places: Callable[[Stacks], list[Place]]  # the frames of the SEG, in their order
    pixels: Callable[[Stacks, Sequence[Place]], bytes]  # Pixel Data
    dtype: DTypeLike  # of an array of masks for highdicom


def one_each(stacks: Stacks) -> list[Place]:
    """A frame for every mask that is not empty, one segment after the other."""
    return [Place(number, index) for number, stack in enumerate(stacks) for index in stack.marked]


def one_for_all(stacks: Stacks) -> list[Place]:
    """A frame wherever any segment has a mask."""
    return [Place(None, index) for index in sorted({index for stack in stacks for index in stack.marked})]


def packed(stacks: Stacks, places: Sequence[Place]) -> bytes:
    """All pixels as one run of bits."""
    height, width = stacks[0].size
    bits = (stacks[place.segment or 0].bits(place.index) for place in places)
    return _even(join_bits(bits, height * width))


def full(stacks: Stacks, places: Sequence[Place]) -> bytes:
    """One byte a pixel, FULL inside."""
    masks = (stacks[place.segment or 0][place.index] for place in places)
    return _even(b"".join((mask.astype(np.uint8) * np.uint8(FULL)).tobytes() for mask in masks))


def labelled(stacks: Stacks, places: Sequence[Place]) -> bytes:
    """One byte a pixel, the number of its segment; where segments overlap, the last one has the pixel."""
    return _even(b"".join(_labels(stacks, place.index).tobytes() for place in places))


def _labels(stacks: Stacks, index: int) -> NDArray[np.uint8]:
    labels = np.zeros(stacks[0].size, np.uint8)
    for number, stack in enumerate(stacks, start=1):
        labels[stack[index]] = number
    return labels


def _even(data: bytes) -> bytes:
    return data + b"\0" if len(data) % 2 else data


def array_for_highdicom(encoding: Encoding, mask: NDArray[np.bool_], segments: int) -> NDArray[Any]:
    """One frame (1, H, W, segments) in which the first segment has `mask` (H, W) and the others nothing."""
    array = np.zeros((1, *mask.shape, segments), encoding.dtype)
    array[0, :, :, 0] = mask
    return array


ENCODINGS: Final[dict[Form, Encoding]] = {
    Form.SEG: Encoding(SegmentationTypeValues.BINARY, one_each, packed, np.uint8),
    Form.SEG_LABELMAP: Encoding(SegmentationTypeValues.LABELMAP, one_for_all, labelled, np.uint8),
    Form.SEG_FRACTIONAL: Encoding(SegmentationTypeValues.FRACTIONAL, one_each, full, np.float32),
}
