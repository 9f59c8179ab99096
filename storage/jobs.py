"""Job state machine in UPS words; claim, heartbeat, complete, cancel - each one atomic UPDATE.

A job is one run of one model on one series. Other systems see it as a UPS workitem,
so its states are DICOM's, not ours: Procedure Step State (0074,1000).

Source: PS3.4 CC.1.1.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, aliased

from storage.database import Transaction, database_now, now_after
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.leases import granted, is_due, released
from storage.tables import Job, JobAttempt, Study
from storage.text import clean_text
from storage.upsert import insert_into


class JobState(StrEnum):
    """Values of Procedure Step State (0074,1000)."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"  # also where a failed job ends, with its reason


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.SCHEDULED: frozenset({JobState.IN_PROGRESS}),
    JobState.IN_PROGRESS: frozenset({JobState.COMPLETED, JobState.CANCELED}),
    JobState.COMPLETED: frozenset(),
    JobState.CANCELED: frozenset(),
}

FAILED = "FAILED"  # outcome of a dead letter
AGING_S = 60.0  # seconds of waiting that count as one step of priority
_REQUEST = (
    Job.study_instance_uid,
    Job.study_version,
    Job.series_instance_uid,
    Job.model,
    Job.query,
    Job.repeat,
)
_OPEN = (JobState.SCHEDULED, JobState.IN_PROGRESS)


@dataclass(frozen=True)
class JobRequest:
    """What routing asks for: which model, which clinical query, on which series of which study version."""

    study_instance_uid: str
    study_version: int
    series_instance_uid: str
    rule: str
    model: str
    query: str
    target: str | None = None
    priority: int = 0
    is_kept_here: bool = False  # its results are sent when somebody asks for it, and not before


@dataclass(frozen=True)
class ClaimedJob:
    """A job that this worker holds while its lease runs; `fence` must be shown at every later step."""

    job_id: str
    study_instance_uid: str
    study_version: int
    series_instance_uid: str
    rule: str
    model: str
    query: str
    target: str | None
    fence: int
    attempt: int
    tries: int  # attempts that count: those handed back do not
    created_at: float  # UTC epoch seconds, database clock
    lease_expires_at: float


def check_transition(job_id: str, current: JobState, requested: JobState) -> None:
    """Raise IllegalTransition unless `current` -> `requested` is in TRANSITIONS."""
    if requested not in TRANSITIONS[current]:
        raise IllegalTransition(f"job {job_id}", current, requested)


def create_job(tx: Transaction, request: JobRequest) -> str | None:
    """Schedule a job and return its id; None when the same one exists for this version of the study."""
    insert = (
        insert_into(tx, Job)
        .values(
            job_id=uuid.uuid4().hex,
            state=JobState.SCHEDULED,
            fence=0,
            attempts=0,
            handed_back=0,
            repeat=0,
            created_at=database_now(),
            **vars(request),
        )
        .on_conflict_do_nothing(index_elements=_REQUEST)
        .returning(Job.job_id)
    )
    return tx.scalar(insert)


def requeue_job(tx: Transaction, job_id: str, by: str) -> str:
    """Schedule a job that ended as FAILED once more, as a new job, and return its id; `by` is recorded.

    States of the failed job stay final. Asked twice, the second time gives the job that the first time made.

    Raises
    ------
    InstanceMissing
        If there is no such job.
    IllegalTransition
        If it did not fail, or the study has a newer version, whose own jobs take its place.
    """
    failed = tx.get(Job, job_id, populate_existing=True)
    if failed is None:
        raise InstanceMissing(f"no job {job_id}")
    if (failed.state, failed.outcome) != (JobState.CANCELED, FAILED):
        raise IllegalTransition(f"job {job_id}", failed.outcome or failed.state, JobState.SCHEDULED)
    study = tx.get(Study, failed.study_instance_uid, populate_existing=True)
    if study is not None and study.version != failed.study_version:
        raise IllegalTransition(f"job {job_id}", "of an older version of its study", JobState.SCHEDULED)
    values = {column.key: getattr(failed, column.key) for column in _REQUEST[:-1]}
    insert = insert_into(tx, Job).values(
        **values,
        job_id=uuid.uuid4().hex,
        rule=failed.rule,
        target=failed.target,
        priority=failed.priority,
        is_kept_here=failed.is_kept_here,
        state=JobState.SCHEDULED,
        fence=0,
        attempts=0,
        handed_back=0,
        repeat=failed.repeat + 1,
        requeued_from=job_id,
        requeued_by=clean_text(by, 256),
        created_at=database_now(),
    )
    tx.execute(insert.on_conflict_do_nothing(index_elements=_REQUEST))
    return tx.scalars(select(Job.job_id).where(Job.requeued_from == job_id)).one()


