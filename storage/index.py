"""Instance -> Study/Series/Instance rows (idempotent upsert); finding them again.

Every transaction that adds to a study locks its Study row first, so that arrivals, completion and
reopening of one study happen one after the other.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from sqlalchemy import ColumnElement, select

from storage.arrival import Known, insert_instance, insert_series, known_of, upsert_study
from storage.corrections import note_arrival
from storage.database import Transaction, database_now
from storage.errors import InstanceConflict
from storage.identity import (
    HIDDEN,
    OTHER_PATIENT,
    SET_ASIDE,
    follow_note,
    hide_rejected,
    is_same_image,
    is_shown,
    names_other_patient,
    note_identity,
    take_correction,
)
from storage.records import InstanceRecord, Origin, record_from_dataset
from storage.search import (
    InstanceMatch,
    SearchQuery,
    SeriesMatch,
    StudyMatch,
    search_instances,
    search_series,
    search_studies,
)
from storage.studies import QuietStudy, mark_complete, quiet_studies, record_outcome, request_completion
from storage.tables import Conflict, Instance, Series, Study
from storage.upsert import insert_into

__all__ = [
    "IndexResult",
    "InstanceMatch",
    "InstanceRecord",
    "Origin",
    "QuietStudy",
    "SearchQuery",
    "SeriesMatch",
    "StudyMatch",
    "find_instance",
    "find_study",
    "index_instance",
    "index_instances",
    "instances_of_series",
    "instances_of_study",
    "is_held",
    "mark_complete",
    "quiet_studies",
    "record_from_dataset",
    "record_outcome",
    "request_completion",
    "search_instances",
    "search_series",
    "search_studies",
    "series_of_study",
]


class IndexResult(StrEnum):
    """What the index did with an instance."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"  # same UID, same bytes: nothing changed
    CONFLICT = "CONFLICT"  # same UID, other bytes: the first stays, the second is in quarantine
    OTHER_PATIENT = "OTHER PATIENT"  # its study belongs to another patient: it is in quarantine
    CORRECTED = "CORRECTED"  # other patient, by a sender that may say so; a first content is set aside


def index_instance(tx: Transaction, record: InstanceRecord) -> IndexResult:
    """Enter an instance whose file is durable already; entering it again changes nothing.

    A new instance that is not our own result starts its study's quiet period again, and reopens the
    study under the next version when it was complete.
    """
    try:
        if _has_one_writer(tx):
            return _enter(tx, record)
        with tx.begin_nested():
            return _enter(tx, record)
    except InstanceConflict as conflict:
        _quarantine(tx, record, conflict)
        if conflict.reason != OTHER_PATIENT:
            return IndexResult.CONFLICT
        note_identity(tx, record.study_instance_uid, SET_ASIDE)
        return IndexResult.OTHER_PATIENT


def index_instances(tx: Transaction, records: Iterable[InstanceRecord]) -> list[IndexResult]:
    """Enter several instances in one transaction, each as `index_instance` does."""
    return [index_instance(tx, record) for record in records]


def find_study(tx: Transaction, study_instance_uid: str) -> Study | None:
    """Return the study's row, or None."""
    return tx.get(Study, study_instance_uid, populate_existing=True)


def find_instance(tx: Transaction, sop_instance_uid: str) -> Instance | None:
    """Return the instance's row; None when there is none, or it was rejected or withdrawn."""
    found = tx.get(Instance, sop_instance_uid, populate_existing=True)
    return None if found is None or found.retired_as in HIDDEN else found


def is_held(tx: Transaction, record: InstanceRecord) -> bool:
    """Whether these very bytes are this instance, hidden or not, or lie in quarantine for it."""
    uid, sha256 = record.sop_instance_uid, record.stored.sha256
    instance = select(Instance.sop_instance_uid).where(
        Instance.sop_instance_uid == uid, Instance.sha256 == sha256
    )
    conflict = select(Conflict.sop_instance_uid).where(
        Conflict.sop_instance_uid == uid, Conflict.second_sha256 == sha256
    )
    return tx.scalar(instance) is not None or tx.scalar(conflict) is not None


def instances_of_series(tx: Transaction, series_instance_uid: str) -> Sequence[Instance]:
    """Return the series' instances by Instance Number, then UID; geometry is the caller's to sort by.

    What was rejected or withdrawn is not among them.
    """
    return _instances(tx, Instance.series_instance_uid == series_instance_uid, is_shown())


def instances_of_study(tx: Transaction, study_instance_uid: str) -> Sequence[Instance]:
    """Return the study's instances, series by series, without results that newer ones replace."""
    return _instances(tx, Instance.study_instance_uid == study_instance_uid, Instance.retired_as.is_(None))


