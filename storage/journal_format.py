"""The form of a journal: two segments of records, each a page of JSON and the Part 10 file that it describes.

A record belongs to one pass over its segment: what is left there of an earlier one has another number.
"""

import fcntl
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, NamedTuple

from storage.part10 import StoredFile

JOURNAL: Final = "journal"
SEGMENT_BYTES: Final = 16 << 20
STARTS: Final = (0, SEGMENT_BYTES)
JOURNAL_BYTES: Final = len(STARTS) * SEGMENT_BYTES
MAX_RECORDS: Final = 14  # of one batch: with the longest instances they fill a segment
PAGE: Final = mmap.PAGESIZE
_HEAD: Final = struct.Struct("<8s16sII")  # what it is, which pass over the segment, bytes of JSON, their CRC
_MAGIC: Final = b"DCMJRNL1"
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class Record(NamedTuple):
    """One instance for the journal."""

    stored: StoredFile
    note: dict[str, str]  # what recovery must know, and the file does not say: its origin
    pages: memoryview  # the Part 10 file; page-aligned, whole pages


def write_head(record: Record, which: bytes, head: memoryview) -> None:
    """Write into the page `head` what `record` is, of the pass `which`."""
    told = {"stored": vars(record.stored), "note": record.note, "at": time.monotonic_ns()}
    words = _encode(told).encode()
    _HEAD.pack_into(head, 0, _MAGIC, which, len(words), zlib.crc32(words))
    head[_HEAD.size : _HEAD.size + len(words)] = words


def read_heads(journal: BinaryIO, start: int) -> Iterator[dict[str, Any]]:
    """Give what the heads of one pass over a segment say; at each, `journal` stands at its content."""
    position, current = start, None
    while position + PAGE <= start + SEGMENT_BYTES:
        journal.seek(position)
        head = journal.read(PAGE)
        if len(head) < PAGE:
            return
        magic, which, length, crc = _HEAD.unpack_from(head)
        words = head[_HEAD.size : _HEAD.size + length]
        if magic != _MAGIC or which != (current or which) or zlib.crc32(words) != crc:
            return
        current, told = which, json.loads(words)
        yield told
        position += PAGE + whole_pages(told["stored"]["size_bytes"])


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Making and taking journals is for one process at a time."""
    descriptor = os.open(f"{folder}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def whole_pages(size: int) -> int:
    """The bytes of the pages that `size` bytes fill."""
    return -(-size // PAGE) * PAGE
