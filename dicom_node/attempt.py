"""One attempt at a job: how its lease is kept, and what becomes of the job when the attempt fails."""

import logging
import os

from dicom_node.backoff import backoff_s
from dicom_node.lease import Lease
from dicom_node.logs import safe_text
from dicom_node.settings import NodeSettings
from inference.errors import (
    DeviceOutOfMemory,
    EngineRejected,
    InferenceError,
    ModelNotFound,
    PackageInvalid,
    PackageTampered,
)
from storage.database import Database
from storage.errors import LeaseLost
from storage.jobs import ClaimedJob, cancel_job, claim_job, heartbeat_job, retry_job_later

logger = logging.getLogger(__name__)

EXIT_OVERDUE = 75  # EX_TEMPFAIL: the supervisor starts the worker again
FAILED = "FAILED"
# Errors of the model package itself: no job can run before somebody repairs it.
MODEL_ERRORS: tuple[type[InferenceError], ...] = (
    ModelNotFound,
    PackageInvalid,
    PackageTampered,
    EngineRejected,
)


class OverdueError(Exception):
    """An attempt took longer than jobs.time_limit_s."""


def claim(database: Database, job_id: str, worker: str, settings: NodeSettings) -> ClaimedJob | None:
    """Take the job, or None when somebody else has it, it is not due, or it is over."""
    with database.transaction() as tx:
        return claim_job(tx, job_id, worker, settings.jobs.lease_s, settings.jobs.max_attempts)


def keep_lease(database: Database, job: ClaimedJob, settings: NodeSettings) -> Lease:
    """The lease of `job` as a context; an attempt that is overdue is settled and ends this process."""

    def beat() -> bool:
        with database.transaction() as tx:
            return heartbeat_job(tx, job.job_id, job.fence, settings.jobs.lease_s)

    def end_overdue() -> None:
        limit = settings.jobs.time_limit_s
        settle_failure(database, job, OverdueError(f"the attempt took longer than {limit:g} s"), settings)
        logging.shutdown()
        os._exit(EXIT_OVERDUE)

    return Lease(
        beat, settings.jobs.lease_s, time_limit_s=settings.jobs.time_limit_s, end_overdue=end_overdue
    )


def settle_failure(database: Database, job: ClaimedJob, error: Exception, settings: NodeSettings) -> None:
    """Schedule the next attempt, or cancel the job as FAILED, with the reason, where none can help."""
    reason = safe_text(error)
    is_last = _is_terminal(error) or job.attempt >= settings.jobs.max_attempts
    extra = {"job_id": job.job_id, "attempt": job.attempt, "reason": reason}
    try:
        with database.transaction() as tx:
            if is_last:
                cancel_job(tx, job.job_id, job.fence, FAILED, reason)
            else:
                delay_s = backoff_s(job.attempt, settings.jobs.first_retry_s, settings.jobs.max_retry_s)
                retry_job_later(tx, job.job_id, job.fence, reason, delay_s)
    except LeaseLost:
        logger.warning("attempt failed after its lease was lost", extra=extra)
        return
    logger.error("job failed" if is_last else "attempt failed", extra=extra)


def _is_terminal(error: Exception) -> bool:
    """Say whether another attempt would end the same way: inference is deterministic, memory is not."""
    return isinstance(error, InferenceError) and not isinstance(error, DeviceOutOfMemory)
