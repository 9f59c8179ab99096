"""Group commit: instances that arrive at the same time share a flush of the journal and one transaction.

So do those of one request that is answered as a whole.

Whoever comes first commits for everybody who waits; the others sleep until their rows are durable. One
sender alone commits at once, in its own thread: nothing is waited for, no thread is woken.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

from dicom_node.writers import Writing
from storage.database import Database
from storage.errors import DatabaseRefused, StorageError, StorageUnavailable
from storage.files import FileStore
from storage.index import IndexResult, InstanceRecord, index_instances
from storage.journal_format import MAX_RECORDS, Record
from storage.part10 import IncomingFile
from storage.rulings import write_rulings

MAX_BATCH = MAX_RECORDS  # instances in one transaction: others wait for the database meanwhile


@dataclass
class Entry:
    """One instance that is to be committed, and what became of it."""

    incoming: IncomingFile
    record: InstanceRecord
    made: Writing | None = None  # its file, being written meanwhile
    is_for_journal: bool = False  # its bytes stay in memory for that
    result: IndexResult | None = None
    error: StorageError | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is known what became of it."""
        return self.result is not None or self.error is not None


@dataclass
class _Order:
    """What one caller waits for."""

    entries: Sequence[Entry]
    wake: threading.Lock = field(default_factory=threading.Lock)
    is_over: bool = False


class Committer:
    """Makes files durable under their names and enters them into the index; shared by threads."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._writer = database.writer()
        self._files = files
        self.journal = files.journal(self._writer.folder)
        self._lock = threading.Lock()
        self._waiting: list[_Order] = []
        self._is_busy = False

    def commit(self, entries: Sequence[Entry]) -> None:
        """Return once each of `entries` says what became of it: durable and in the index, or an error.

        After an error nothing may be promised.
        """
        order = _Order(entries)
        order.wake.acquire()
        with self._lock:
            self._waiting.append(order)
            is_first = not self._is_busy
            self._is_busy = True
        if not is_first:
            order.wake.acquire()  # until it is over, or until it is our turn to commit for all who wait
        if not order.is_over:
            self._commit_waiting(order)

    def prepare(self, *, is_journaling: bool) -> None:
        """Make what the first instance would wait for; what fails now fails again then."""
        with suppress(StorageError):
            self._files.prepare()
            if self.journal is not None and is_journaling:
                self.journal.prepare()
            with self._writer.transaction():
                pass

    def close(self) -> None:
        """Have everything durable, and leave no journal."""
        if self.journal is not None:
            self.journal.close()

    def _commit_waiting(self, own: _Order) -> None:
        with self._lock:
            orders = self._take_waiting()
        try:
            self._commit([entry for order in orders for entry in order.entries])
        finally:
            with self._lock:
                next_turn = self._waiting[0] if self._waiting else None
                self._is_busy = next_turn is not None
            for order in orders:
                _end(order)
                if order is not own:
                    order.wake.release()
            if next_turn is not None:
                next_turn.wake.release()

    def _take_waiting(self) -> list[_Order]:
        """Take those who came first, a whole order at a time, up to MAX_BATCH instances."""
        count = 0
        for position, order in enumerate(self._waiting):
            count += len(order.entries)
            if position and count > MAX_BATCH:
                taken, self._waiting = self._waiting[:position], self._waiting[position:]
                return taken
        taken, self._waiting = self._waiting, []
        return taken

    def _commit(self, batch: list[Entry]) -> None:
        # Rows of several studies are always locked in this order, or two processes would wait for each other.
        batch = sorted(batch, key=lambda entry: _lock_order(entry.record))
        try:
            with self._journaled(batch) as is_journaled:
                made = [entry for entry in batch if _is_made(entry)]
                self._files.keep_all([entry.incoming for entry in made], is_journaled=is_journaled)
                self._index_all(made, is_journaled=is_journaled)
        except StorageError as error:
            for entry in batch:
                entry.error = entry.error or error

    def _journaled(self, batch: list[Entry]) -> AbstractContextManager[bool]:
        """Have all of `batch` durable in the journal, if every one of them is short."""
        records = [
            Record(entry.record.stored, vars(entry.record.origin), pages)
            for entry in batch
            if entry.is_for_journal and (pages := entry.incoming.pages) is not None
        ]
        if self.journal is None or len(records) < len(batch):
            return nullcontext(False)
        return self.journal.batch(records)

    def _index_all(self, batch: list[Entry], *, is_journaled: bool) -> None:
        try:
            self._index(batch, is_journaled=is_journaled)
        except DatabaseRefused as error:
            self._index_one_by_one(batch, error)

    def _index(self, batch: list[Entry], *, is_journaled: bool = False) -> None:
        with self._writer.transaction(is_journaled=is_journaled) as tx:
            records = [entry.record for entry in batch]
            results = index_instances(tx, records)
            write_rulings(self._files, records, results)
        for entry, result in zip(batch, results, strict=True):
            if self._files.exists(entry.record.stored.path):
                entry.result = result
            else:  # retention removed the same bytes, of a study that went in this very moment
                entry.error = StorageUnavailable("the file is gone again: send it once more")

    def _index_one_by_one(self, batch: list[Entry], error: DatabaseRefused) -> None:
        """One that the database refuses does not take the others with it."""
        if len(batch) == 1:
            batch[0].error = error
            return
        for entry in batch:
            try:
                self._index([entry])
            except StorageError as own_error:
                entry.error = own_error


def _is_made(entry: Entry) -> bool:
    """Wait for the file that another thread writes."""
    if entry.made is not None:
        entry.error = entry.made.wait()
    return entry.error is None


def _end(order: _Order) -> None:
    order.is_over = True
    for entry in order.entries:
        if not entry.is_over:
            entry.error = StorageError("the commit broke off")


def _lock_order(record: InstanceRecord) -> tuple[str, str, str]:
    return record.study_instance_uid, record.series_instance_uid, record.sop_instance_uid
