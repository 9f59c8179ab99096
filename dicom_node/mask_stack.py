"""6 RUN, what is kept of it: the masks of a series, packed into bits as each appears."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]


class MaskStack(Sequence[Mask]):
    """One mask (H, W) bool for each frame of a series; those without a pixel cost nothing.

    A mask takes an eighth of its memory, and a Segmentation takes the bits as they are, so that nothing of
    them is left to do once the last mask is there.
    """

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.size = size
        self._bits: list[Bits | None] = [None] * count
        self._areas_px = [0] * count

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> "MaskStack":
        """The stack of all of `masks`, one or more (H, W) bool."""
        height, width = masks[0].shape
        stack = cls((height, width), len(masks))
        for index, mask in enumerate(masks):
            stack.put(index, mask)
        return stack

    def put(self, index: int, mask: Mask) -> None:
        """Keep `mask` (H, W) bool as that of frame `index`.

        Raises
        ------
        ValueError
            If it has another size than the frames.
        """
        if mask.shape != self.size:
            raise ValueError(f"a mask of {mask.shape} cannot be that of a frame of {self.size}")
        area = int(np.count_nonzero(mask))
        self._areas_px[index] = area
        self._bits[index] = np.packbits(mask, bitorder="little") if area else None

    @property
    def areas_px(self) -> tuple[int, ...]:
        """Pixels of each mask."""
        return tuple(self._areas_px)

    @property
    def marked(self) -> list[int]:
        """The frames with at least one pixel."""
        return [index for index, area in enumerate(self._areas_px) if area]

    def part(self, places: Sequence[int]) -> "MaskStack":
        """The masks of some frames, in this order."""
        part = MaskStack(self.size, len(places))
        part._bits = [self._bits[place] for place in places]
        part._areas_px = [self._areas_px[place] for place in places]
        return part

    def bits(self, index: int) -> Bits:
        """The mask of a frame, its pixels from the lowest bit on, filled up to whole bytes with zeros."""
        bits = self._bits[index]
        return np.zeros(-(-self.size[0] * self.size[1] // 8), np.uint8) if bits is None else bits

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self._bits)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> "MaskStack": ...
    def __getitem__(self, index: int | slice) -> "Mask | MaskStack":
        """The mask of a frame; an empty one is read-only and costs one byte."""
        if isinstance(index, slice):
            return self.part(range(len(self))[index])
        bits = self._bits[index]
        if bits is None:
            return np.broadcast_to(np.False_, self.size)
        count = self.size[0] * self.size[1]
        return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_).reshape(self.size)


def join_bits(frames: Iterable[Bits], pixels: int) -> bytes:
    """The bits of frames of `pixels` each as one run, a frame beginning where the last one ended.

    Source: PS3.5 8.1.1.
    """
    if pixels % 8 == 0:
        return b"".join(frame.tobytes() for frame in frames)
    return b"".join(
        np.packbits(np.concatenate(eight), bitorder="little").tobytes() for eight in _eights(frames, pixels)
    )


def _eights(frames: Iterable[Bits], pixels: int) -> Iterator[list[Bits]]:
    """Pixels of eight frames at a time, which are whole bytes always."""
    eight: list[Bits] = []
    for frame in frames:
        eight.append(np.unpackbits(frame, count=pixels, bitorder="little"))
        if len(eight) == 8:
            yield eight
            eight = []
    if eight:
        yield eight
