"""A lost index made anew from the files: who counts is decided once more, as it was decided then.

Files are entered as they are found. Where that is not enough - other content under one UID, another patient
in one study, a content that something was ruled about (`storage.rulings`) - the whole study is entered again,
in an order in which everything is as it was: what was accepted, the corrections as they came, what was
accepted for the corrected patient, and last what was refused.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from typing import Final, NamedTuple

from sqlalchemy import Delete, delete, func, select

from dicom_node.notes import IdentityRules, ResultNote, result_note_of
from dicom_node.recovery import Fate, Recovery
from storage.database import Database, Transaction
from storage.errors import IndexNotEmpty, InstanceMissing
from storage.files import FileStore, StoredObject
from storage.fsck import Progress, count_instances
from storage.identity import follow_result, withdraw_unclaimed
from storage.index import IndexResult, InstanceRecord, index_instance
from storage.part10 import is_address
from storage.rulings import Rulings, read_rulings
from storage.tables import Conflict, Instance, Series, Study

BATCH: Final = 100  # files that are entered in one transaction
_NOTHING: Final = Rulings()


class _Turn(IntEnum):
    """When a content of a doubtful study is entered."""

    ACCEPTED = 0
    CORRECTION = 1
    ACCEPTED_AFTER = 2  # for the patient that the last correction names
    REFUSED = 3


class _Entry(NamedTuple):
    turn: _Turn
    at: float  # UTC epoch seconds
    path: str
    record: InstanceRecord


@dataclass
class _Doubtful:
    """Studies that are entered again, and files of theirs that the first pass did not enter."""

    studies: set[str] = field(default_factory=set)
    apart: list[StoredObject] = field(default_factory=list)


class Rebuild:
    """Enters every file into an index that has no instances."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        identity: IdentityRules = IdentityRules(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._files = files
        self._recovery = Recovery(database, files, identity)
        self._rulings = read_rulings(files)
        self._doubtful = _Doubtful()

    def run(self, progress: Progress) -> Counter[Fate]:
        """Enter everything; gives how many files had which fate.

        Of several contents with one UID, the oldest file is the one that was received first, unless it was
        ruled otherwise. Rejection notes are followed again, and results count as they say themselves: those
        that a newer one names as its predecessors are superseded, those made from a rejected image or before
        a correction are withdrawn.

        Raises
        ------
        IndexNotEmpty
            If the index has instances; `fsck --repair` enters what such an index lacks.
        """
        if count_instances(self._database):
            raise IndexNotEmpty("the index has instances: use `dicom-node fsck --repair` for single files")
        fates: Counter[Fate] = Counter()
        walk = self._files.walk()
        seen = 0
        while batch := list(islice(walk, BATCH)):
            fates.update(self._enter_batch([stored for stored in batch if is_address(stored.path)]))
            seen += len(batch)
            progress("files", seen)
        self._enter_doubtful()
        self._follow_results(progress)
        return fates + self._counted()

    def _enter_batch(self, batch: Sequence[StoredObject]) -> Iterator[Fate]:
        """Enter what is beyond doubt; gives the fates of what is no instance."""
        known = [(stored, self._recovery.record_of(stored)) for stored in batch]
        with self._database.transaction() as tx:
            results = [self._enter(tx, stored, record) for stored, record in known if record is not None]
        yield from (Fate.DUPLICATE for result in results if result is IndexResult.DUPLICATE)
        for stored, record in known:
            if record is None:
                yield self._recovery.set_aside(stored)

    def _enter(self, tx: Transaction, stored: StoredObject, record: InstanceRecord) -> IndexResult | None:
        result = None if record.stored.sha256 in self._rulings else index_instance(tx, record)
        if result in (None, IndexResult.CONFLICT, IndexResult.OTHER_PATIENT):
            owners = tx.get(Instance, record.sop_instance_uid), tx.get(Series, record.series_instance_uid)
            taken = {owner.study_instance_uid for owner in owners if owner is not None}
            self._doubtful.studies |= {record.study_instance_uid, *taken}
            self._doubtful.apart.append(stored)
        return result

    def _enter_doubtful(self) -> None:
        if not self._doubtful.apart:
            return
        entries = sorted(self._entries([*self._doubtful.apart, *self._entered_already()]))
        with self._database.transaction() as tx:
            for removal in self._removals():
                tx.execute(removal.execution_options(synchronize_session=False))
            for entry in entries:
                is_correction = entry.turn is _Turn.CORRECTION
                index_instance(tx, replace(entry.record, may_correct=is_correction))
                if is_correction:
                    withdraw_unclaimed(tx, entry.record.study_instance_uid)

    def _entered_already(self) -> list[StoredObject]:
        with self._database.reading() as tx:
            mine = select(Instance.path).where(Instance.study_instance_uid.in_(self._doubtful.studies))
            paths = tx.scalars(mine).all()
        return [found for path in paths if (found := self._files.find(path)) is not None]

    def _removals(self) -> list[Delete]:
        studies = self._doubtful.studies
        digests = [stored.path.rsplit("/", 1)[-1].removesuffix(".dcm") for stored in self._doubtful.apart]
        return [
            delete(Conflict).where(Conflict.second_sha256.in_(digests)),
            delete(Instance).where(Instance.study_instance_uid.in_(studies)),
            delete(Series).where(Series.study_instance_uid.in_(studies)),
            delete(Study).where(Study.study_instance_uid.in_(studies)),
        ]

    def _entries(self, doubtful: Iterable[StoredObject]) -> list[_Entry]:
        read = [(stored, self._recovery.record_of(stored)) for stored in doubtful]
        known = [(stored, record) for stored, record in read if record is not None]
        entries: list[_Entry] = []
        for stored, record in known:
            entries += [
                _Entry(_Turn.CORRECTION, at, stored.path, record) for at in self._ruled(record).corrected_at
            ]
        last = {entry.record.study_instance_uid: entry for entry in sorted(entries)}
        for stored, record in known:
            if not self._ruled(record).corrected_at:
                turn = self._turn(stored, record, last.get(record.study_instance_uid))
                entries.append(_Entry(turn, stored.modified_at, stored.path, record))
        return entries

    def _turn(self, stored: StoredObject, record: InstanceRecord, last: _Entry | None) -> _Turn:
        """When to enter what is no correction; files of images have the time of their last sending."""
        if self._ruled(record).is_refused:
            return _Turn.REFUSED
        if last is None:
            return _Turn.ACCEPTED
        is_after = record.study.patient_id == last.record.study.patient_id
        if record.is_own_result:
            is_after = stored.modified_at > last.at
        return _Turn.ACCEPTED_AFTER if is_after else _Turn.ACCEPTED

    def _ruled(self, record: InstanceRecord) -> Rulings:
        return self._rulings.get(record.stored.sha256, _NOTHING)

    def _counted(self) -> Counter[Fate]:
        with self._database.reading() as tx:
            quarantined = tx.scalar(select(func.count()).select_from(Conflict)) or 0
        return Counter({Fate.INDEXED: count_instances(self._database), Fate.QUARANTINED: quarantined})

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
