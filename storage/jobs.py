"""Job state machine in UPS words; claim, heartbeat, complete, cancel - each one atomic UPDATE.

A job is one run of one model on one series. Other systems see it as a UPS workitem,
so its states are DICOM's, not ours: Procedure Step State (0074,1000).

Source: PS3.4 CC.1.1.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.leases import granted, is_due, released
from storage.tables import Job, JobAttempt
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

_GIVEN_UP = "FAILED"  # outcome
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
            created_at=database_now(),
            **vars(request),
        )
        .on_conflict_do_nothing(
            index_elements=[
                Job.study_instance_uid,
                Job.study_version,
                Job.series_instance_uid,
                Job.model,
                Job.query,
            ]
        )
        .returning(Job.job_id)
    )
    return tx.scalar(insert)


def claim_job(
    tx: Transaction, job_id: str, worker: str, lease_s: float, max_attempts: int
) -> ClaimedJob | None:
    """Take the job for `lease_s` seconds; None when it is finished, held, waiting, or out of attempts.

    A job out of attempts is CANCELED here, as FAILED, with the last error as its reason.
    """
    _give_up(tx, job_id, max_attempts)
    statement = (
        update(Job)
        .where(Job.job_id == job_id, is_due(Job, _OPEN), Job.attempts < max_attempts)
        .values(
            {
                Job.state: JobState.IN_PROGRESS,
                Job.started_at: func.coalesce(Job.started_at, database_now()),
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


def due_jobs(tx: Transaction, limit: int = 100) -> list[str]:
    """Return the ids of jobs that somebody should claim now: the most urgent, then the oldest first."""
    statement = select(Job.job_id).where(is_due(Job, _OPEN)).order_by(Job.priority.desc(), Job.created_at)
    return list(tx.scalars(statement.limit(limit)))


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
        .where(Job.job_id == job_id, is_due(Job, _OPEN), Job.attempts >= max_attempts)
        .values(
            {
                Job.state: JobState.CANCELED,
                Job.outcome: _GIVEN_UP,
                Job.reason: func.substr(reason + func.coalesce(last_error, ""), 1, 1000),
                Job.finished_at: database_now(),
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
    finished = {Job.state: state, Job.finished_at: database_now(), **released(Job), **values}
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
        .values(ended_at=database_now(), error=error)
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)
