"""Reads just what an answer needs of a stored file: its header, one value, a stretch of bytes.

A deflated data set is inflated within the limits it was received under, never wholly for its header.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Literal

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicom_node.errors import NotFound
from dicom_node.header import MIB, PIXEL_TAGS, Header, HeaderLimits, inflate, mapped, read_header
from dicom_node.receive import VALUE_ERRORS
from storage.errors import InstanceMissing
from storage.part10 import absolute, open_file
from storage.tables import Instance

DEFER_BYTES: Final = 16 * 1024  # longer values stay in the file until they are asked for
PIECE_BYTES: Final = 256 * 1024
LIMITS: Final = HeaderLimits()
MISSING: Final = "a file of this address is missing: the operator can run dicom-node fsck"


@dataclass(frozen=True)
class StoredPixels:
    """Pixel data element of a stored file."""

    tag: int
    vr: str


def open_stored(files_root: Path, row: Instance) -> BinaryIO:
    """Open the Part 10 file of an instance.

    Raises
    ------
    NotFound
        If the index has it and the disk has not; `dicom-node fsck` lists such.
    """
    try:
        return open_file(files_root, row.path)
    except InstanceMissing as error:
        raise NotFound(MISSING) from error


def require_files(files_root: Path, rows: Sequence[Instance]) -> None:
    """Raise NotFound unless the files of all `rows` are there: an answer under way cannot be taken back."""
    for row in rows:
        if not absolute(files_root, row.path).is_file():
            raise NotFound(MISSING)


def read_pieces(
    files_root: Path, row: Instance, start: int = 0, length: int | None = None
) -> Iterator[bytes]:
    """Yield bytes of the Part 10 file from `start`, `length` of them or all."""
    left = row.size_bytes - start if length is None else length
    with open_stored(files_root, row) as file:
        file.seek(start)
        while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece


def read_structure(files_root: Path, row: Instance) -> Header:
    """Walk the file: short elements, and where its pixels are."""
    with open_stored(files_root, row) as file:
        return read_header(file, LIMITS)


def read_data_set(files_root: Path, row: Instance) -> tuple[Dataset, StoredPixels | None]:
    """Read the data set without its pixels; long values are left in the file."""
    with open_stored(files_root, row) as file:
        if row.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            return _read_deflated(file)
    path = absolute(files_root, row.path)  # by path, so that pydicom can come back for deferred values
    with path.open("rb") as file:
        dataset = dcmread(file, stop_before_pixels=True, defer_size=DEFER_BYTES)
        is_little = dataset.original_encoding[1] is not False
        return dataset, _pixels_at(file, dataset, is_little_endian=is_little)


def inflated_data_set(files_root: Path, row: Instance) -> bytes:
    """Inflate a whole deflated data set; its size was checked when it was received."""
    with open_stored(files_root, row) as file:
        header = read_header(file, LIMITS)
        with mapped(file) as buffer:
            return inflate(buffer, header.data_set_offset, LIMITS.max_inflated_bytes)


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
    return StoredPixels(tag, vr if is_explicit and syntax != "1.2.840.10008.1.2" else default)


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


def served_syntax(row: Instance) -> str:
    """Transfer syntax that frames of this instance have once they stand alone.

    A frame cut out of a deflated or implicit data set is encoded as in Explicit VR Little Endian.
    """
    native = {"1.2.840.10008.1.2", str(DeflatedExplicitVRLittleEndian)}
    return str(ExplicitVRLittleEndian) if row.transfer_syntax_uid in native else row.transfer_syntax_uid
