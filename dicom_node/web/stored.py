"""Reads just what an answer needs of a stored file: its header, one value, a stretch of bytes.

A deflated data set is inflated within the limits it was received under, never wholly for its header.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from typing import BinaryIO, Final, Literal

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import NodeError, NotFound, StoredDamaged, Unparseable
from dicom_node.header import MIB, PIXEL_TAGS, Header, HeaderLimits, inflate, mapped, read_header
from storage.errors import InstanceMissing
from storage.files import FileStore
from storage.records import VALUE_ERRORS
from storage.retrieval import KeptInstance
from storage.soundness import digest_of

DEFER_BYTES: Final = 16 * 1024  # longer values stay in the file until they are asked for
PIECE_BYTES: Final = 512 * 1024
LIMITS: Final = HeaderLimits()
DAMAGED: Final = "a file of this address is not what was stored"
MISSING: Final = "a file of this address is missing: the operator can run dicom-node fsck"
NATIVE: Final = frozenset({str(ImplicitVRLittleEndian), str(DeflatedExplicitVRLittleEndian)})


@dataclass(frozen=True)
class StoredPixels:
    """Pixel data element of a stored file."""

    tag: int
    vr: str


@contextmanager
def opened(files: FileStore, row: KeptInstance) -> Iterator[BinaryIO]:
    """Open the Part 10 file of an instance.

    Raises
    ------
    NotFound
        If the index has it and the disk has not; `dicom-node fsck` lists such.
    StoredDamaged
        If the file has another length than was stored.
    """
    try:
        file = files.open(row.path)
    except InstanceMissing as error:
        raise NotFound(MISSING) from error
    with file:
        _require_whole(file, row)
        yield file


def _require_whole(file: BinaryIO, row: KeptInstance) -> None:
    """Raise StoredDamaged where the length alone says that it is not what was stored."""
    if file.seek(0, os.SEEK_END) != row.size_bytes:
        raise StoredDamaged(DAMAGED)
    file.seek(0)


def require_files(files: FileStore, rows: Sequence[KeptInstance]) -> None:
    """Raise NotFound unless the files of all `rows` are there: an answer under way cannot be taken back."""
    if not all(files.exists(row.path) for row in rows):
        raise NotFound(MISSING)


def read_pieces(
    files: FileStore, row: KeptInstance, start: int = 0, length: int | None = None
) -> Iterator[bytes]:
    """Yield bytes of the Part 10 file from `start`, `length` of them or all.

    The last piece of a whole file is given only if all of it is what was stored: an answer that breaks off is
    better than a damaged one. Raises StoredDamaged.
    """
    left = row.size_bytes - start if length is None else length
    digest = hashlib.sha256() if left == row.size_bytes else None
    with opened(files, row) as file:
        file.seek(start)
        while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            if digest is not None:
                digest.update(piece)
                if not left and digest.hexdigest() != row.sha256:
                    raise StoredDamaged(DAMAGED)
            yield piece


def begun(pieces: Iterator[bytes], ahead: int = 1) -> Iterator[bytes]:
    """Have the first pieces before the status goes out: what cannot be read is told by it."""
    return chain(list(islice(pieces, ahead)), pieces)


def read_structure(files: FileStore, row: KeptInstance) -> Header:
    """Walk the file: short elements, and where its pixels are; raises Unparseable, StoredDamaged."""
    try:
        with _local(files, row) as file:
            return read_header(file, LIMITS)
    except Unparseable as error:
        raise unreadable(files, row, str(error)) from error


def unreadable(files: FileStore, row: KeptInstance, why: str) -> NodeError:
    """What to raise for a file that cannot be read: it came like this, or the disk changed it since."""
    is_as_stored = digest_of(files, row.path) == row.sha256
    return Unparseable(why) if is_as_stored else StoredDamaged(DAMAGED)


@contextmanager
def data_set_of(files: FileStore, row: KeptInstance) -> Iterator[tuple[Dataset, StoredPixels | None]]:
    """Give the data set without its pixels; long values are read from the file while the `with` lasts."""
    try:
        with files.local(row.path) as path, path.open("rb") as file:
            _require_whole(file, row)
            if row.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
                yield _read_deflated(file)
                return
            dataset = dcmread(file, stop_before_pixels=True, defer_size=DEFER_BYTES)
            is_little = dataset.original_encoding[1] is not False
            yield dataset, _pixels_at(file, dataset, is_little_endian=is_little)
    except InstanceMissing as error:
        raise NotFound(MISSING) from error


def inflated_data_set(files: FileStore, row: KeptInstance) -> bytes:
    """Inflate a whole deflated data set; its size was checked when it was received."""
    with _local(files, row) as file:
        header = read_header(file, LIMITS)
        with mapped(file) as buffer:
            return inflate(buffer, header.data_set_offset, LIMITS.max_inflated_bytes)


@contextmanager
def _local(files: FileStore, row: KeptInstance) -> Iterator[BinaryIO]:
    """Open the file on this machine's disk, where it can be mapped."""
    try:
        with files.local(row.path) as path, path.open("rb") as file:
            _require_whole(file, row)
            yield file
    except InstanceMissing as error:
        raise NotFound(MISSING) from error


def _read_deflated(file: BinaryIO) -> tuple[Dataset, StoredPixels | None]:
    header = read_header(file, LIMITS)
    with mapped(file) as buffer:
        inflated = BytesIO(inflate(buffer, header.data_set_offset, LIMITS.max_header_bytes + MIB))
    dataset = read_dataset(inflated, False, True, stop_when=lambda tag, _vr, _length: tag in PIXEL_TAGS)
    dataset.file_meta = header.meta
    return dataset, _pixels_at(inflated, dataset, is_little_endian=True)


def _pixels_at(file: BinaryIO, dataset: Dataset, *, is_little_endian: bool) -> StoredPixels | None:
    """Say which pixel data element the reading stopped at, if it did."""
    order: Literal["little", "big"] = "little" if is_little_endian else "big"
    head = file.read(6)
    if len(head) < 6:
        return None
    group, element = (int.from_bytes(head[start : start + 2], order) for start in (0, 2))
    tag = group << 16 | element
    if tag not in PIXEL_TAGS:
        return None
    vr = head[4:6].decode("ascii", "replace")
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    is_explicit = vr in ("OB", "OW", "OF", "OD")
    default = {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag, "OW")
    return StoredPixels(tag, vr if is_explicit and syntax != ImplicitVRLittleEndian else default)


def raw_value(dataset: Dataset, tag: BaseTag) -> bytes:
    """Bytes of one binary element as they are stored.

    Raises
    ------
    NotFound
        If there is none, or it is not binary.
    """
    try:
        value = dataset[tag].value
    except VALUE_ERRORS as error:
        raise NotFound("this instance has no such element") from error
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    raise NotFound("this element is no bulk data; it stands in the metadata")


def served_syntax(row: KeptInstance) -> str:
    """Transfer syntax that frames of this instance have once they stand alone.

    A frame cut out of a deflated or implicit data set is encoded as in Explicit VR Little Endian.
    """
    return str(ExplicitVRLittleEndian) if row.transfer_syntax_uid in NATIVE else row.transfer_syntax_uid
