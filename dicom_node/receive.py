"""1 RECEIVE, 2 INDEX. The only door in: check, write the file, index it, then say yes.

Every way in ends here: C-STORE, STOW-RS, import from a folder, and our own results. The data set's
bytes are kept exactly as received; preamble and File Meta Information are written anew, always the same
for the same data set, so that one instance sent by two ways is one content. A preamble can hold a
program (PS3.10 7.5), hence zeros.

Order: file (fsync, rename, fsync of the folder), then one transaction with its rows, then success.
"""

import logging
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

import pydicom.config
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.errors import (
    ConflictingInstance,
    IllegalUid,
    IndexUnavailable,
    InstanceTooLarge,
    StorageExhausted,
    StudyMismatch,
    TransferSyntaxNotSupported,
    UidMismatch,
    Unparseable,
)
from dicom_node.header import (
    MAX_META_BYTES,
    META_START,
    MIB,
    PREAMBLE_BYTES,
    Header,
    HeaderLimits,
    read_header,
    split_meta,
)
from storage.database import Database, Transaction
from storage.errors import (
    InstanceConflict,
    InstanceUnidentified,
    NotDurable,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from storage.index import IndexResult, InstanceRecord, Origin, index_instance, record_from_dataset
from storage.part10 import IncomingFile, StoredFile, new_incoming

IMPLEMENTATION_CLASS_UID: Final = "2.25.34107661253244976324241773065309963787"
IMPLEMENTATION_VERSION_NAME: Final = "SIM4SEG_NODE"  # without our version: content must not change with it
UID_FORM: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_CHARACTERS: Final = 64  # Source: PS3.5 9.1
WRITE_BYTES: Final = MIB
STANDARD_SYNTAXES: Final = "1.2.840.10008.1.2."  # those newer than pydicom's table are kept as well
# What pydicom raises over values that do not fit their VR.
VALUE_ERRORS: Final = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, NotImplementedError,
    OverflowError, EOFError, struct.error,
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiveLimits:
    """How much one instance may take, and how much disk must stay free."""

    max_instance_bytes: int = 2048 * MIB
    min_free_bytes: int = 512 * MIB
    header: HeaderLimits = field(default_factory=HeaderLimits)


@dataclass(frozen=True)
class ExpectedUids:
    """What the sender announced beside the data set; None = nothing announced."""

    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None


@dataclass(frozen=True)
class Received:
    """One instance that is now durable and indexed."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    result: IndexResult


class Receiver:
    """Takes instances in; may be shared by threads."""

    def __init__(self, database: Database, files_root: Path, limits: ReceiveLimits) -> None:
        self._database = database
        self._files_root = files_root
        self._limits = limits
        silence_pydicom()

    def receive_part10(
        self, chunks: Iterable[bytes], origin: Origin, expected: ExpectedUids | None = None
    ) -> Received:
        """Take one Part 10 stream, preamble and meta information included.

        Raises
        ------
        InstanceRefused
            In one of its kinds; nothing counts as stored.
        NodeUnable
            If the disk or the database cannot take it now.
        """
        received_meta, rest = _split_stream(chunks)
        meta = _own_meta(
            received_meta.get("MediaStorageSOPClassUID"),
            received_meta.get("MediaStorageSOPInstanceUID"),
            received_meta.get("TransferSyntaxUID"),
        )
        return self._receive(rest, meta, origin, expected)

    def receive_data_set(
        self,
        encoded: bytes | BinaryIO,
        meta: FileMetaDataset,
        origin: Origin,
        expected: ExpectedUids | None = None,
    ) -> Received:
        """Take one encoded data set as it came by DIMSE; `meta` has the command's UIDs and transfer syntax.

        Raises
        ------
        InstanceRefused, NodeUnable
            As `receive_part10`.
        """
        own = _own_meta(
            meta.get("MediaStorageSOPClassUID"),
            meta.get("MediaStorageSOPInstanceUID"),
            meta.get("TransferSyntaxUID"),
        )
        stream = BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        return self._receive(iter(lambda: stream.read(WRITE_BYTES), b""), own, origin, expected)

    def receive_own_results(self, tx: Transaction, datasets: Sequence[Dataset], job_id: str) -> list[str]:
        """Write our own results and index them in the caller's transaction; returns their SOP UIDs."""
        origin = Origin("OWN RESULT", job_id)
        return [self._receive_own(tx, dataset, origin) for dataset in datasets]

    def _receive_own(self, tx: Transaction, dataset: Dataset, origin: Origin) -> str:
        meta = _own_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, _syntax_of(dataset))
        chunks = iter([_encode(dataset, meta)])
        _stored, record = self._write(chunks, meta, origin, ExpectedUids(), is_own_result=True)
        if index_instance(tx, record) is IndexResult.CONFLICT:
            raise ConflictingInstance(f"result {record.sop_instance_uid} exists with other content")
        logger.info("stored own result", extra={"sop_instance_uid": record.sop_instance_uid})
        return record.sop_instance_uid

    def _receive(
        self, chunks: Iterator[bytes], meta: FileMetaDataset, origin: Origin, expected: ExpectedUids | None
    ) -> Received:
        _stored, record = self._write(chunks, meta, origin, expected or ExpectedUids())
        result = self._index(record)
        logger.info(
            "received",
            extra={"sop_instance_uid": record.sop_instance_uid, "origin": origin.kind, "result": str(result)},
        )
        if result is IndexResult.CONFLICT:
            raise ConflictingInstance("this SOP Instance UID was received before with other content")
        return Received(
            record.sop_class_uid,
            record.sop_instance_uid,
            record.study_instance_uid,
            record.series_instance_uid,
            result,
        )

    def _write(
        self,
        chunks: Iterator[bytes],
        meta: FileMetaDataset,
        origin: Origin,
        expected: ExpectedUids,
        *,
        is_own_result: bool = False,
    ) -> tuple[StoredFile, InstanceRecord]:
        """Write, check and keep one file; only then is there something to index."""
        with _translated_errors(), new_incoming(self._files_root) as incoming:
            self._require_free_disk()
            self._copy(chain([_encode_meta(meta)], chunks), incoming)
            with incoming.reader() as file:
                header = read_header(file, self._limits.header)
            _check_uids(header, expected)
            stored = incoming.keep()
        header.elements.file_meta = header.meta
        try:
            return stored, record_from_dataset(header.elements, stored, origin, is_own_result)
        except VALUE_ERRORS as error:
            raise Unparseable(f"a value cannot be read ({type(error).__name__})") from error

    def _copy(self, chunks: Iterable[bytes], incoming: IncomingFile) -> None:
        total = 0
        for chunk in chunks:
            total += len(chunk)
            if total > self._limits.max_instance_bytes:
                raise InstanceTooLarge(f"the instance exceeds {self._limits.max_instance_bytes} bytes")
            incoming.write(chunk)

    def _require_free_disk(self) -> None:
        free = shutil.disk_usage(self._files_root).free
        if free < self._limits.min_free_bytes:
            raise StorageExhausted(f"{free // MIB} MiB are free; the reserve is kept")

    def _index(self, record: InstanceRecord) -> IndexResult:
        with _translated_errors(), self._database.transaction() as tx:
            return index_instance(tx, record)