def failed_jobs(tx: Transaction, limit: int = 10_000) -> list[str]:
    """Return the ids of the dead letters: jobs that failed and that nobody asked for again, oldest first."""
    again = aliased(Job)
    statement = (
        select(Job.job_id)
        .where(Job.state == JobState.CANCELED, Job.outcome == FAILED)
        .where(~exists().where(again.requeued_from == Job.job_id))
        .order_by(Job.finished_at, Job.job_id)
    )
    return list(tx.scalars(statement.limit(limit)))


def claim_next_job(
    tx: Transaction,
    worker: str,
    lease_s: float,
    max_attempts: int,
    *,
    aging_s: float = AGING_S,
    given_up: Callable[[Job], object] = lambda _: None,
) -> ClaimedJob | None:
    """Take the job that should run next, as `claim_job` does; None when none is due.

    `given_up` is called, in this transaction, with every job that was out of attempts and is FAILED now.
    """
    for job_id in due_jobs(tx, aging_s=aging_s):
        claimed = claim_job(tx, job_id, worker, lease_s, max_attempts)
        if claimed is not None:
            return claimed
        job = tx.get(Job, job_id, populate_existing=True)
        if job is not None and job.outcome == FAILED:
            given_up(job)
    return None


def claim_job(
    tx: Transaction, job_id: str, worker: str, lease_s: float, max_attempts: int
) -> ClaimedJob | None:
    """Take the job for `lease_s` seconds; None when it is finished, held, waiting, or out of attempts.

    A job out of attempts is CANCELED here, as FAILED, with the last error as its reason.
    """
    _give_up(tx, job_id, max_attempts)
    statement = (
        update(Job)
        .where(Job.job_id == job_id, is_due(Job, _OPEN), _tries() < max_attempts)
        .values(
            {
                Job.state: JobState.IN_PROGRESS,
                Job.started_at: func.coalesce(Job.started_at, database_now()),
                Job.images_done: None,
                **granted(Job, worker, lease_s),
            }
        )
        .returning(*_CLAIMED)
        .execution_options(synchronize_session=False)
    )
    row = tx.execute(statement).mappings().first()
    if row is None:
        return None
    claimed = ClaimedJob(**row)
    _end_attempts(tx, job_id, "the lease ran out: its worker died or hung")
    tx.execute(
        insert_into(tx, JobAttempt).values(
            job_id=job_id,
            attempt=claimed.attempt,
            worker=clean_text(worker, 256),
            started_at=database_now(),
        )
    )
    return claimed


def heartbeat_job(tx: Transaction, job_id: str, fence: int, lease_s: float) -> bool:
    """Hold the job for another `lease_s` seconds; False when it is no longer this worker's."""
    return _update_held(tx, job_id, fence, {Job.lease_expires_at: database_now() + lease_s})


def report_progress(tx: Transaction, job_id: str, fence: int, images_done: int, images_all: int) -> bool:
    """Say how many images of the job's series are read; False when it is no longer this worker's."""
    return _update_held(tx, job_id, fence, {Job.images_done: images_done, Job.images_all: images_all})


def complete_job(
    tx: Transaction,
    job_id: str,
    fence: int,
    outcome: str,
    summary: Mapping[str, Any],
    *,
    model_version: str | None = None,
) -> None:
    """Finish the job with a result, in the transaction that stores the result.

    Raises
    ------
    LeaseLost
        If another worker claimed the job meanwhile; the caller must roll back.
    IllegalTransition
        If the job is finished already.
    """
    values = {
        Job.outcome: outcome,
        Job.summary: json.dumps(summary, sort_keys=True),
        Job.model_version: model_version,
    }
    _finish(tx, job_id, fence, JobState.COMPLETED, values)
    _end_attempts(tx, job_id, None)


def cancel_job(tx: Transaction, job_id: str, fence: int, outcome: str, reason: str) -> None:
    """Finish the job without a result and for good; raises as `complete_job` does."""
    sentence = clean_text(reason, 1000)
    _finish(tx, job_id, fence, JobState.CANCELED, {Job.outcome: outcome, Job.reason: sentence})
    _end_attempts(tx, job_id, sentence)


def retry_job_later(tx: Transaction, job_id: str, fence: int, error: str, delay_s: float) -> None:
    """Let go of the job so that it is due again after `delay_s` seconds; raises as `complete_job` does."""
    if not _update_held(tx, job_id, fence, released(Job, delay_s)):
        _explain(tx, job_id, fence, JobState.CANCELED)
    _end_attempts(tx, job_id, clean_text(error, 1000))


