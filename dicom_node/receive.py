"""1 RECEIVE, 2 INDEX. The only door in: check, write the file, index it, then say yes.

Every way in ends here: C-STORE, STOW-RS, import from a folder, and our own results. The data set's
bytes are kept exactly as received; preamble and File Meta Information are written anew, always the same
for the same data set, so that one instance sent by two ways is one content. A preamble can hold a
program (PS3.10 7.5), hence zeros.

Order: file (fsync, rename, fsync of the folder), then one transaction with its rows, then success.
"""

import logging
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import chain
from types import TracebackType
from typing import BinaryIO, Final, Self

import pydicom.config
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_node.committer import Committer, Entry
from dicom_node.errors import (
    ConflictingInstance,
    IllegalUid,
    IndexUnavailable,
    InstanceTooLarge,
    NodeError,
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
    HeaderLimits,
    HeaderPlan,
    MetaUids,
    ReceivedHeader,
    check_received,
    split_meta_uids,
)
from dicom_node.notes import IdentityRules
from dicom_node.pressure import Pressure
from storage.database import Database, Transaction
from storage.errors import (
    InstanceConflict,
    InstanceUnidentified,
    NotDurable,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from storage.files import FileStore
from storage.index import IndexResult, InstanceRecord, Origin, index_instance, record_from_dataset
from storage.part10 import IncomingFile, StoredFile
from storage.plain import INDEXED, PlainElements, read_plain
from storage.records import VALUE_ERRORS
from storage.versions import claim_result

IMPLEMENTATION_CLASS_UID: Final = "2.25.34107661253244976324241773065309963787"
IMPLEMENTATION_VERSION_NAME: Final = "SIM4SEG_NODE"  # without our version: content must not change with it
UID_FORM: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_CHARACTERS: Final = 64  # Source: PS3.5 9.1
PREAMBLE: Final = bytes(PREAMBLE_BYTES) + b"DICM"
WRITE_BYTES: Final = MIB
MAX_WRITERS: Final = 8
INLINE_BYTES: Final = 128 * 1024  # waking a thread takes longer than writing so little
BEGINNING_BYTES: Final = 64 * 1024  # kept in memory: nearly every header ends before
STANDARD_SYNTAXES: Final = "1.2.840.10008.1.2."  # those newer than pydicom's table are kept as well

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiveLimits:
    """How much one instance may take."""

    max_instance_bytes: int = 2048 * MIB
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


@dataclass(frozen=True)
class Announced:
    """What is known of an instance before its first byte: UIDs, encoding, origin, and what must agree."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    origin: Origin
    expected: ExpectedUids = field(default_factory=ExpectedUids)
    is_own_result: bool = False


class Intake:
    """One instance while its bytes come in; gone at the end of the `with` unless received."""

    def __init__(self, receiver: "Receiver", announced: Announced) -> None:
        meta = encode_meta(announced)
        self._receiver = receiver
        self.announced = announced
        self._start = len(meta)
        self._beginning = bytearray(meta)
        self._incoming = receiver.open_incoming(may_use_reserve=announced.is_own_result)
        self.write(meta)
        del self._beginning[self._start :]

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the data set.

        Raises
        ------
        InstanceTooLarge
            When there are more of them than the node takes.
        NodeUnable
            If the disk cannot take them.
        """
        incoming, beginning = self._incoming, self._beginning
        try:
            incoming.write(data)
        except StorageError as error:
            raise _told(error) from error
        if len(beginning) < BEGINNING_BYTES:
            beginning += data[: BEGINNING_BYTES - len(beginning)]
        if incoming.size_bytes > self._receiver.limits.max_instance_bytes:
            limit = self._receiver.limits.max_instance_bytes
            raise InstanceTooLarge(f"the instance exceeds {limit} bytes")

    def check(self) -> InstanceRecord:
        """Walk what came and compare its UIDs; returns what the index will hold, once it is durable.

        Raises
        ------
        InstanceRefused, NodeUnable
            As `Receiver.receive_part10`.
        """
        announced, incoming = self.announced, self._incoming
        plan = HeaderPlan(self._start, announced.transfer_syntax_uid, self._receiver.limits.header, INDEXED)
        with _translated_errors():
            stored = incoming.complete()
            header = check_received(self._beginning, incoming.size_bytes, incoming.reader, plan)
            elements = _elements_of(header, announced)
            _check_uids(elements, announced)
            try:
                record = record_from_dataset(elements, stored, announced.origin, announced.is_own_result)
            except VALUE_ERRORS as error:
                raise Unparseable(f"a value cannot be read ({type(error).__name__})") from error
            return self._receiver.identity.completed(record, incoming.reader)

    def finish(self) -> Received:
        """Have the instance durable and indexed; raises as `check`, and ConflictingInstance."""
        with self._receiver.making_file(self._incoming) as made:
            entry = Entry(self._incoming, self.check(), made)
            self._receiver.commit([entry])
        return received(entry)

    def seal(self) -> Entry:
        """Check the instance and make its bytes durable, not yet its name; raises as `check`."""
        record = self.check()
        with _translated_errors():
            self._receiver.seal(self._incoming)
        return Entry(self._incoming, record)

    def keep(self) -> None:
        """Have the file durable under its name; its row is the caller's."""
        with _translated_errors():
            self._incoming.keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.discard()


class Receiver:
    """Takes instances in; may be shared by threads."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        limits: ReceiveLimits,
        pressure: Pressure,
        *,
        identity: IdentityRules = IdentityRules(),  # noqa: B008 - frozen
    ) -> None:
        self.limits = limits
        self.identity = identity
        self.pressure = pressure
        self._files = files
        self._committer = Committer(database, files)
        self._writers = ThreadPoolExecutor(MAX_WRITERS, "writer")
        silence_pydicom()

    def begin(self, announced: Announced) -> Intake:
        """Begin to take an instance whose data set comes in pieces; use it in a `with`.

        Raises
        ------
        InstanceRefused
            If a UID is illegal or the transfer syntax is none of the standard's.
        NodeUnable
            If the disk cannot take anything now.
        """
        return Intake(self, announced)

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
        with self.begin_part10(chunks, origin, expected) as intake:
            return intake.finish()

    def begin_part10(
        self, chunks: Iterable[bytes | memoryview], origin: Origin, expected: ExpectedUids | None = None
    ) -> Intake:
        """Take the bytes of one Part 10 stream; use the intake in a `with`. Raises as `receive_part10`."""
        meta, rest = _split_stream(chunks)
        return self._taken(rest, _announced(meta, origin, expected))

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
        stream = BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        chunks = iter(lambda: stream.read(WRITE_BYTES), b"")
        with self._taken(chunks, _announced(MetaUids.of(meta), origin, expected)) as intake:
            return intake.finish()

    def receive_own_results(self, tx: Transaction, datasets: Sequence[Dataset], job_id: str) -> list[str]:
        """Write our own results and index them in the caller's transaction; returns their SOP UIDs."""
        origin = Origin("OWN RESULT", job_id)
        return [self._receive_own(tx, dataset, origin) for dataset in datasets]

    def open_incoming(self, *, may_use_reserve: bool) -> IncomingFile:
        """Begin a file, if the disk has room beside its reserve, or it is one of those it is kept for."""
        if (problem := self.pressure.hard_problem(may_use_reserve=may_use_reserve)) is not None:
            raise StorageExhausted(problem)
        with _translated_errors(), self._watching_fsync():
            return self._files.new_incoming()

    def seal(self, incoming: IncomingFile) -> StoredFile:
        """Make its bytes durable; for `Intake`."""
        with self._watching_fsync():
            return incoming.seal()

    @contextmanager
    def making_file(self, incoming: IncomingFile) -> Iterator[Future[None] | None]:
        """Write the file while it is checked; one that no journal takes is sealed. For `Intake`."""
        is_journaled = self._committer.journal is not None and incoming.pages is not None
        if is_journaled and incoming.size_bytes < INLINE_BYTES:
            with _translated_errors(), self._watching_fsync():
                incoming.write_out()
            yield None
            return
        made = self._writers.submit(self._make_file, incoming, is_journaled=is_journaled)
        try:
            yield made
        finally:
            wait([made])

    def _make_file(self, incoming: IncomingFile, *, is_journaled: bool) -> None:
        if is_journaled:
            incoming.write_out()
        else:
            self.seal(incoming)

    def prepare(self) -> None:
        """Do now what would make the first instances slow."""
        self._committer.prepare()

    def close(self) -> None:
        """Leave nothing in the journal."""
        self._writers.shutdown()
        self._committer.close()

    def commit(self, entries: Sequence[Entry]) -> None:
        """Have instances durable and indexed, in one transaction; then ask `received` for each of them."""
        self._committer.commit(entries)
        if any(isinstance(entry.error, NotDurable) for entry in entries):
            self.pressure.fsync_failed()

    def _taken(self, chunks: Iterable[bytes | memoryview], announced: Announced) -> Intake:
        with ExitStack() as stack:
            intake = stack.enter_context(self.begin(announced))
            for chunk in chunks:
                intake.write(chunk)
            stack.pop_all()  # from here on it is the caller's
            return intake

    def _receive_own(self, tx: Transaction, dataset: Dataset, origin: Origin) -> str:
        uids = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(_syntax_of(dataset)))
        announced = Announced(*uids, origin, is_own_result=True)
        with self._watching_fsync(), self.begin(announced) as intake:
            intake.write(_encode(dataset, UID(announced.transfer_syntax_uid)))
            record = intake.check()
            intake.keep()
        indexed = index_instance(tx, record)
        if indexed is IndexResult.CONFLICT:
            raise ConflictingInstance(f"result {record.sop_instance_uid} exists with other content")
        if indexed is IndexResult.DUPLICATE:
            claim_result(tx, record.sop_instance_uid, origin.detail)
        logger.info("stored own result", extra={"sop_instance_uid": record.sop_instance_uid})
        return record.sop_instance_uid

    @contextmanager
    def _watching_fsync(self) -> Iterator[None]:
        try:
            yield
        except NotDurable:
            self.pressure.fsync_failed()
            raise


