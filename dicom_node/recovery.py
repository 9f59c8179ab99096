"""Files back into the index: from the journal, and orphans that a crash left.

A file is believed only when its bytes have the digest of its name and can be read as DICOM; otherwise it is
set aside, never deleted. What came from outside is entered as if it had just been received: nobody was
promised it, or the index that knew of the promise is gone. Our own results are entered only when the whole
index is made anew; a single one without a row is what a worker left that had lost its job: it is set aside.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from itertools import islice

from sqlalchemy import update

from dicom_node.errors import NodeError
from dicom_node.header import HeaderLimits, read_header
from dicom_node.notes import IdentityRules
from dicom_node.product import is_own_result
from dicom_node.receive import silence_pydicom
from dicom_node.settings import NodeSettings
from storage.database import Database, database_now
from storage.errors import DatabaseRefused, InstanceMissing, InstanceUnidentified
from storage.files import FileStore, StoredObject, open_files
from storage.fsck import unreferenced
from storage.index import IndexResult, find_instance, index_instance, is_held
from storage.journal_recovery import LeftBehind
from storage.part10 import StoredFile, is_address
from storage.records import VALUE_ERRORS, InstanceRecord, Origin, record_from_dataset
from storage.rulings import write_rulings
from storage.soundness import digest_of, recorded_digest
from storage.tables import Study

logger = logging.getLogger(__name__)

RECOVERED = Origin("IMPORT", "recovered file")
BATCH = 100  # files that are entered in one transaction
LOOK_AT_ONCE = 500  # files that one pass of the sweep looks up
SETTLED_AFTER_S = 60.0  # a younger file's row may be on its way
TICKS_S = 0.1  # by which the time of a new file may be behind the clock
FORSAKEN_AFTER_S = 3600.0  # a result of ours without a row for so long: its job was lost by its worker


class Fate(StrEnum):
    """What became of a file without a row."""

    INDEXED = "indexed"
    QUARANTINED = "quarantined"  # its UID is taken by other content
    DUPLICATE = "duplicate"  # the index has the same bytes under another path, which are there
    SET_ASIDE = "set aside"
    LEFT = "left"  # gone meanwhile, or of a job that may still be at work


class Recovery:
    """Enters files into the index of one node."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        identity: IdentityRules = IdentityRules(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._files = files
        self._identity = identity
        self._limits = HeaderLimits()
        silence_pydicom()

    def adopt(self, orphan: StoredObject) -> Fate:
        """Enter one file that no row refers to."""
        try:
            record = self.record_of(orphan)
        except InstanceMissing:
            return Fate.LEFT
        if record is None:
            return self.set_aside(orphan)
        if record.is_own_result:
            is_forsaken = time.time() - orphan.modified_at > FORSAKEN_AFTER_S
            return self.set_aside(orphan) if is_forsaken else Fate.LEFT
        with self._database.transaction() as tx:
            result = index_instance(tx, record)
            write_rulings(self._files, [record], [result])
            known = find_instance(tx, record.sop_instance_uid)
        if result is IndexResult.DUPLICATE and known is not None and known.path != orphan.path:
            return self._drop_copy(orphan, known.path)
        logger.warning(
            "file without a row entered into the index",
            extra={"sop_instance_uid": record.sop_instance_uid, "result": str(result)},
        )
        return Fate.QUARANTINED if result is IndexResult.CONFLICT else Fate.INDEXED

    def replay(self) -> int:
        """Make files and rows again of what dead processes had in their journals; returns how many rows.

        A row that is there already stays as it is: the index may have lost its newest rows, never others.
        """
        with self._files.left_behind() as left:
            return sum(self._enter_again(each) for each in left)

    def _enter_again(self, left: LeftBehind) -> bool:
        found = StoredObject(left.stored.path, left.stored.size_bytes, time.time())
        record = self.record_of(found, Origin(**left.note))
        if record is None:
            return False
        try:
            with self._database.transaction() as tx:
                if is_held(tx, record):
                    return False
                result = index_instance(tx, replace(record, is_own_result=False))
                write_rulings(self._files, [record], [result])
        except DatabaseRefused:
            extra = {"sop_instance_uid": record.sop_instance_uid}
            logger.exception("an instance of the journal was refused again", extra=extra)
            return False
        return True

    def record_of(self, stored: StoredObject, origin: Origin = RECOVERED) -> InstanceRecord | None:
        """Read what the index keeps of a file; None when its bytes cannot be believed."""
        sha256 = digest_of(self._files, stored.path)
        if sha256 != recorded_digest(stored.path):
            return None
        file = StoredFile(stored.path, sha256, stored.size_bytes)
        try:
            with self._files.local(stored.path) as path, path.open("rb") as content:
                header = read_header(content, self._limits)
            header.elements.file_meta = header.meta
            record = record_from_dataset(header.elements, file, origin)
            manufacturer = str(header.elements.get("Manufacturer") or "")
        except (NodeError, InstanceUnidentified, *VALUE_ERRORS):
            return None
        record = replace(record, is_own_result=is_own_result(record.series.modality, manufacturer))
        return self._identity.completed(record, lambda: self._files.open(stored.path))

    def set_aside(self, stored: StoredObject) -> Fate:
        """Move a file out of the way that cannot be believed."""
        with suppress(InstanceMissing):
            self._files.set_aside(stored.path)
            logger.warning("file without a row set aside", extra={"path": stored.path})
        return Fate.SET_ASIDE

    def _drop_copy(self, copy: StoredObject, path: str) -> Fate:
        """Delete the second copy of an instance, once the first has been read and is what it should be."""
        with suppress(InstanceMissing):
            if digest_of(self._files, path) == recorded_digest(copy.path):
                self._files.delete(copy.path)
        return Fate.DUPLICATE


