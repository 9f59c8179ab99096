"""The loop that completes studies, wakes what is due, and removes what was never finished."""

import logging
import threading
import time
from collections.abc import Callable

from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.completion import complete_studies
from dicom_node.settings import NodeSettings
from dicom_node.tasks import WakeUps
from storage.database import Database
from storage.deliveries import due_deliveries
from storage.errors import StorageError
from storage.jobs import due_jobs
from storage.part10 import discard_stale

logger = logging.getLogger(__name__)

CLEAN_EVERY_S = 60.0


class Sweep:
    """One process's memory of which wake-ups it has sent when; losing it costs a repeated wake-up."""

    def __init__(self, database: Database, settings: NodeSettings, wake_ups: WakeUps) -> None:
        self._database = database
        self._settings = settings
        self._wake_ups = wake_ups
        self._sent_at: dict[str, float] = {}  # id -> monotonic seconds
        self._clean_after = 0.0

    def run(self, is_stopping: threading.Event) -> None:
        """Pass after pass until `is_stopping`."""
        while not is_stopping.is_set():
            self.run_once()
            is_stopping.wait(self._settings.sweep.interval_s)

    def run_once(self) -> None:
        """One pass; a step that fails is logged and tried again in the next."""
        for step in (self._complete, self._wake_due, self._clean):
            try:
                step()
            except (SQLAlchemyError, StorageError, OSError, OperationalError):
                # Database, disk and broker come back; a sweep that ended would leave every study waiting.
                logger.exception("a step of the sweep failed", extra={"process_name": step.__name__})

    def _complete(self) -> None:
        complete_studies(self._database, self._settings)

    def _wake_due(self) -> None:
        with self._database.transaction() as tx:
            jobs, deliveries = due_jobs(tx), due_deliveries(tx)
        due = {*jobs, *deliveries}
        self._sent_at = {work_id: at for work_id, at in self._sent_at.items() if work_id in due}
        for job_id in jobs:
            self._wake(job_id, self._wake_ups.run_job)
        for delivery_id in deliveries:
            self._wake(delivery_id, self._wake_ups.deliver)

    def _wake(self, work_id: str, send: Callable[[str], None]) -> None:
        now = time.monotonic()
        if now - self._sent_at.get(work_id, float("-inf")) < self._settings.sweep.reissue_s:
            return
        send(work_id)
        self._sent_at[work_id] = now

    def _clean(self) -> None:
        if time.monotonic() < self._clean_after:
            return
        self._clean_after = time.monotonic() + CLEAN_EVERY_S
        count = discard_stale(self._settings.storage.files_root, self._settings.sweep.stale_incoming_s)
        if count:
            logger.info("unfinished incoming files removed", extra={"count": count})
