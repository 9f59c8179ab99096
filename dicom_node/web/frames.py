"""WADO-RS frames: single frames, as they are stored or decoded.

Only the bytes of the frames asked for are read. Stored 1-bit frames that do not begin on a byte are
repacked, since a client gets each frame by itself.

Source: PS3.18 10.4.1.1.4 (frame resources), 8.7.3 (transfer syntax of octet streams), PS3.5 8.1.1, A.4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_node.errors import NotAcceptable, NotFound
from dicom_node.header import Header
from dicom_node.web.stored import inflated_data_set, open_stored, read_structure, served_syntax
from storage.part10 import absolute
from storage.tables import Instance

MAX_FRAME_BYTES: Final = 1024 * 1024 * 1024
BYTES_PER_SAMPLE_TAGS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
UNDECODABLE: Final = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class FrameReader:
    """The frames of one stored instance."""

    files_root: Path
    row: Instance
    header: Header

    @property
    def count(self) -> int:
        """How many frames the instance says it has."""
        return max(1, self.row.number_of_frames or 1)

    def stored(self, number: int) -> bytes:
        """Frame `number` (from 1) as it is stored, in the syntax that `served_syntax` names."""
        pixels = self.header.pixels
        if pixels is None or not 1 <= number <= self.count:
            raise NotFound(f"this instance has no frame {number}")
        return self._encapsulated(number) if pixels.length is None else self._native(number)

    def decoded(self, number: int) -> bytes:
        """Frame `number` (from 1) in Explicit VR Little Endian.

        Raises
        ------
        NotAcceptable
            If it cannot be decoded here.
        """
        pixels = self.header.pixels
        is_native = pixels is not None and pixels.length is not None
        stored = self.stored(number)
        if is_native and self.row.transfer_syntax_uid != ExplicitVRBigEndian:
            return stored
        frame_bits(self.header.elements, pixels.tag if pixels else 0)
        try:
            array = pixel_array(absolute(self.files_root, self.row.path), index=number - 1, raw=True)
        except UNDECODABLE as error:
            raise NotAcceptable("this frame cannot be decoded here: accept transfer-syntax=*") from error
        if self.header.elements.get("BitsAllocated") == 1:
            return _packed(array.reshape(-1))
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()

    def _encapsulated(self, number: int) -> bytes:
        elements = self.header.elements
        table, lengths = elements.get("ExtendedOffsetTable"), elements.get("ExtendedOffsetTableLengths")
        offsets = (table, lengths) if table and lengths else None
        with open_stored(self.files_root, self.row) as file:
            file.seek(self.header.pixels.value_offset if self.header.pixels else 0)
            try:
                return get_frame(file, number - 1, number_of_frames=self.count, extended_offsets=offsets)
            except (ValueError, EOFError, LookupError) as error:
                raise NotFound(f"frame {number} cannot be told apart in the stored pixel data") from error

    def _native(self, number: int) -> bytes:
        pixels = self.header.pixels
        if pixels is None or pixels.length is None:
            raise NotFound("this instance has no native pixels")
        bits = frame_bits(self.header.elements, pixels.tag)
        start, end = bits * (number - 1), bits * number
        if (end + 7) // 8 > pixels.length:
            raise NotFound(f"the stored pixel data ends before frame {number}")
        first, last = pixels.value_offset + start // 8, pixels.value_offset + (end + 7) // 8
        content = self._read(first, last - first)
        return content if start % 8 == 0 and bits % 8 == 0 else _aligned(content, start % 8, bits)

    def _read(self, start: int, length: int) -> bytes:
        if self.row.transfer_syntax_uid == "1.2.840.10008.1.2.1.99":
            return inflated_data_set(self.files_root, self.row)[start : start + length]
        with open_stored(self.files_root, self.row) as file:
            file.seek(start)
            return file.read(length)


def open_frames(files_root: Path, row: Instance) -> FrameReader:
    """Open the frames of `row`; raises NotFound when it has no pixels."""
    header = read_structure(files_root, row)
    if header.pixels is None:
        raise NotFound("this instance has no pixel data")
    return FrameReader(files_root, row, header)


def frame_bits(elements: Dataset, tag: int) -> int:
    """Bits of one native frame.

    Raises
    ------
    NotFound, NotAcceptable
        If the header does not say it, or says something absurd.
    """
    try:
        rows, columns = int(elements.Rows), int(elements.Columns)
        samples = int(elements.get("SamplesPerPixel") or 1)
        allocated = BYTES_PER_SAMPLE_TAGS.get(tag) or int(elements.BitsAllocated)
    except (AttributeError, TypeError, ValueError) as error:
        raise NotFound("the header does not say how large a frame is") from error
    if elements.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2  # Source: PS3.3 C.7.6.3.1.2: two chroma samples for every two pixels
    bits = rows * columns * samples * allocated
    if not 0 < bits <= MAX_FRAME_BYTES * 8:
        raise NotAcceptable("the header says a frame size that is not served")
    return bits


def choose_syntax(asked: str | None, row: Instance) -> str | None:
    """Transfer syntax to answer with, or None when this one cannot be given.

    Source: PS3.18 8.7.3.5.2: without the parameter, Explicit VR Little Endian is meant.
    """
    own = served_syntax(row)
    if asked in ("*", own):
        return own
    return str(ExplicitVRLittleEndian) if asked in (None, "", ExplicitVRLittleEndian) else None


def read_frames(reader: FrameReader, numbers: list[int], syntax: str) -> Iterator[bytes]:
    """Yield the frames in `syntax`, one that `choose_syntax` returned."""
    is_stored = syntax == served_syntax(reader.row)
    for number in numbers:
        yield reader.stored(number) if is_stored else reader.decoded(number)


def _aligned(content: bytes, skip_bits: int, bits: int) -> bytes:
    """Repack 1-bit pixels so that the frame begins on a byte. Source: PS3.5 8.1.1: lowest bit first."""
    unpacked = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    return _packed(unpacked[skip_bits : skip_bits + bits])


def _packed(ones: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    return np.packbits(ones, bitorder="little").tobytes()