def hand_back_job(tx: Transaction, job_id: str, fence: int) -> None:
    """Let go of a job whose worker has to end; the attempt does not count. Raises as `complete_job` does."""
    values = {**released(Job), Job.handed_back: Job.handed_back + 1}
    if not _update_held(tx, job_id, fence, values):
        _explain(tx, job_id, fence, JobState.CANCELED)
    _end_attempts(tx, job_id, "handed back: its worker was told to end")


def due_jobs(tx: Transaction, limit: int = 100, *, aging_s: float = AGING_S) -> list[str]:
    """Return the ids of jobs that somebody should claim now, the next one first.

    The most urgent go first and the oldest among those; every `aging_s` seconds of waiting count as one step
    of priority, so that nothing waits for ever.
    """
    # What was asked for before the clock was set back has waited for nothing yet, not for less than that.
    urgency = Job.priority + (now_after(Job.created_at) - Job.created_at) / aging_s
    order = (urgency.desc(), Job.created_at, Job.job_id)
    return list(tx.scalars(select(Job.job_id).where(is_due(Job, _OPEN)).order_by(*order).limit(limit)))


def series_asked_alike(tx: Transaction, job: ClaimedJob) -> list[str]:
    """Series of the same study version that the same model is asked the same of, this job's among them."""
    statement = select(Job.series_instance_uid).where(
        Job.study_instance_uid == job.study_instance_uid,
        Job.study_version == job.study_version,
        Job.model == job.model,
        Job.query == job.query,
    )
    return sorted(tx.scalars(statement))


def _tries() -> ColumnElement[int]:
    """Attempts that count: those that a worker handed back do not."""
    return Job.attempts - Job.handed_back


_CLAIMED = (
    Job.job_id,
    Job.study_instance_uid,
    Job.study_version,
    Job.series_instance_uid,
    Job.rule,
    Job.model,
    Job.query,
    Job.target,
    Job.fence,
    Job.attempts.label("attempt"),
    _tries().label("tries"),
    Job.created_at,
    Job.lease_expires_at,
)

_Values = Mapping[InstrumentedAttribute[Any], Any]


def _give_up(tx: Transaction, job_id: str, max_attempts: int) -> None:
    last_error = (
        select(": " + func.coalesce(JobAttempt.error, "the lease ran out, its worker died or hung"))
        .where(JobAttempt.job_id == job_id)
        .order_by(JobAttempt.attempt.desc())
        .limit(1)
        .scalar_subquery()
    )
    reason = f"gave up after {max_attempts} attempts"
    statement = (
        update(Job)
        .where(Job.job_id == job_id, is_due(Job, _OPEN), _tries() >= max_attempts)
        .values(
            {
                Job.state: JobState.CANCELED,
                Job.outcome: FAILED,
                Job.reason: func.substr(reason + func.coalesce(last_error, ""), 1, 1000),
                Job.finished_at: now_after(Job.started_at),
                Job.fence: Job.fence + 1,
                **released(Job),
            }
        )
        .execution_options(synchronize_session=False)
        .returning(Job.job_id)
    )
    if tx.execute(statement).first() is not None:
        _end_attempts(tx, job_id, "the lease ran out: its worker died or hung")


def _finish(tx: Transaction, job_id: str, fence: int, state: JobState, values: _Values) -> None:
    finished = {Job.state: state, Job.finished_at: now_after(Job.started_at), **released(Job), **values}
    if not _update_held(tx, job_id, fence, finished):
        _explain(tx, job_id, fence, state)


def _update_held(tx: Transaction, job_id: str, fence: int, values: _Values) -> bool:
    held = (
        Job.job_id == job_id,
        Job.fence == fence,
        Job.state == JobState.IN_PROGRESS,
        Job.leased_by.is_not(None),  # not after retry_job_later: a late heartbeat must not hold it again
    )
    statement = (
        update(Job)
        .where(*held)
        .values(values)
        .returning(Job.job_id)
        .execution_options(synchronize_session=False)
    )
    return tx.execute(statement).first() is not None


def _explain(tx: Transaction, job_id: str, fence: int, requested: JobState) -> None:
    row = tx.execute(select(Job.state, Job.fence).where(Job.job_id == job_id)).first()
    if row is None:
        raise InstanceMissing(f"no job {job_id}")
    if row.fence != fence:
        raise LeaseLost(f"job {job_id}", fence)
    check_transition(job_id, JobState(row.state), requested)
    raise LeaseLost(f"job {job_id}", fence)


def _end_attempts(tx: Transaction, job_id: str, error: str | None) -> None:
    statement = (
        update(JobAttempt)
        .where(JobAttempt.job_id == job_id, JobAttempt.ended_at.is_(None))
        .values(ended_at=now_after(JobAttempt.started_at), error=error)
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)