def silence_pydicom() -> None:
    """Stop pydicom from warning about values: its warnings repeat them, and they may be a patient's."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _split_stream(chunks: Iterable[bytes]) -> tuple[FileMetaDataset, Iterator[bytes]]:
    """Take preamble and meta information off the front of a Part 10 stream."""
    iterator, head = iter(chunks), b""
    for chunk in iterator:
        head += chunk
        if len(head) >= META_START + MAX_META_BYTES:
            break
    meta, end = split_meta(head)
    return meta, chain([head[end:]], iterator)


def _own_meta(sop_class: object, sop_instance: object, transfer_syntax: object) -> FileMetaDataset:
    """Build the File Meta Information that we write for this data set, whoever sent it.

    Source: PS3.10 7.1.
    """
    if not sop_class or not sop_instance:
        raise UidMismatch("the file meta information lacks Media Storage SOP Class or SOP Instance UID")
    if not transfer_syntax:
        raise Unparseable("the file meta information lacks the Transfer Syntax UID")
    syntax = UID(str(transfer_syntax))
    if not f"{syntax}.".startswith(STANDARD_SYNTAXES):
        raise TransferSyntaxNotSupported("the transfer syntax is not one of the standard's")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = checked_uid(sop_class, "SOP Class UID")
    meta.MediaStorageSOPInstanceUID = checked_uid(sop_instance, "SOP Instance UID")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _encode_meta(meta: FileMetaDataset) -> bytes:
    buffer = DicomBytesIO(bytes(PREAMBLE_BYTES) + b"DICM")
    buffer.seek(META_START)
    write_file_meta_info(buffer, meta)
    return buffer.getvalue()


def checked_uid(value: object, name: str) -> UID:
    """Return `value` as a UID.

    Raises
    ------
    IllegalUid
        If it is no UID. Source: PS3.5 9.1; leading zeros are let through, devices write them.
    """
    text = str(value)
    if len(text) > MAX_UID_CHARACTERS or UID_FORM.fullmatch(text) is None:
        raise IllegalUid(f"the {name} is not a valid UID")
    return UID(text)


def _check_uids(header: Header, expected: ExpectedUids) -> None:
    """Compare the data set's UIDs with the meta information and with what was announced."""
    found = {keyword: _uid_of(header.elements, keyword) for keyword in (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    )}  # fmt: skip
    announced = (
        ("SOPClassUID", str(header.meta.MediaStorageSOPClassUID)),
        ("SOPInstanceUID", str(header.meta.MediaStorageSOPInstanceUID)),
        ("SOPClassUID", expected.sop_class_uid),
        ("SOPInstanceUID", expected.sop_instance_uid),
    )
    for keyword, uid in announced:
        if uid is not None and uid != found[keyword]:
            raise UidMismatch(f"the {keyword} of the data set differs from the one announced")
    if expected.study_instance_uid not in (None, found["StudyInstanceUID"]):
        raise StudyMismatch("the instance belongs to another study than the request names")