class OrphanCollector:
    """Looks through all files bit by bit, so that no pass of the sweep takes long; then rests."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        every_s: float,
        identity: IdentityRules = IdentityRules(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._files = files
        self._recovery = Recovery(database, files, identity)
        self._every_s = every_s
        # In the first round: whatever was there before this start. A file's own time is some ticks behind.
        self._settled_before = time.time() - TICKS_S
        self._walk: Iterator[StoredObject] | None = files.walk()
        self._next_round = 0.0  # monotonic seconds

    def step(self) -> Counter[Fate]:
        """Look at the next files; returns what became of those without a row."""
        fates: Counter[Fate] = Counter()
        if self._walk is None:
            if time.monotonic() < self._next_round:
                return fates
            self._settled_before = time.time() - SETTLED_AFTER_S
            self._walk = self._files.walk()
        walk, self._walk = self._walk, None  # an error ends the round; the next begins anew
        self._next_round = time.monotonic() + self._every_s
        batch = list(islice(walk, LOOK_AT_ONCE))
        settled = [stored for stored in batch if stored.modified_at < self._settled_before]
        ours = [orphan for orphan in unreferenced(self._database, settled) if is_address(orphan.path)]
        fates.update(self._recovery.adopt(orphan) for orphan in ours)
        if batch:
            self._walk = walk
        return fates


def replay_journals(settings: NodeSettings, database: Database) -> None:
    """What every process of the node does before it looks at files or rows: see `Recovery.replay`."""
    corrections_from = frozenset(settings.identity.corrections_from)
    identity = IdentityRules(settings.identity.follow_rejection_notes, corrections_from)
    count = Recovery(database, open_files(settings.storage), identity).replay()
    if count:
        logger.warning("instances of the journal entered into the index: %d", count)


def mark_all_complete(database: Database) -> int:
    """Call every study complete without a job, as after a rebuild of what was analysed before."""
    evidence = json.dumps({"kind": "rebuilt index"})
    statement = (
        update(Study)
        .where(Study.completed_at.is_(None))
        .values(completed_at=database_now(), evidence=evidence, outcome="index rebuilt: not analysed again")
        .returning(Study.study_instance_uid)
        .execution_options(synchronize_session=False)
    )
    with database.transaction() as tx:
        return len(tx.execute(statement).all())
