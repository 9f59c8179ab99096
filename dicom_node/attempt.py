"""One attempt at a job: how its lease is kept, and what becomes of the job when the attempt fails."""

import logging
import os
from collections.abc import Callable

from dicom_node.backoff import backoff_s
from dicom_node.errors import NodeError
from dicom_node.lease import Lease
from dicom_node.logs import safe_text
from dicom_node.outcomes import end_without_result
from dicom_node.pipeline import Services
from dicom_node.settings import NodeSettings
from inference.errors import (
    DeadlinePassed,
    DeviceOutOfMemory,
    InferenceError,
)
from storage.database import Database, Transaction
from storage.errors import LeaseLost, StorageError
from storage.jobs import (
    FAILED,
    ClaimedJob,
    cancel_job,
    claim_next_job,
    hand_back_job,
    heartbeat_job,
    retry_job_later,
)
from storage.tables import Job

logger = logging.getLogger(__name__)

EXIT_OVERDUE = 75  # EX_TEMPFAIL: the supervisor starts the worker again
# What stands in rows came from outside; what building a report of it may raise has no common base class.
UNREPORTABLE = (NodeError, StorageError, ValueError, TypeError, AttributeError, LookupError, OSError)
HANG_S = 60.0  # beyond jobs.time_limit_s: what is done around the model may take so long


class OverdueError(Exception):
    """An attempt hangs in the worker itself."""


def claim_next(services: Services, worker: str, settings: NodeSettings) -> ClaimedJob | None:
    """Take the job that should run next, or None when none is due; what is out of attempts is said aloud."""
    jobs = settings.jobs
    with services.database.transaction() as tx:
        return claim_next_job(
            tx,
            worker,
            jobs.lease_s,
            jobs.max_attempts,
            aging_s=jobs.aging_s,
            given_up=lambda job: _report_end(tx, services, job, job.reason or ""),
        )


def keep_lease(
    services: Services, job: ClaimedJob, settings: NodeSettings, *, lost: Callable[[], None]
) -> Lease:
    """The lease of `job` as a context; `lost` is called when another takes it or it is cancelled.

    The model's process is ended at its time limit by whoever waits for it. An attempt that goes on for longer
    still hangs in this process: it is settled, and the process ends itself.
    """

    def beat() -> bool:
        with services.database.transaction() as tx:
            return heartbeat_job(tx, job.job_id, job.fence, settings.jobs.lease_s)

    limit = settings.jobs.time_limit_s + HANG_S

    def end_overdue() -> None:
        settle_failure(services, job, OverdueError(f"the attempt took longer than {limit:g} s"), settings)
        logging.shutdown()
        os._exit(EXIT_OVERDUE)

    return Lease(beat, settings.jobs.lease_s, time_limit_s=limit, end_overdue=end_overdue, lost=lost)


def hand_back(database: Database, job: ClaimedJob) -> None:
    """Let go of the job without counting the attempt: this worker was told to end."""
    extra = {"job_id": job.job_id, "attempt": job.attempt}
    try:
        with database.transaction() as tx:
            hand_back_job(tx, job.job_id, job.fence)
    except LeaseLost:
        logger.warning("job was taken over", extra=extra)
        return
    logger.info("job handed back", extra=extra)


def settle_failure(services: Services, job: ClaimedJob, error: Exception, settings: NodeSettings) -> None:
    """Schedule the next attempt, or cancel the job as FAILED where none can help, and report that."""
    reason = safe_text(error)
    is_last = _is_terminal(error) or job.tries >= settings.jobs.max_attempts
    extra = {"job_id": job.job_id, "attempt": job.attempt, "reason": reason}
    try:
        with services.database.transaction() as tx:
            if is_last:
                cancel_job(tx, job.job_id, job.fence, FAILED, reason)
                _report_end(tx, services, job, reason)
            else:
                delay_s = backoff_s(job.tries, settings.jobs.first_retry_s, settings.jobs.max_retry_s)
                retry_job_later(tx, job.job_id, job.fence, reason, delay_s)
    except LeaseLost:
        logger.warning("attempt failed after its lease was lost", extra=extra)
        return
    logger.error("job failed" if is_last else "attempt failed", extra=extra)


def _report_end(tx: Transaction, services: Services, job: ClaimedJob | Job, reason: str) -> None:
    """Have the destinations told that there is no result; a job ends even where that cannot be written."""
    try:
        with tx.begin_nested():
            end_without_result(tx, services, job, outcome=FAILED, reason=reason)
    except UNREPORTABLE:
        logger.exception("the end of a job cannot be reported", extra={"job_id": job.job_id})


def _is_terminal(error: Exception) -> bool:
    """Say whether another attempt would end the same way: inference does, memory and time do not."""
    return isinstance(error, InferenceError) and not isinstance(error, DeviceOutOfMemory | DeadlinePassed)