def _uid_of(elements: Dataset, keyword: str) -> str:
    try:
        value = elements.get(keyword)
    except VALUE_ERRORS as error:
        raise IllegalUid(f"the {keyword} cannot be read") from error
    if not value:
        raise UidMismatch(f"the data set has no {keyword}")
    return str(checked_uid(value, keyword))


def _syntax_of(dataset: Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None)
    return UID(meta.TransferSyntaxUID) if meta is not None else ExplicitVRLittleEndian


def _encode(dataset: Dataset, meta: FileMetaDataset) -> bytes:
    """Encode `dataset` without meta information, in the transfer syntax of `meta`."""
    buffer = BytesIO()
    syntax = UID(meta.TransferSyntaxUID)
    dcmwrite(
        buffer,
        _without_meta(dataset),
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=False,
    )
    return buffer.getvalue()


def _without_meta(dataset: Dataset) -> Dataset:
    bare = Dataset()
    bare.update(dataset)
    return bare


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Say what storage says in the words that peers are answered with."""
    try:
        yield
    except StorageFull as error:
        raise StorageExhausted("the disk, quota or database is full") from error
    except NotDurable as error:
        raise StorageExhausted("the disk did not confirm the file") from error
    except StorageUnavailable as error:
        raise IndexUnavailable("the disk or the database cannot be used now") from error
    except InstanceUnidentified as error:
        raise UidMismatch(str(error)) from error
    except InstanceConflict as error:
        raise ConflictingInstance(error.reason) from error
    except StorageError as error:
        raise IndexUnavailable("the database refused the instance") from error