def received(entry: Entry) -> Received:
    """Say what became of a committed instance; raises ConflictingInstance, NodeUnable."""
    if entry.error is not None:
        raise _told(entry.error) from entry.error
    record, result = entry.record, entry.result
    assert result is not None  # noqa: S101 - no error, so there is a result
    extra = {"sop_instance_uid": record.sop_instance_uid, "origin": record.origin.kind, "result": str(result)}
    logger.debug("received", extra=extra)
    if result is IndexResult.CONFLICT:
        raise ConflictingInstance("this SOP Instance UID was received before with other content")
    if result is IndexResult.OTHER_PATIENT:
        raise ConflictingInstance("its study belongs to another patient here; it is kept apart")
    return Received(
        record.sop_class_uid,
        record.sop_instance_uid,
        record.study_instance_uid,
        record.series_instance_uid,
        result,
    )


def silence_pydicom() -> None:
    """Stop pydicom from warning about values: its warnings repeat them, and they may be a patient's."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _split_stream(
    chunks: Iterable[bytes | memoryview],
) -> tuple[MetaUids, Iterator[bytes | memoryview]]:
    """Take preamble and meta information off the front of a Part 10 stream."""
    iterator, head = iter(chunks), b""
    for chunk in iterator:
        head += chunk
        if len(head) >= META_START + MAX_META_BYTES:
            break
    meta, end = split_meta_uids(head)
    return meta, chain([memoryview(head)[end:]], iterator)


def _announced(meta: MetaUids, origin: Origin, expected: ExpectedUids | None) -> Announced:
    if not meta.sop_class or not meta.sop_instance:
        raise UidMismatch("the file meta information lacks Media Storage SOP Class or SOP Instance UID")
    if not meta.transfer_syntax:
        raise Unparseable("the file meta information lacks the Transfer Syntax UID")
    return Announced(*meta, origin, expected or ExpectedUids())


def encode_meta(announced: Announced) -> bytes:
    """Write preamble and File Meta Information, always the same for the same data set, whoever sent it.

    Raises
    ------
    IllegalUid, TransferSyntaxNotSupported
        If what was announced cannot stand in a file. Source: PS3.10 7.1, Table 7.1-1.
    """
    before, after = _meta_around(announced.sop_class_uid, announced.transfer_syntax_uid)
    instance = _short_element(0x03, b"UI", checked_uid(announced.sop_instance_uid, "SOP Instance UID"))
    length = len(before) + len(instance) + len(after)
    head = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, length)
    return b"".join((PREAMBLE, head, before, instance, after))


@lru_cache(maxsize=1024)
def _meta_around(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """What stands before and after the SOP Instance UID."""
    if not f"{transfer_syntax_uid}.".startswith(STANDARD_SYNTAXES):
        raise TransferSyntaxNotSupported("the transfer syntax is not one of the standard's")
    version = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    before = version + _short_element(0x02, b"UI", checked_uid(sop_class_uid, "SOP Class UID"))
    after = (
        _short_element(0x10, b"UI", checked_uid(transfer_syntax_uid, "Transfer Syntax UID")),
        _short_element(0x12, b"UI", IMPLEMENTATION_CLASS_UID),
        _short_element(0x13, b"SH", IMPLEMENTATION_VERSION_NAME),
    )
    return before, b"".join(after)


def _short_element(element: int, vr: bytes, text: str) -> bytes:
    """An element of group 0002, explicit VR little endian, padded to even length (PS3.5 6.2)."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def checked_uid(value: object, name: str) -> str:
    """Return `value`, which is a UID.

    Raises
    ------
    IllegalUid
        If it is no UID. Source: PS3.5 9.1; leading zeros are let through, devices write them.
    """
    text = str(value)
    if len(text) > MAX_UID_CHARACTERS or UID_FORM.fullmatch(text) is None:
        raise IllegalUid(f"the {name} is not a valid UID")
    return text


