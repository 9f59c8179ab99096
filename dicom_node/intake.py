"""One instance while it comes in: bytes go to its file, then its header is checked and read for the index."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian

from dicom_node.announced import Announced, encode_meta
from dicom_node.committer import Entry
from dicom_node.errors import (
    IllegalUid,
    InstanceTooLarge,
    StudyMismatch,
    UidMismatch,
    Unparseable,
)
from dicom_node.header import MIB, HeaderLimits, HeaderPlan, ReceivedHeader, check_received
from dicom_node.notes import IdentityRules
from dicom_node.received import Received, received, told
from dicom_node.uids import checked_uid
from dicom_node.writers import Writing
from storage.errors import StorageError
from storage.part10 import IncomingFile
from storage.plain import INDEXED, PlainElements, read_plain
from storage.records import VALUE_ERRORS, InstanceRecord, record_from_dataset

UIDS: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class ReceiveLimits:
    """How much one instance may take."""

    max_instance_bytes: int = 2048 * MIB
    header: HeaderLimits = field(default_factory=HeaderLimits)


class Door(Protocol):
    """What an instance needs of the door that it comes in by: `receive.Receiver`."""

    limits: ReceiveLimits
    identity: IdentityRules

    def open_incoming(self, *, may_use_reserve: bool) -> IncomingFile:
        """Begin a file."""
        ...

    def takes_journal(self, incoming: IncomingFile) -> bool:
        """Whether the instance can become durable in the journal."""
        ...

    def write_file(self, incoming: IncomingFile) -> Writing | None:
        """Have the file written, here or by another thread."""
        ...

    def seal_file(self, incoming: IncomingFile) -> Writing:
        """Have the bytes of the file made durable by another thread."""
        ...

    def keep(self, incoming: IncomingFile) -> None:
        """Make the file durable under its name."""
        ...

    def commit(self, entries: Sequence[Entry]) -> None:
        """Have instances durable and indexed."""
        ...


class Intake:
    """One instance while its bytes come in; gone at the end of the `with` unless received."""

    def __init__(self, door: Door, announced: Announced) -> None:
        meta = encode_meta(announced)
        self._door = door
        self.announced = announced
        self._start = len(meta)
        self._incoming = door.open_incoming(may_use_reserve=announced.is_own_result)
        self._max_bytes = door.limits.max_instance_bytes
        self.write(meta)

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the data set.

        Raises
        ------
        InstanceTooLarge
            When there are more of them than the node takes.
        NodeUnable
            If the disk cannot take them.
        """
        incoming = self._incoming
        try:
            incoming.write(data)
        except StorageError as error:
            raise told(error) from error
        if incoming.size_bytes > self._max_bytes:
            raise InstanceTooLarge(f"the instance exceeds {self._max_bytes} bytes")

    def check(self) -> InstanceRecord:
        """Walk what came and compare its UIDs; returns what the index will hold, once it is durable.

        Raises
        ------
        InstanceRefused, NodeUnable
            As `Receiver.receive_part10`.
        """
        announced, incoming, door = self.announced, self._incoming, self._door
        plan = HeaderPlan(self._start, announced.transfer_syntax_uid, door.limits.header, INDEXED)
        try:
            stored = incoming.complete()
            header = check_received(incoming.beginning, incoming.size_bytes, incoming.reader, plan)
            elements = _elements_of(header, announced)
            _check_uids(elements, announced)
            try:
                record = record_from_dataset(elements, stored, announced.origin, announced.is_own_result)
            except VALUE_ERRORS as error:
                raise Unparseable(f"a value cannot be read ({type(error).__name__})") from error
            return door.identity.completed(record, incoming.reader)
        except StorageError as error:
            raise told(error) from error

    def finish(self) -> Received:
        """Have the instance durable and indexed; raises as `check`, and ConflictingInstance."""
        door, incoming = self._door, self._incoming
        is_for_journal = door.takes_journal(incoming)
        try:
            made = door.write_file(incoming) if is_for_journal else door.seal_file(incoming)
        except StorageError as error:
            raise told(error) from error
        try:
            entry = Entry(incoming, self.check(), made, is_for_journal)
            door.commit([entry])
        finally:
            if made is not None:
                made.wait()
        return received(entry)

    def seal(self) -> Entry:
        """Check the instance, and have its bytes made durable by another thread; raises as `check`."""
        return Entry(self._incoming, self.check(), self._door.seal_file(self._incoming))

    def keep(self) -> None:
        """Have the file durable under its name; its row is the caller's."""
        try:
            self._door.keep(self._incoming)
        except StorageError as error:
            raise told(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.discard()


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
    sop_class, sop_instance, study, _series = [_uid_of(elements, keyword) for keyword in UIDS]
    expected = announced.expected
    pairs = (
        ("SOPClassUID", sop_class, announced.sop_class_uid),
        ("SOPInstanceUID", sop_instance, announced.sop_instance_uid),
        ("SOPClassUID", sop_class, expected.sop_class_uid),
        ("SOPInstanceUID", sop_instance, expected.sop_instance_uid),
    )
    for keyword, found, uid in pairs:
        if uid is not None and uid != found:
            raise UidMismatch(f"the {keyword} of the data set differs from the one announced")
    if expected.study_instance_uid not in (None, study):
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
