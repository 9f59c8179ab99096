"""Which result is current, what a job saw, and how a new result takes the place of an old one.

There are never two current results for one series, model and question: the new one names the old ones, and
takes their place in the transaction that stores it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from storage.database import Transaction, database_now
from storage.deliveries import withdraw_deliveries
from storage.errors import StorageError
from storage.identity import OWN_RESULT, Retired
from storage.jobs import ClaimedJob, JobState
from storage.tables import Instance, Job, Study

# Not by time first: the clock may have been set back between two versions.
_NEWEST_FIRST = (Job.study_version.desc(), Job.repeat.desc(), Job.finished_at.desc())


class OvertakenError(StorageError):
    """Another version of the result appeared while this one was made; make it again on top of that."""


class OutdatedError(StorageError):
    """What the job saw counts no longer, or a newer version of its result is there; says which."""


@dataclass(frozen=True)
class ResultReference:
    """A result of ours, as another object names it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True)
class Inputs:
    """The instances that a job saw."""

    sop_instance_uids: tuple[str, ...]
    key: str  # sha256 over their UIDs and contents


def inputs_of(instances: Iterable[Instance]) -> Inputs:
    """What a job sees when it reads these rows; the order does not matter."""
    pairs = sorted((row.sop_instance_uid, row.sha256) for row in instances)
    digest = hashlib.sha256("\n".join(f"{uid} {sha256}" for uid, sha256 in pairs).encode())
    return Inputs(tuple(uid for uid, _ in pairs), digest.hexdigest())


def current_results(tx: Transaction, job: ClaimedJob) -> tuple[ResultReference, ...]:
    """Return the results that this job's own would replace: current ones, or withdrawn without successor."""
    successors = select(Job.job_id).where(Job.study_instance_uid == job.study_instance_uid)
    is_open_end = and_(
        Instance.retired_as == Retired.WITHDRAWN,
        or_(Instance.retired_by.is_(None), Instance.retired_by.not_in(successors)),
    )
    statement = (
        select(
            Instance.sop_class_uid,
            Instance.sop_instance_uid,
            Instance.series_instance_uid,
            Instance.study_instance_uid,
        )
        .join(Job, Job.job_id == Instance.origin_detail)
        .where(Instance.origin_kind == OWN_RESULT, *_alike(job))
        .where(or_(Instance.retired_as.is_(None), is_open_end))
        .order_by(Instance.sop_class_uid, Instance.sop_instance_uid)
    )
    return tuple(ResultReference(*row) for row in tx.execute(statement))


def same_result(tx: Transaction, job: ClaimedJob, inputs: Inputs, model_version: str) -> Job | None:
    """Return the finished job that saw the same with the same model, if its result is the current one."""
    statement = (
        select(Job)
        .where(*_alike(job), Job.state == JobState.COMPLETED, Job.job_id != job.job_id)
        .where(Job.inputs_key == inputs.key, Job.model_version == model_version)
        .order_by(*_NEWEST_FIRST)
    )
    found = tx.scalars(statement).first()
    if found is None:
        return None
    newest = select(Job.inputs_key).where(
        *_alike(job), Job.state == JobState.COMPLETED, Job.inputs_key.is_not(None)
    )
    is_newest = tx.scalars(newest.order_by(*_NEWEST_FIRST)).first() == inputs.key
    return found if is_newest and not _is_withdrawn(tx, found.job_id) else None


def is_answered(tx: Transaction, series_instance_uid: str, model: str, query: str) -> bool:
    """Whether the newest result of these saw exactly the images that the series has now, and is current."""
    statement = (
        select(Job.job_id, Job.inputs_key, Job.study_version)
        .where(Job.series_instance_uid == series_instance_uid, Job.model == model, Job.query == query)
        .where(Job.state == JobState.COMPLETED)
        .order_by(*_NEWEST_FIRST)
    )
    newest = tx.execute(statement).first()
    if newest is None or newest.inputs_key is None:
        return False
    current = select(Instance).where(
        Instance.series_instance_uid == series_instance_uid, Instance.retired_as.is_(None)
    )
    if inputs_of(tx.scalars(current)).key != newest.inputs_key:
        return False
    return not _is_withdrawn(tx, newest.job_id)


def supersede(
    tx: Transaction,
    job: ClaimedJob,
    inputs: Inputs,
    predecessors: Sequence[ResultReference],
    stored: Sequence[str],
) -> None:
    """Let the result `stored` take the place of `predecessors`, in the transaction that stores it.

    Raises
    ------
    OvertakenError
        If others than `predecessors` are current by now.
    OutdatedError
        If an input was rejected or replaced meanwhile, or a newer version of the result is there.
    """
    _lock(tx, job.study_instance_uid)
    _require_valid(tx, job, inputs)
    found = {each.sop_instance_uid for each in current_results(tx, job)} - set(stored)
    if found != {each.sop_instance_uid for each in predecessors} - set(stored):
        raise OvertakenError("another version of the result was stored meanwhile")
    _change_job(tx, job, inputs_key=inputs.key, supersedes=_retire(tx, sorted(found), job.job_id))


