"""7 SEG, its bytes: data elements in Explicit VR Little Endian, for sequences of hundreds of like items.

pydicom takes about 0.3 ms for such an item, which is most of what the SEG of a long series takes
(`dicom-node bench seg`). What is written here is read by pydicom when somebody asks for it.

Source: PS3.5 7.1.2 (elements), 7.5.2 (items).
"""

import struct
from collections.abc import Iterable
from typing import Final

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

LONG_VRS: Final = frozenset({"SQ"})  # of those written here: two bytes unused, then a length of four
PADDING: Final = {"UI": b"\0"}  # a blank otherwise


def element(keyword: str, vr: str, value: bytes) -> bytes:
    """One data element; `value` is padded to an even length."""
    if len(value) % 2:
        value += PADDING.get(vr, b" ")
    tag = Tag(tag_for_keyword(keyword) or 0)
    head = struct.pack("<HH2s", tag.group, tag.element, vr.encode())
    if vr in LONG_VRS:
        return head + struct.pack("<2xI", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def item(*elements: bytes) -> bytes:
    """An item of a sequence; its elements are given in ascending order of their tags."""
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence(keyword: str, *items: bytes) -> bytes:
    """A sequence as a data element."""
    return element(keyword, "SQ", b"".join(items))


def raw_sequence(keyword: str, items: Iterable[bytes]) -> RawDataElement:
    """A sequence for a data set of pydicom, which reads it on the first access to it."""
    value = b"".join(items)
    tag = Tag(tag_for_keyword(keyword) or 0)
    return RawDataElement(tag, "SQ", len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