def series_of_study(tx: Transaction, study_instance_uid: str) -> Sequence[Series]:
    """Return the study's series by Series Number, then UID; own results are marked."""
    statement = (
        select(Series)
        .where(Series.study_instance_uid == study_instance_uid)
        .order_by(Series.series_number.nulls_last(), Series.series_instance_uid)
        .execution_options(populate_existing=True)
    )
    return tx.scalars(statement).all()


def _instances(tx: Transaction, *conditions: ColumnElement[bool]) -> Sequence[Instance]:
    order = (Instance.series_instance_uid, Instance.instance_number.nulls_last(), Instance.sop_instance_uid)
    statement = select(Instance).where(*conditions).order_by(*order)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def _has_one_writer(tx: Transaction) -> bool:
    """SQLite: nothing can change between what `_enter` reads and what it writes, so nothing is undone."""
    return tx.get_bind().dialect.name == "sqlite"


def _enter(tx: Transaction, record: InstanceRecord) -> IndexResult:
    known = known_of(tx, record)
    if record.may_correct and _corrects(tx, record, known):
        return IndexResult.CORRECTED
    if _is_duplicate(record, known):
        return IndexResult.DUPLICATE
    if known.series_study_uid not in (None, record.study_instance_uid):
        raise InstanceConflict(record.sop_instance_uid, "its series belongs to another study", "")
    is_correction = not record.is_own_result and names_other_patient(record, known.patient_id)
    if is_correction:
        _require_correction(tx, record)
    upsert_study(tx, record)
    is_series_there = known.series_study_uid is not None or insert_series(tx, record)
    if is_series_there and insert_instance(tx, record):
        _follow(tx, record, known)
        entered = IndexResult.NEW
    else:
        entered = _enter_overtaken(tx, record)
    return IndexResult.CORRECTED if is_correction and entered is IndexResult.NEW else entered


def _corrects(tx: Transaction, record: InstanceRecord, known: Known) -> bool:
    """Take other content of a known instance from a sender that may correct, if it is the same image."""
    if known.sha256 in (None, record.stored.sha256) or known.series_study_uid != record.study_instance_uid:
        return False
    first = find_instance(tx, record.sop_instance_uid)
    if first is None or not is_same_image(record, first):
        return False
    take_correction(tx, record, known.sha256)
    return True


def _require_correction(tx: Transaction, record: InstanceRecord) -> None:
    """Let the study change hands if its sender may say so; raises InstanceConflict otherwise."""
    if not record.may_correct:
        raise InstanceConflict(record.sop_instance_uid, OTHER_PATIENT, "")
    take_correction(tx, record, None)


def _follow(tx: Transaction, record: InstanceRecord, known: Known) -> None:
    """Do what an instance, or a note that came before it, means for others."""
    if known.note_uid is not None:
        hide_rejected(tx, record.sop_instance_uid, known.note_uid)
    if record.note is not None and not record.is_own_result:
        follow_note(tx, record, record.note)
    note_arrival(tx, record)


def _enter_overtaken(tx: Transaction, record: InstanceRecord) -> IndexResult:
    """Go on after another transaction entered the same series or instance a moment ago (PostgreSQL)."""
    known = known_of(tx, record)
    if _is_duplicate(record, known):
        return IndexResult.DUPLICATE
    if known.series_study_uid != record.study_instance_uid:
        raise InstanceConflict(record.sop_instance_uid, "its series belongs to another study", "")
    insert_instance(tx, record)
    _follow(tx, record, known)
    return IndexResult.NEW


def _is_duplicate(record: InstanceRecord, known: Known) -> bool:
    """Say whether the same instance is in the index; raises InstanceConflict for other content."""
    if known.sha256 is None or known.sha256 == record.stored.sha256:
        return known.sha256 is not None
    raise InstanceConflict(record.sop_instance_uid, "its UID came with other content before", known.sha256)


def _quarantine(tx: Transaction, record: InstanceRecord, conflict: InstanceConflict) -> None:
    insert = insert_into(tx, Conflict).values(
        sop_instance_uid=record.sop_instance_uid,
        first_sha256=conflict.first_sha256,
        second_sha256=record.stored.sha256,
        reason=conflict.reason,
        path=record.stored.path,
        origin_kind=record.origin.kind,
        origin_detail=record.origin.detail,
        received_at=database_now(),
        times_received=1,
    )
    keys = [Conflict.sop_instance_uid, Conflict.second_sha256]
    counted = {"times_received": Conflict.times_received + 1}
    tx.execute(insert.on_conflict_do_update(index_elements=keys, set_=counted))
