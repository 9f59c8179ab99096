"""Instance -> Study/Series/Instance rows (idempotent upsert); finding them again.

Every transaction that adds to a study locks its Study row first, so that arrivals, completion and
reopening of one study happen one after the other.
"""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from sqlalchemy import case, func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now
from storage.errors import InstanceConflict
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
from storage.text import fold_name
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
    "instances_of_series",
    "instances_of_study",
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


def index_instance(tx: Transaction, record: InstanceRecord) -> IndexResult:
    """Enter an instance whose file is durable already; entering it again changes nothing.

    A new instance that is not our own result starts its study's quiet period again, and reopens the
    study under the next version when it was complete.
    """
    try:
        with tx.begin_nested():
            return _enter(tx, record)
    except InstanceConflict as conflict:
        _quarantine(tx, record, conflict)
        return IndexResult.CONFLICT


def find_study(tx: Transaction, study_instance_uid: str) -> Study | None:
    """Return the study's row, or None."""
    return tx.get(Study, study_instance_uid, populate_existing=True)


def find_instance(tx: Transaction, sop_instance_uid: str) -> Instance | None:
    """Return the instance's row, or None."""
    return tx.get(Instance, sop_instance_uid, populate_existing=True)


def instances_of_series(tx: Transaction, series_instance_uid: str) -> Sequence[Instance]:
    """Return the series' instances by Instance Number, then UID; geometry is the caller's to sort by."""
    return _instances(tx, Instance.series_instance_uid, series_instance_uid)


def instances_of_study(tx: Transaction, study_instance_uid: str) -> Sequence[Instance]:
    """Return the study's instances, series by series."""
    return _instances(tx, Instance.study_instance_uid, study_instance_uid)


def series_of_study(tx: Transaction, study_instance_uid: str) -> Sequence[Series]:
    """Return the study's series by Series Number, then UID; own results are marked."""
    statement = (
        select(Series)
        .where(Series.study_instance_uid == study_instance_uid)
        .order_by(Series.series_number.nulls_last(), Series.series_instance_uid)
        .execution_options(populate_existing=True)
    )
    return tx.scalars(statement).all()


def _instances(tx: Transaction, column: InstrumentedAttribute[str], uid: str) -> Sequence[Instance]:
    order = (Instance.series_instance_uid, Instance.instance_number.nulls_last(), Instance.sop_instance_uid)
    statement = select(Instance).where(column == uid).order_by(*order)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def _enter(tx: Transaction, record: InstanceRecord) -> IndexResult:
    if _is_known(tx, record):
        return IndexResult.DUPLICATE
    _upsert_study(tx, record)
    _upsert_series(tx, record)
    if not _insert_instance(tx, record):
        _is_known(tx, record)  # another transaction entered it a moment ago; raises if it was other content
        return IndexResult.DUPLICATE
    if not record.is_own_result:
        _restart_quiet_period(tx, record.study_instance_uid)
    return IndexResult.NEW


def _is_known(tx: Transaction, record: InstanceRecord) -> bool:
    """Say whether the same instance is in the index; raises InstanceConflict for other content."""
    statement = select(Instance.sha256).where(Instance.sop_instance_uid == record.sop_instance_uid)
    first_sha256 = tx.scalar(statement)
    if first_sha256 is None or first_sha256 == record.stored.sha256:
        return first_sha256 is not None
    raise InstanceConflict(record.sop_instance_uid, "its UID came with other content before", first_sha256)


def _upsert_study(tx: Transaction, record: InstanceRecord) -> None:
    # The first non-empty value of an attribute stays; the update also locks the row.
    attributes = asdict(record.study) | {
        "patient_name_folded": fold_name(record.study.patient_name),
        "referring_physician_name_folded": fold_name(record.study.referring_physician_name),
    }
    insert = insert_into(tx, Study).values(
        study_instance_uid=record.study_instance_uid,
        version=1,
        created_at=database_now(),
        last_received_at=database_now(),
        **attributes,
    )
    filled = {name: _first_known(insert, getattr(Study, name), name) for name in attributes}
    tx.execute(insert.on_conflict_do_update(index_elements=[Study.study_instance_uid], set_=filled))


def _first_known(
    insert: sqlite.Insert | postgresql.Insert, column: InstrumentedAttribute[str], name: str
) -> Any:
    return func.coalesce(func.nullif(column, ""), insert.excluded[name])


def _upsert_series(tx: Transaction, record: InstanceRecord) -> None:
    insert = insert_into(tx, Series).values(
        series_instance_uid=record.series_instance_uid,
        study_instance_uid=record.study_instance_uid,
        is_own_result=record.is_own_result,
        **asdict(record.series),
    )
    tx.execute(insert.on_conflict_do_nothing(index_elements=[Series.series_instance_uid]))
    uid = Series.series_instance_uid == record.series_instance_uid
    if tx.scalar(select(Series.study_instance_uid).where(uid)) != record.study_instance_uid:
        raise InstanceConflict(record.sop_instance_uid, "its series belongs to another study", "")


def _insert_instance(tx: Transaction, record: InstanceRecord) -> bool:
    insert = (
        insert_into(tx, Instance)
        .values(
            sop_instance_uid=record.sop_instance_uid,
            series_instance_uid=record.series_instance_uid,
            study_instance_uid=record.study_instance_uid,
            sop_class_uid=record.sop_class_uid,
            transfer_syntax_uid=record.transfer_syntax_uid,
            origin_kind=record.origin.kind,
            origin_detail=record.origin.detail,
            received_at=database_now(),
            **asdict(record.image),
            **asdict(record.stored),
        )
        .on_conflict_do_nothing(index_elements=[Instance.sop_instance_uid])
        .returning(Instance.sop_instance_uid)
    )
    return tx.execute(insert).first() is not None


def _restart_quiet_period(tx: Transaction, study_instance_uid: str) -> None:
    # An earlier request to complete meant the instances of that moment, so it ends with a new one.
    statement = (
        update(Study)
        .where(Study.study_instance_uid == study_instance_uid)
        .values(
            last_received_at=database_now(),
            version=case((Study.completed_at.is_(None), Study.version), else_=Study.version + 1),
            completed_at=null(),
            complete_requested_by=null(),
            evidence=null(),
            outcome=null(),
        )
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)


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
