"""Removes whole studies that may go, and nothing that is still owed to anybody.

A study may go when it is complete, no job of it is open, every result has reached every destination (and is
confirmed where commitment was asked for), and nothing of it waits for an operator: dead letters, conflicts.
Files go before the transaction of their rows ends: after a crash in between the study is still there, without
files, and the next pass removes it. The other order would leave files that start-up takes for arrivals.
A study of which a journal still holds an instance waits, a second of rest or 16 MB of other instances: after
the death of its process the journal would bring it back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Delete, Update, and_, delete, exists, or_, select, text, update

from storage.database import Database, Transaction, database_now
from storage.deliveries import DeliveryState
from storage.files import FileStore
from storage.jobs import JobState
from storage.tables import (
    Conflict,
    Correction,
    Delivery,
    DeliveryAttempt,
    Instance,
    Job,
    JobAttempt,
    Rejection,
    Series,
    Study,
    Workitem,
)

DAY_S = 86400.0


@dataclass(frozen=True)
class Purged:
    """One study that was removed."""

    study_instance_uid: str
    instances: int
    size_bytes: int


def purgeable_studies(tx: Transaction, older_than_s: float, limit: int = 100) -> list[str]:
    """Return studies that may go, of those nothing arrived for during `older_than_s`, the oldest first."""
    statement = (
        select(Study.study_instance_uid)
        .where(Study.last_received_at <= database_now() - older_than_s, *_may_go())
        .order_by(Study.last_received_at)
        .limit(limit)
    )
    return list(tx.scalars(statement))


def purge_study(database: Database, files: FileStore, study_instance_uid: str) -> Purged | None:
    """Remove a study with all its rows and files; None when it may not go (any more)."""
    with database.transaction() as tx:
        _hold_arrivals(tx)
        statement = select(Study).where(Study.study_instance_uid == study_instance_uid, *_may_go())
        if tx.scalars(statement.with_for_update()).first() is None:
            return None
        instances = tx.execute(
            select(Instance.path, Instance.size_bytes).where(
                Instance.study_instance_uid == study_instance_uid
            )
        ).all()
        paths = {path for path, _ in instances}
        if paths & files.held_paths():
            return None
        for removal in _removals(study_instance_uid):
            tx.execute(removal.execution_options(synchronize_session=False))
        for path in _unnamed(tx, sorted(paths)):
            files.delete(path)
    return Purged(study_instance_uid, len(instances), sum(size for _, size in instances))


def _hold_arrivals(tx: Transaction) -> None:
    """Let no instance be entered until the end: its file could be one that is being removed.

    Whoever receives looks after its commit whether the file is still there, before it says success.
    """
    if tx.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        tx.execute(text("LOCK TABLE instance IN SHARE ROW EXCLUSIVE MODE"))


def _may_go() -> tuple[ColumnElement[bool], ...]:
    study = Study.study_instance_uid
    of_study = Instance.study_instance_uid == study
    is_owed = or_(
        Delivery.state.in_((DeliveryState.QUEUED, DeliveryState.FAILED)),
        and_(Delivery.state == DeliveryState.DELIVERED, Delivery.commitment_due_at.is_not(None)),
    )
    owed = exists().where(Instance.sop_instance_uid == Delivery.sop_instance_uid, of_study, is_owed)
    open_job = exists().where(
        Job.study_instance_uid == study, Job.state.in_((JobState.SCHEDULED, JobState.IN_PROGRESS))
    )
    conflict = exists().where(Conflict.sop_instance_uid == Instance.sop_instance_uid, of_study)
    return Study.completed_at.is_not(None), Study.outcome.is_not(None), ~owed, ~open_job, ~conflict


def _removals(study_instance_uid: str) -> list[Delete | Update]:
    """What names a study, the last made first: nothing may point at a row that is gone."""
    instances = select(Instance.sop_instance_uid).where(Instance.study_instance_uid == study_instance_uid)
    deliveries = select(Delivery.delivery_id).where(Delivery.sop_instance_uid.in_(instances))
    jobs = select(Job.job_id).where(Job.study_instance_uid == study_instance_uid)
    return [
        delete(DeliveryAttempt).where(DeliveryAttempt.delivery_id.in_(deliveries)),
        delete(Delivery).where(Delivery.sop_instance_uid.in_(instances)),
        delete(JobAttempt).where(JobAttempt.job_id.in_(jobs)),
        update(Workitem).where(Workitem.job_id.in_(jobs)).values(job_id=None),  # others' own worklist stays
        delete(Job).where(Job.study_instance_uid == study_instance_uid),
        delete(Correction).where(Correction.study_instance_uid == study_instance_uid),
        delete(Rejection).where(Rejection.study_instance_uid == study_instance_uid),
        delete(Instance).where(Instance.study_instance_uid == study_instance_uid),
        delete(Series).where(Series.study_instance_uid == study_instance_uid),
        delete(Study).where(Study.study_instance_uid == study_instance_uid),
    ]


def _unnamed(tx: Transaction, paths: Sequence[str]) -> list[str]:
    """Those of `paths` that no row names: the same bytes may belong to a quarantined instance."""
    named = {
        path
        for start in range(0, len(paths), 500)
        for column in (Instance.path, Conflict.path)
        for path in tx.scalars(select(column).where(column.in_(paths[start : start + 500])))
    }
    return [path for path in paths if path not in named]
