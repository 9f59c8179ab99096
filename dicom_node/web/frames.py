"""WADO-RS frames: single frames, as they are stored or decoded.

Only the bytes of the frames asked for are read; where they are is worked out once for a file and kept, since
the file of a digest never changes. Stored 1-bit frames that do not begin on a byte are repacked, since a
client gets each frame by itself.

Source: PS3.18 10.4.1.1.4 (frame resources), 8.7.3 (transfer syntax of octet streams), PS3.5 8.1.1, A.4.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_node.decoding import decode_frame
from dicom_node.errors import NotAcceptable, NotFound
from dicom_node.header import PixelElement
from dicom_node.limited import LimitedPool
from dicom_node.web.stored import inflated_data_set, opened, read_structure, served_syntax
from storage.files import FileStore
from storage.retrieval import KeptInstance

MAX_FRAME_BYTES: Final = 1024 * 1024 * 1024
MAX_LAYOUTS: Final = 4096
BYTES_PER_SAMPLE_TAGS: Final = {0x7FE00008: 32, 0x7FE00009: 64}


@dataclass(frozen=True)
class Layout:
    """Where the frames of one file are."""

    pixels: PixelElement
    count: int
    native_bits: int | None  # of one frame, without compression; None when the header does not say
    offsets: tuple[bytes, bytes] | None  # Extended Offset Table and its lengths


class Layouts:
    """The layouts of files seen lately, by their digest; for many threads."""

    def __init__(self, most: int = MAX_LAYOUTS) -> None:
        self._most = most
        self._known: OrderedDict[str, Layout] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, files: FileStore, row: KeptInstance) -> Layout:
        """Return the layout of the file of `row`; raises NotFound when it has no pixels."""
        with self._lock:
            known = self._known.get(row.sha256)
            if known is not None:
                self._known.move_to_end(row.sha256)
                return known
        layout = _read_layout(files, row)
        with self._lock:
            self._known[row.sha256] = layout
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return layout


def _read_layout(files: FileStore, row: KeptInstance) -> Layout:
    header = read_structure(files, row)
    if header.pixels is None:
        raise NotFound("this instance has no pixel data")
    elements = header.elements
    table, lengths = elements.get("ExtendedOffsetTable"), elements.get("ExtendedOffsetTableLengths")
    try:
        bits = frame_bits(elements, header.pixels.tag)
    except NotFound:
        bits = None
    offsets = (table, lengths) if table and lengths else None
    return Layout(header.pixels, max(1, row.number_of_frames or 1), bits, offsets)


@dataclass(frozen=True)
class FrameReader:
    """The frames of one stored instance."""

    files: FileStore
    row: KeptInstance
    layout: Layout
    decoders: LimitedPool

    @property
    def count(self) -> int:
        """How many frames the instance says it has."""
        return self.layout.count

    def stored(self, number: int) -> bytes:
        """Frame `number` (from 1) as it is stored, in the syntax that `served_syntax` names."""
        if not 1 <= number <= self.count:
            raise NotFound(f"this instance has no frame {number}")
        return self._encapsulated(number) if self.layout.pixels.length is None else self._native(number)

    def decoded(self, number: int) -> bytes:
        """Frame `number` (from 1) in Explicit VR Little Endian; raises ChildFailed if it cannot be."""
        is_native = self.layout.pixels.length is not None
        if is_native and self.row.transfer_syntax_uid != ExplicitVRBigEndian:
            return self.stored(number)
        if not 1 <= number <= self.count:
            raise NotFound(f"this instance has no frame {number}")
        if self.layout.native_bits is None:
            raise NotFound("the header does not say how large a frame is")
        with self.files.local(self.row.path) as path:
            return bytes(self.decoders.run(decode_frame, str(path), number - 1))

    def _encapsulated(self, number: int) -> bytes:
        with opened(self.files, self.row) as file:
            file.seek(self.layout.pixels.value_offset)
            try:
                return get_frame(
                    file, number - 1, number_of_frames=self.count, extended_offsets=self.layout.offsets
                )
            except (ValueError, EOFError, LookupError) as error:
                raise NotFound(f"frame {number} cannot be told apart in the stored pixel data") from error

    def _native(self, number: int) -> bytes:
        pixels, bits = self.layout.pixels, self.layout.native_bits
        if pixels.length is None or bits is None:
            raise NotFound("the header does not say how large a frame is")
        start, end = bits * (number - 1), bits * number
        if (end + 7) // 8 > pixels.length:
            raise NotFound(f"the stored pixel data ends before frame {number}")
        first, last = pixels.value_offset + start // 8, pixels.value_offset + (end + 7) // 8
        content = self._read(first, last - first)
        return content if start % 8 == 0 and bits % 8 == 0 else _aligned(content, start % 8, bits)

    def _read(self, start: int, length: int) -> bytes:
        if self.row.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            return inflated_data_set(self.files, self.row)[start : start + length]
        with opened(self.files, self.row) as file:
            file.seek(start)
            return file.read(length)


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


def choose_syntax(asked: str | None, row: KeptInstance) -> str | None:
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
    return np.packbits(unpacked[skip_bits : skip_bits + bits], bitorder="little").tobytes()
