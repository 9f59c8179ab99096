"""Walks the structure of a data set within limits, before any library parses it.

pydicom has no limits: deep nesting, a million elements or a deflated bomb cost it the process.
The walk looks at tags, lengths and nesting only, so it is cheap, sees a truncated file
whatever was cut off, and yields the short top-level elements that the index needs.

Source: PS3.5 7 (elements, sequences), A.4 (encapsulated pixel data), PS3.10 7.1 (meta information).
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Final, NamedTuple, Self

from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicom_node.errors import InstanceTooLarge, Unparseable

MIB: Final = 1024 * 1024
PREAMBLE_BYTES: Final = 128
META_START: Final = PREAMBLE_BYTES + 4
MAX_META_BYTES: Final = 64 * 1024
BULK_BYTES: Final = 64 * 1024  # a longer value counts as bulk: not part of the header, not indexed

ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
UNDEFINED: Final = 0xFFFFFFFF
META_TAGS: Final = (0x00020002, 0x00020003, 0x00020010)  # SOP class, SOP instance, transfer syntax
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
SHORT_VRS: Final = frozenset((b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US").split())
SEQUENCE_TAGS: Final = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")

Buffer = bytes | bytearray | memoryview | mmap.mmap
Span = tuple[int, bytes, int, int, int]  # tag, VR; where element and value begin, and where they end


@dataclass(frozen=True)
class HeaderLimits:
    """How much structure is walked before an object is refused."""

    max_header_bytes: int = 16 * MIB  # all that is not bulk
    max_elements: int = 200_000
    max_fragments: int = 2_000_000
    max_depth: int = 64  # sequences inside sequences
    max_inflated_bytes: int = 2048 * MIB  # of a deflated data set


@dataclass(frozen=True)
class HeaderPlan:
    """Where and how to look into a file that is being received."""

    start: int  # bytes before the data set
    syntax: str
    limits: HeaderLimits
    tags: Container[int]  # whose values are wanted


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels of a file are."""

    tag: int
    value_offset: int  # bytes from the start of the file (of the inflated data set, when deflated)
    length: int | None  # bytes; None when encapsulated in fragments


@dataclass(frozen=True)
class Header:
    """What the index needs of one file."""

    meta: FileMetaDataset
    elements: Dataset  # short top-level elements; no sequences, no bulk, no pixels
    pixels: PixelElement | None
    data_set_offset: int  # bytes from the start of the file


class _Ended(Exception):
    """The buffer ended; whether that is an error depends on what the buffer is."""


class _ByteOrder:
    """How the heads of elements are read."""

    def __init__(self, order: str) -> None:
        self.tag = struct.Struct(order + "HH").unpack_from
        self.long = struct.Struct(order + "I").unpack_from
        self.short_element = struct.Struct(order + "HH2sH").unpack_from
        self.short = struct.Struct(order + "H").unpack_from


_LITTLE, _BIG = _ByteOrder("<"), _ByteOrder(">")


