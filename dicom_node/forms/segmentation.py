"""SEG, its three forms: how the pixels of a mask are written in each, and what else differs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from highdicom.seg import SegmentationTypeValues
from numpy.typing import NDArray

from dicom_node.forms.form import Form

FULL: Final = 255  # of a FRACTIONAL pixel: OHIF shows only nothing and all

Masks = Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Encoding:
    """How one form of SEG holds a mask."""

    type: SegmentationTypeValues
    pixels: Callable[[Masks], bytes]  # masks (H, W) of all frames -> Pixel Data
    stands_in: Callable[[NDArray[np.bool_]], NDArray[Any]]  # a mask as highdicom wants it
    names_segment: bool  # whether each frame belongs to one segment, which is then its first dimension


def packed(masks: Masks) -> bytes:
    """All pixels as one run of bits; eight frames are whole bytes always. Source: PS3.5 8.1.1."""
    parts = [
        np.packbits(np.stack(masks[start : start + 8]).reshape(-1), bitorder="little").tobytes()
        for start in range(0, len(masks), 8)
    ]
    return _even(b"".join(parts))


def bytewise(value: int) -> Callable[[Masks], bytes]:
    """One byte a pixel, `value` inside."""

    def pixels(masks: Masks) -> bytes:
        return _even(b"".join((mask.astype(np.uint8) * np.uint8(value)).tobytes() for mask in masks))

    return pixels


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


ENCODINGS: Final[dict[Form, Encoding]] = {
    Form.SEG: Encoding(SegmentationTypeValues.BINARY, packed, lambda mask: mask, names_segment=True),
    Form.SEG_LABELMAP: Encoding(
        SegmentationTypeValues.LABELMAP, bytewise(1), lambda mask: mask.astype(np.uint8), names_segment=False
    ),
    Form.SEG_FRACTIONAL: Encoding(
        SegmentationTypeValues.FRACTIONAL,
        bytewise(FULL),
        lambda mask: mask.astype(np.float32),
        names_segment=True,
    ),
}