def _elements_of(header: ReceivedHeader, announced: Announced) -> Dataset | PlainElements:
    """What the index asks for: read here when that is plain, by pydicom otherwise."""
    if announced.transfer_syntax_uid != ExplicitVRBigEndian:
        plain = read_plain(header.values, {"TransferSyntaxUID": announced.transfer_syntax_uid})
        if plain is not None:
            return plain
    elements = header.parse()
    elements.file_meta = FileMetaDataset()
    elements.file_meta.TransferSyntaxUID = UID(announced.transfer_syntax_uid)
    return elements


def _check_uids(elements: Dataset | PlainElements, announced: Announced) -> None:
    """Compare the data set's UIDs with the meta information and with what was announced beside it."""
    found = {keyword: _uid_of(elements, keyword) for keyword in (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    )}  # fmt: skip
    expected = announced.expected
    pairs = (
        ("SOPClassUID", announced.sop_class_uid),
        ("SOPInstanceUID", announced.sop_instance_uid),
        ("SOPClassUID", expected.sop_class_uid),
        ("SOPInstanceUID", expected.sop_instance_uid),
    )
    for keyword, uid in pairs:
        if uid is not None and uid != found[keyword]:
            raise UidMismatch(f"the {keyword} of the data set differs from the one announced")
    if expected.study_instance_uid not in (None, found["StudyInstanceUID"]):
        raise StudyMismatch("the instance belongs to another study than the request names")