class _Walk:
    """One pass over one data set in a buffer."""

    def __init__(
        self,
        buffer: Buffer,
        start: int,
        limits: HeaderLimits,
        *,
        is_big_endian: bool = False,
        end: int | None = None,
    ) -> None:
        self.buffer = buffer
        self.position = start
        self.limits = limits
        self.end = len(buffer) if end is None else end  # beyond the buffer: it holds the beginning only
        self.elements = 0
        self.fragments = 0
        self.header_bytes = 0
        self.pixels: PixelElement | None = None
        self.top_level: list[Span] = []
        order = _BIG if is_big_endian else _LITTLE
        self.read_tag, self.read_long, self.read_short = order.tag, order.long, order.short
        self.read_short_element = order.short_element

    def top(self, *, is_implicit: bool, only_group: int | None = None) -> None:
        """Walk the top level up to the end of the buffer, or of `only_group`."""
        while self.position < self.end:
            if not is_implicit:
                self._short_elements(only_group)
                if self.position >= self.end:
                    return
            start = self.position
            if only_group is not None and self.read_tag(self.buffer, start)[0] != only_group:
                return
            tag, vr, length = self._element(is_implicit=is_implicit)
            value = self.position
            if tag in PIXEL_TAGS:
                self.pixels = PixelElement(tag, value, None if length == UNDEFINED else length)
            self._value(tag, vr, length, depth=0, is_implicit=is_implicit)
            if length <= BULK_BYTES and tag not in PIXEL_TAGS and not _is_sequence(tag, vr):
                self._note(tag, vr, start, value)

    def _short_elements(self, only_group: int | None) -> None:
        """Pass over elements with a 16-bit length, which nearly all of a header are, in one tight loop."""
        buffer, position, end, read = self.buffer, self.position, self.end, self.read_short_element
        header_left = self.limits.max_header_bytes - self.header_bytes
        last = min(end, len(buffer), position + header_left) - 8
        count, note = 0, self.top_level.append
        while position <= last and self.elements + count < self.limits.max_elements:
            group, element, vr, length = read(buffer, position)
            value = position + 8
            if (
                vr not in SHORT_VRS
                or value + length > end
                or (only_group is not None and group != only_group)
            ):
                break
            note((group << 16 | element, vr, position, value, value + length))
            position = value + length
            count += 1
        if position > len(buffer):
            raise _Ended
        self._count_header(position - self.position)
        self.elements += count
        self.position = position

    def _note(self, tag: int, vr: bytes, start: int, value: int) -> None:
        if self.position > len(self.buffer):
            raise _Ended
        self.top_level.append((tag, vr, start, value, self.position))

    def elements_at_top(self) -> bytes:
        """The short elements of the top level, encoded as they came."""
        return b"".join(bytes(self.buffer[start:end]) for _tag, _vr, start, _value, end in self.top_level)

    def values_of(self, tags: Container[int]) -> dict[int, tuple[bytes, bytes]]:
        """VR (empty when implicit) and value of those of `tags` that the top level has."""
        return {
            tag: (vr, bytes(self.buffer[value:end]))
            for tag, vr, _start, value, end in self.top_level
            if tag in tags
        }

    def _element(self, *, is_implicit: bool) -> tuple[int, bytes, int]:
        """Read tag, VR (empty when implicit) and length; the position is then at the value."""
        position = self.position
        if position + 8 > self.end:
            raise _Ended
        group, element = self.read_tag(self.buffer, position)
        tag = group << 16 | element
        self._count(tag)
        if is_implicit or group == 0xFFFE:
            self.position = position + 8
            return tag, b"", self.read_long(self.buffer, position + 4)[0]
        vr = bytes(self.buffer[position + 4 : position + 6])
        if vr in SHORT_VRS:
            self.position = position + 8
            return tag, vr, self.read_short(self.buffer, position + 6)[0]
        if vr not in LONG_VRS:
            raise Unparseable(f"element {_name(tag)} has no known value representation")
        if position + 12 > self.end:
            raise _Ended
        self.position = position + 12
        return tag, vr, self.read_long(self.buffer, position + 8)[0]

    def _count(self, tag: int) -> None:
        self.elements += 1
        if self.elements > self.limits.max_elements:
            raise Unparseable(f"more than {self.limits.max_elements} elements (at {_name(tag)})")

    def _value(self, tag: int, vr: bytes, length: int, *, depth: int, is_implicit: bool) -> None:
        if length == UNDEFINED:
            self._undefined(tag, vr, depth=depth, is_implicit=is_implicit)
            return
        end = self.position + length
        if end > self.end:
            raise _Ended
        if _is_sequence(tag, vr):
            self._items(depth=depth + 1, is_implicit=is_implicit, end=end)
            if self.position != end:
                raise Unparseable(f"the items of {_name(tag)} do not fill it")
        self.position = end
        self._count_header(8 + (length if length <= BULK_BYTES else 0))

    def _count_header(self, count: int) -> None:
        self.header_bytes += count
        if self.header_bytes > self.limits.max_header_bytes:
            raise Unparseable(f"the header is larger than {self.limits.max_header_bytes} bytes")

    def _undefined(self, tag: int, vr: bytes, *, depth: int, is_implicit: bool) -> None:
        if tag in PIXEL_TAGS:
            self._fragments()
        elif vr in (b"SQ", b"", b"UN"):
            # Source: PS3.5 6.2.2 note 4: UN of undefined length holds implicit little endian items.
            self._items(depth=depth + 1, is_implicit=is_implicit or vr == b"UN", end=None)
        else:
            raise Unparseable(f"{_name(tag)} may not have an undefined length")

    def _items(self, *, depth: int, is_implicit: bool, end: int | None) -> None:
        if depth > self.limits.max_depth:
            raise Unparseable(f"sequences are nested more than {self.limits.max_depth} deep")
        while end is None or self.position < end:
            tag, _vr, length = self._element(is_implicit=True)
            if tag == SEQUENCE_END and end is None:
                return
            if tag != ITEM:
                raise Unparseable(f"{_name(tag)} stands where an item of a sequence should")
            self._item(length, depth=depth, is_implicit=is_implicit)

    def _item(self, length: int, *, depth: int, is_implicit: bool) -> None:
        end = None if length == UNDEFINED else self.position + length
        if end is not None and end > self.end:
            raise _Ended
        while end is None or self.position < end:
            tag, vr, value_length = self._element(is_implicit=is_implicit)
            if tag == ITEM_END and end is None:
                return
            self._value(tag, vr, value_length, depth=depth, is_implicit=is_implicit)
        if self.position != end:
            raise Unparseable("an element is longer than the item it stands in")

    def _fragments(self) -> None:
        while True:
            if self.position + 8 > self.end:
                raise _Ended
            group, element = self.read_tag(self.buffer, self.position)
            length = self.read_long(self.buffer, self.position + 4)[0]
            self.position += 8
            if group << 16 | element == SEQUENCE_END:
                return
            if group << 16 | element != ITEM or length == UNDEFINED:
                raise Unparseable("the fragments of the pixel data are not a row of items")
            self.position += length
            self.fragments += 1
            if self.fragments > self.limits.max_fragments:
                raise Unparseable(f"more than {self.limits.max_fragments} fragments of pixel data")


