"""Files back into the index: from the journal, orphans that a crash left, or all when the index was lost.

A file is believed only when its bytes have the digest of its name and can be read as DICOM; otherwise it is
set aside, never deleted. What came from outside is entered as if it had just been received: nobody was
promised it, or the index that knew of the promise is gone. Our own results are entered only when the whole
index is made anew; a single one without a row is what a worker left that had lost its job: it is set aside.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from itertools import islice

from sqlalchemy import delete, select, update

from dicom_node.errors import NodeError
from dicom_node.header import HeaderLimits, read_header
from dicom_node.notes import IdentityRules, ResultNote, result_note_of
from dicom_node.product import is_own_result
from dicom_node.receive import silence_pydicom
from dicom_node.settings import NodeSettings
from storage.database import Database, Transaction, database_now
from storage.errors import DatabaseRefused, IndexNotEmpty, InstanceMissing, InstanceUnidentified
from storage.files import FileStore, StoredObject, open_files
from storage.fsck import Progress, count_instances, digest_of, unreferenced
from storage.identity import follow_result
from storage.index import IndexResult, find_instance, index_instance, is_held
from storage.journal import LeftBehind
from storage.part10 import StoredFile, is_address
from storage.records import VALUE_ERRORS, InstanceRecord, Origin, record_from_dataset
from storage.tables import Conflict, Instance, Series, Study

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
            record = self._record(orphan)
        except InstanceMissing:
            return Fate.LEFT
        if record is None:
            return self._set_aside(orphan)
        if record.is_own_result:
            is_forsaken = time.time() - orphan.modified_at > FORSAKEN_AFTER_S
            return self._set_aside(orphan) if is_forsaken else Fate.LEFT
        with self._database.transaction() as tx:
            result = index_instance(tx, record)
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
        record = self._record(found, Origin(**left.note))
        if record is None:
            return False
        try:
            with self._database.transaction() as tx:
                if is_held(tx, record):
                    return False
                index_instance(tx, replace(record, is_own_result=False))
        except DatabaseRefused:
            extra = {"sop_instance_uid": record.sop_instance_uid}
            logger.exception("an instance of the journal was refused again", extra=extra)
            return False
        return True

    def rebuild(self, progress: Progress) -> Counter[Fate]:
        """Enter every file into an index that has no instances.

        Of several contents with one UID the oldest file is the one that was received first. Rejection notes
        are followed again, and results count as they say themselves: those that a newer one names as its
        predecessors are superseded, those made from a rejected image are withdrawn.

        Raises
        ------
        IndexNotEmpty
            If the index has instances; `fsck --repair` enters what such an index lacks.
        """
        if count_instances(self._database):
            raise IndexNotEmpty("the index has instances: use `dicom-node fsck --repair` for single files")
        fates: Counter[Fate] = Counter()
        walk = self._files.walk()
        while batch := list(islice(walk, BATCH)):
            known = [(stored, self._record(stored)) for stored in batch if is_address(stored.path)]
            for stored, record in known:
                if record is None:
                    fates[self._set_aside(stored)] += 1
            with self._database.transaction() as tx:
                fates.update(self._enter(tx, stored, record) for stored, record in known if record)
            progress("files", fates.total())
        self._follow_results(progress)
        return fates

    def _follow_results(self, progress: Progress) -> None:
        """Read every result of ours once more, now that all are entered that they may name."""
        last, seen = "", 0
        while rows := self._results_after(last):
            for row in rows:
                said = self._said_by(row)
                if said is not None:
                    with self._database.transaction() as tx:
                        follow_result(tx, row, said.predecessors, said.inputs)
            last, seen = rows[-1].sop_instance_uid, seen + len(rows)
            progress("results", seen)

    def _results_after(self, sop_instance_uid: str) -> Sequence[Instance]:
        statement = (
            select(Instance)
            .join(Series, Series.series_instance_uid == Instance.series_instance_uid)
            .where(Series.is_own_result, Instance.sop_instance_uid > sop_instance_uid)
            .order_by(Instance.sop_instance_uid)
            .limit(BATCH)
        )
        with self._database.reading() as tx:
            return tx.scalars(statement).all()

    def _said_by(self, row: Instance) -> ResultNote | None:
        with suppress(InstanceMissing), self._files.open(row.path) as file:
            return result_note_of(file)
        return None

    def _enter(self, tx: Transaction, stored: StoredObject, record: InstanceRecord) -> Fate:
        result = index_instance(tx, record)
        if result is not IndexResult.CONFLICT:
            return Fate.INDEXED if result is IndexResult.NEW else Fate.DUPLICATE
        row = find_instance(tx, record.sop_instance_uid)
        first = self._files.find(row.path) if row is not None else None
        if first is not None and first.modified_at > stored.modified_at:
            self._change_places(tx, record, first)
        return Fate.QUARANTINED

    def _change_places(self, tx: Transaction, older: InstanceRecord, first: StoredObject) -> None:
        """Let the older of two contents be the instance, and the one entered first the quarantined."""
        younger = self._record(first)
        if younger is None:
            return
        uid = older.sop_instance_uid
        tx.execute(delete(Instance).where(Instance.sop_instance_uid == uid))
        mine = (Conflict.sop_instance_uid == uid, Conflict.second_sha256 == older.stored.sha256)
        tx.execute(delete(Conflict).where(*mine))
        for record in (older, younger):
            index_instance(tx, record)

    def _record(self, stored: StoredObject, origin: Origin = RECOVERED) -> InstanceRecord | None:
        """Read what the index keeps of a file; None when its bytes cannot be believed."""
        sha256 = digest_of(self._files, stored.path)
        if f"{sha256}.dcm" != stored.path.rsplit("/", 1)[-1]:
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

    def _set_aside(self, stored: StoredObject) -> Fate:
        with suppress(InstanceMissing):
            self._files.set_aside(stored.path)
            logger.warning("file without a row set aside", extra={"path": stored.path})
        return Fate.SET_ASIDE

    def _drop_copy(self, copy: StoredObject, path: str) -> Fate:
        """Delete the second copy of an instance, once the first has been read and is what it should be."""
        sha256 = copy.path.rsplit("/", 1)[-1].removesuffix(".dcm")
        with suppress(InstanceMissing):
            if digest_of(self._files, path) == sha256:
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