def _uid_of(elements: Dataset | PlainElements, keyword: str) -> str:
    try:
        value = elements.get(keyword)
    except VALUE_ERRORS as error:
        raise IllegalUid(f"the {keyword} cannot be read") from error
    text = str(value).rstrip("\0 ") if value else ""  # padding, PS3.5 9.1
    if not text:
        raise UidMismatch(f"the data set has no {keyword}")
    return checked_uid(text, keyword)


def _syntax_of(dataset: Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None)
    return UID(meta.TransferSyntaxUID) if meta is not None else ExplicitVRLittleEndian


def _encode(dataset: Dataset, syntax: UID) -> bytes:
    """Encode `dataset` without meta information."""
    buffer = BytesIO()
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
    is_implicit_vr, is_little_endian = dataset.original_encoding
    bare.set_original_encoding(is_implicit_vr, is_little_endian, dataset.original_character_set)
    return bare


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise _told(error) from error


def _told(error: StorageError) -> NodeError:
    """Say what storage says in the words that peers are answered with."""
    if isinstance(error, StorageFull):
        return StorageExhausted("the disk, quota or database is full")
    if isinstance(error, NotDurable):
        return StorageExhausted("the disk did not confirm the file")
    if isinstance(error, StorageUnavailable):
        return IndexUnavailable("the disk or the database cannot be used now")
    if isinstance(error, InstanceUnidentified):
        return UidMismatch(str(error))
    if isinstance(error, InstanceConflict):
        return ConflictingInstance(error.reason)
    return IndexUnavailable("the database refused the instance")
