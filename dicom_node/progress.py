"""6 RUN. How far a job is, written for who waits for it: a long series takes minutes."""

import logging
import time
from collections.abc import Callable
from typing import Final

from storage.database import Database
from storage.errors import StorageError
from storage.jobs import ClaimedJob, JobState, report_progress
from storage.tables import Job

logger = logging.getLogger(__name__)
EVERY_S: Final = 2.0  # a row is written at most as often


class Progress:
    """Called with the images that are read, and how many there are."""

    def __init__(
        self, database: Database, job: ClaimedJob, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._job, self._clock = database, job, clock
        self._next_s = clock() + EVERY_S  # a short job is over before anybody asks

    def __call__(self, images_done: int, images_all: int) -> None:
        """Note it, if it is time. Nobody's result depends on it: what fails here is only logged."""
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + EVERY_S
        try:
            with self._database.transaction() as tx:
                report_progress(tx, self._job.job_id, self._job.fence, images_done, images_all)
        except StorageError:
            logger.warning("progress is not written", extra={"job_id": self._job.job_id})


def images_read(job: Job) -> str:
    """How many images a job at work has read, as a phrase; "" where it has not said."""
    if job.state != JobState.IN_PROGRESS or not job.images_done:
        return ""
    return f"{job.images_done} of {job.images_all} images"