def supersede_outcomes(tx: Transaction, job: ClaimedJob, stored: Sequence[str]) -> None:
    """Let a report that there is no result replace earlier ones that said so; results stay."""
    statement = (
        select(Instance.sop_instance_uid)
        .join(Job, Job.job_id == Instance.origin_detail)
        .where(Instance.origin_kind == OWN_RESULT, *_alike(job), Instance.retired_as.is_(None))
        .where(Job.state == JobState.CANCELED, Instance.sop_instance_uid.not_in(stored))
    )
    _retire(tx, sorted(tx.scalars(statement)), job.job_id)


def retire_ends(tx: Transaction, study_instance_uid: str, outcome: str) -> None:
    """Let the reports of a study go that say that a job ended so: it is true no longer, and not sent."""
    statement = (
        select(Instance.sop_instance_uid)
        .join(Job, Job.job_id == Instance.origin_detail)
        .where(Instance.origin_kind == OWN_RESULT, Instance.retired_as.is_(None))
        .where(Job.study_instance_uid == study_instance_uid, Job.outcome == outcome)
    )
    uids = sorted(tx.scalars(statement))
    _retire(tx, uids, None)
    withdraw_deliveries(tx, uids)


def claim_result(tx: Transaction, sop_instance_uid: str, job_id: str) -> None:
    """Make a result that came in from elsewhere this job's own, as after a rebuilt index or from a PACS."""
    statement = update(Instance).where(Instance.sop_instance_uid == sop_instance_uid)
    foreign = statement.where(Instance.origin_kind != OWN_RESULT)
    values = {"origin_kind": OWN_RESULT, "origin_detail": job_id}
    tx.execute(foreign.values(values).execution_options(synchronize_session=False))


def remember_inputs(tx: Transaction, job: ClaimedJob, inputs: Inputs) -> None:
    """Write down what a job saw that ends without a result of its own."""
    _change_job(tx, job, inputs_key=inputs.key)


def _is_withdrawn(tx: Transaction, job_id: str) -> bool:
    retired = select(func.count()).select_from(Instance)
    retired = retired.where(Instance.origin_detail == job_id, Instance.retired_as.is_not(None))
    return bool(tx.scalar(retired.where(Instance.origin_kind == OWN_RESULT)))


def _change_job(tx: Transaction, job: ClaimedJob, **values: str | None) -> None:
    statement = update(Job).where(Job.job_id == job.job_id).values(**values)
    tx.execute(statement.execution_options(synchronize_session=False))


def _alike(job: ClaimedJob) -> tuple[ColumnElement[bool], ...]:
    return (
        Job.study_instance_uid == job.study_instance_uid,
        Job.series_instance_uid == job.series_instance_uid,
        Job.model == job.model,
        Job.query == job.query,
    )


def _lock(tx: Transaction, study_instance_uid: str) -> None:
    """Arrivals, notes and versions of one study come one after the other (SQLite has one writer anyway)."""
    tx.execute(select(Study.version).where(Study.study_instance_uid == study_instance_uid).with_for_update())


def _require_valid(tx: Transaction, job: ClaimedJob, inputs: Inputs) -> None:
    counted: list[Instance] = []
    for start in range(0, len(inputs.sop_instance_uids), 500):
        part = inputs.sop_instance_uids[start : start + 500]
        statement = select(Instance).where(Instance.sop_instance_uid.in_(part), Instance.retired_as.is_(None))
        counted += tx.scalars(statement.execution_options(populate_existing=True)).all()
    if inputs_of(counted).key != inputs.key:
        raise OutdatedError("an image was rejected or corrected while the job ran; a new version follows")
    newer = select(Job.job_id).where(
        *_alike(job), Job.state == JobState.COMPLETED, Job.study_version > job.study_version
    )
    if tx.scalars(newer).first() is not None:
        raise OutdatedError("a newer version of the result is there already")


def _retire(tx: Transaction, sop_instance_uids: Sequence[str], job_id: str | None) -> str | None:
    """Mark what is replaced; gives the job that had made it."""
    rows = tx.scalars(select(Instance).where(Instance.sop_instance_uid.in_(sop_instance_uids))).all()
    for row in rows:
        if row.retired_as is None:
            row.retired_as = Retired.SUPERSEDED
            row.retired_at = tx.scalar(select(database_now()))
        row.retired_by = job_id
    tx.flush()
    return rows[0].origin_detail if rows else None
