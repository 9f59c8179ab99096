"""1 RECEIVE, 2 INDEX. The only door in: check, write the file, index it, then say yes.

Every way in ends here: C-STORE, STOW-RS, import from a folder, and our own results. The data set's
bytes are kept exactly as received; what stands before them is written anew (`announced`).

Order: file (fsync, rename, fsync of the folder), then one transaction with its rows, then success.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from itertools import chain
from typing import BinaryIO, Final

import pydicom.config
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset

from dicom_node.announced import Announced, ExpectedUids, announced_by
from dicom_node.committer import Committer, Entry
from dicom_node.errors import ConflictingInstance, StorageExhausted
from dicom_node.header import MAX_META_BYTES, META_START, MIB, MetaUids, split_meta_uids
from dicom_node.intake import Intake, ReceiveLimits
from dicom_node.notes import IdentityRules
from dicom_node.own_results import announced_result, encoded_result
from dicom_node.pressure import Pressure
from dicom_node.received import Received
from dicom_node.writers import Writers, Writing
from storage.database import Database, Transaction
from storage.errors import NotDurable
from storage.files import FileStore
from storage.index import IndexResult, Origin, index_instance
from storage.part10 import IncomingFile
from storage.versions import claim_result

WRITE_BYTES: Final = MIB
MAX_WRITERS: Final = 8
INLINE_BYTES: Final = 128 * 1024  # waking a thread takes longer than writing so little

logger = logging.getLogger(__name__)


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
        self._writers = Writers(MAX_WRITERS)
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
        return self._taken(rest, announced_by(meta, origin, expected))

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
        with self._taken(chunks, announced_by(MetaUids.of(meta), origin, expected)) as intake:
            return intake.finish()

    def receive_own_results(self, tx: Transaction, datasets: Sequence[Dataset], job_id: str) -> list[str]:
        """Write our own results and index them in the caller's transaction; returns their SOP UIDs."""
        return [self._receive_own(tx, dataset, job_id) for dataset in datasets]

    def open_incoming(self, *, may_use_reserve: bool) -> IncomingFile:
        """Begin a file, if the disk has room beside its reserve, or it is one of those it is kept for."""
        if (problem := self.pressure.hard_problem(may_use_reserve=may_use_reserve)) is not None:
            raise StorageExhausted(problem)
        return self._files.new_incoming()

    def keep(self, incoming: IncomingFile) -> None:
        """Make a file durable under its name; for `Intake`."""
        with self._watching_fsync():
            incoming.keep()

    def takes_journal(self, incoming: IncomingFile) -> bool:
        """Whether the instance can become durable in the journal; for `Intake`, as the next."""
        return self._committer.journal is not None and incoming.pages is not None

    def seal_file(self, incoming: IncomingFile) -> Writing:
        """Make the bytes of a file durable while others work on."""
        return self._writers.begin(partial(self._seal, incoming))

    def write_file(self, incoming: IncomingFile) -> Writing | None:
        """Write a file while it is checked, or now when it is short."""
        if incoming.size_bytes >= INLINE_BYTES:
            return self._writers.begin(incoming.write_out)
        with self._watching_fsync():
            incoming.write_out()
        return None

    def prepare(self, *, is_journaling: bool = True) -> None:
        """Do now what would make the first instances slow; some ways in never use the journal.

        Nothing where the disk takes no instance: folders made there could hide that its volume is missing.
        """
        if self.pressure.hard_problem(may_use_reserve=True) is None:
            self._committer.prepare(is_journaling=is_journaling)

    def close(self) -> None:
        """Leave nothing in the journal."""
        self._writers.close()
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

    def _receive_own(self, tx: Transaction, dataset: Dataset, job_id: str) -> str:
        announced = announced_result(dataset, job_id)
        with self.begin(announced) as intake:
            intake.write(encoded_result(dataset, announced))
            record = intake.check()
            intake.keep()
        indexed = index_instance(tx, record)
        if indexed is IndexResult.CONFLICT:
            raise ConflictingInstance(f"result {record.sop_instance_uid} exists with other content")
        if indexed is IndexResult.DUPLICATE:
            claim_result(tx, record.sop_instance_uid, job_id)
        logger.info("stored own result", extra={"sop_instance_uid": record.sop_instance_uid})
        return record.sop_instance_uid

    def _seal(self, incoming: IncomingFile) -> None:
        with self._watching_fsync():
            incoming.seal()

    @contextmanager
    def _watching_fsync(self) -> Iterator[None]:
        try:
            yield
        except NotDurable:
            self.pressure.fsync_failed()
            raise


def silence_pydicom() -> None:
    """Stop pydicom from warning about values: its warnings repeat them, and they may be a patient's."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def _split_stream(
    chunks: Iterable[bytes | memoryview],
) -> tuple[MetaUids, Iterator[bytes | memoryview]]:
    """Take preamble and meta information off the front of a Part 10 stream."""
    iterator, head = iter(chunks), memoryview(b"")
    for chunk in iterator:
        head = memoryview(b"".join((head, chunk)) if head else chunk)
        if len(head) >= META_START + MAX_META_BYTES:
            break
    meta, end = split_meta_uids(head)
    return meta, chain([head[end:]], iterator)