def split_meta(head: bytes | memoryview) -> tuple[FileMetaDataset, int]:
    """Parse the File Meta Information at the start of a Part 10 file; returns it and its end in bytes.

    Raises
    ------
    Unparseable
        If `head`, the first 64 KiB or the whole file, is not the start of a Part 10 file.
    """
    end = _walk_meta(head).position
    return FileMetaDataset(read_dataset(BytesIO(head[META_START:end]), False, True)), end


class MetaUids(NamedTuple):
    """What of the File Meta Information is acted upon; "" = it is not there."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str

    @classmethod
    def of(cls, meta: FileMetaDataset) -> Self:
        """Take them from a parsed data set."""
        return cls(*(str(meta[tag].value or "") if tag in meta else "" for tag in META_TAGS))


def split_meta_uids(head: bytes | memoryview) -> tuple[MetaUids, int]:
    """Read the UIDs at the start of a Part 10 file; returns them and the end of the meta information.

    Where that is certain to be the same, without a parser, which takes ten times as long. Raises as
    `split_meta`.
    """
    walk = _walk_meta(head)
    found = walk.values_of(META_TAGS)
    if all(vr == b"UI" and value.isascii() and b"\\" not in value for vr, value in found.values()):
        texts = (found.get(tag, (b"", b""))[1].decode("ascii").rstrip("\0 ") for tag in META_TAGS)
        return MetaUids(*texts), walk.position
    meta, end = split_meta(head)
    return MetaUids.of(meta), end


def _walk_meta(head: bytes | memoryview) -> _Walk:
    if head[PREAMBLE_BYTES:META_START] != b"DICM":
        raise Unparseable("this is not a DICOM file: DICM is missing at byte 128")
    walk = _Walk(memoryview(head)[:MAX_META_BYTES], META_START, HeaderLimits())
    try:
        walk.top(is_implicit=False, only_group=0x0002)
    except (_Ended, struct.error) as error:
        raise Unparseable("the file meta information is truncated") from error
    return walk


@dataclass(frozen=True)
class ReceivedHeader:
    """What was found in an instance that is being received."""

    values: dict[int, tuple[bytes, bytes]]  # VR (empty when implicit) and value, by tag
    encode: Callable[[], bytes]  # the short elements of the top level, as they came
    syntax: str

    def parse(self) -> Dataset:
        """The short top-level elements as pydicom reads them; no sequences, no bulk, no pixels."""
        return _parse(self.encode(), self.syntax)


def check_received(
    beginning: Buffer, size_bytes: int, reader: Callable[[], BinaryIO], plan: HeaderPlan
) -> ReceivedHeader:
    """Walk the whole structure of a file that is being received; raises as `read_header` does.

    Its pixels need no look when the header says their length: then `beginning`, the first bytes of the
    file, is enough, and `reader` is not called.
    """
    syntax, limits = plan.syntax, plan.limits
    walk = None
    if syntax != DeflatedExplicitVRLittleEndian:
        walk = _walk_beginning(beginning, plan.start, size_bytes, limits, syntax)
    if walk is not None:
        return ReceivedHeader(walk.values_of(plan.tags), walk.elements_at_top, syntax)
    with reader() as file, mapped(file) as buffer:
        is_deflated = syntax == DeflatedExplicitVRLittleEndian
        walk = (
            _walk_deflated(buffer, plan.start, limits)
            if is_deflated
            else _walk_plain(buffer, plan.start, limits, syntax)
        )
        encoded = walk.elements_at_top()
        return ReceivedHeader(walk.values_of(plan.tags), lambda: encoded, syntax)


def read_header(file: BinaryIO, limits: HeaderLimits) -> Header:
    """Walk the whole Part 10 file and parse what the index needs of it.

    Raises
    ------
    Unparseable
        If the structure is broken, truncated, or beyond the limits.
    InstanceTooLarge
        If a deflated data set inflates to more than the limits allow.
    """
    with mapped(file) as buffer:
        meta, offset = split_meta(bytes(buffer[: META_START + MAX_META_BYTES]))
        syntax = str(meta.get("TransferSyntaxUID", ""))
        if syntax == DeflatedExplicitVRLittleEndian:
            walk = _walk_deflated(buffer, offset, limits)
        else:
            walk = _walk_plain(buffer, offset, limits, syntax)
        encoded = walk.elements_at_top()
    return Header(meta, _parse(encoded, syntax), walk.pixels, offset)


@contextmanager
def mapped(file: BinaryIO) -> Iterator[mmap.mmap]:
    """Map a file for reading; only the pages that are looked at are read."""
    try:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise Unparseable("the file is empty") from error
    with buffer:
        yield buffer


def inflate(deflated: Buffer, start: int, max_bytes: int) -> bytes:
    """Inflate a deflated data set from `start`, at most `max_bytes` of it.

    Source: PS3.5 A.5 (RFC 1951, no zlib header).
    """
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated[start:], max_bytes)
    except zlib.error as error:
        raise Unparseable("the deflated data set is damaged") from error


def _walk_plain(buffer: Buffer, offset: int, limits: HeaderLimits, syntax: str) -> _Walk:
    walk = _Walk(buffer, offset, limits, is_big_endian=syntax == ExplicitVRBigEndian)
    try:
        walk.top(is_implicit=syntax == ImplicitVRLittleEndian)
    except (_Ended, struct.error) as error:
        raise Unparseable(f"the data set is truncated near byte {walk.position}") from error
    return walk


def _walk_beginning(
    beginning: Buffer, start: int, end: int, limits: HeaderLimits, syntax: str
) -> _Walk | None:
    """Walk a file by its beginning alone; None when something beyond it must be looked at."""
    walk = _Walk(beginning, start, limits, is_big_endian=syntax == ExplicitVRBigEndian, end=end)
    try:
        walk.top(is_implicit=syntax == ImplicitVRLittleEndian)
    except (_Ended, struct.error):
        return None
    return walk


def _walk_deflated(buffer: Buffer, offset: int, limits: HeaderLimits) -> _Walk:
    """Walk the beginning of a deflated data set; the rest is only inflated and counted."""
    head_bytes = limits.max_header_bytes + MIB
    walk = _Walk(inflate(buffer, offset, head_bytes), 0, limits)
    try:
        walk.top(is_implicit=False)
    except (_Ended, struct.error) as error:
        if walk.end < head_bytes or walk.pixels is None:
            raise Unparseable("the deflated data set is truncated") from error
    _count_inflated(bytes(buffer[offset:]), limits.max_inflated_bytes)
    return walk


def _count_inflated(deflated: bytes, max_bytes: int) -> None:
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof:
        try:
            piece = inflater.decompress(deflated, MIB)
        except zlib.error as error:
            raise Unparseable("the deflated data set is damaged") from error
        deflated, total = inflater.unconsumed_tail, total + len(piece)
        if not piece and not deflated and not inflater.eof:
            raise Unparseable("the deflated data set is truncated")
        if total > max_bytes:
            raise InstanceTooLarge(f"the data set inflates to more than {max_bytes} bytes")


def _parse(encoded: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(encoded), syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)


def _is_sequence(tag: int, vr: bytes) -> bool:
    return vr == b"SQ" or (not vr and tag in SEQUENCE_TAGS)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
