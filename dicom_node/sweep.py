"""The loop that completes studies, wakes what is due, and removes what was never finished."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from dicom_node.audit.activity import kept
from dicom_node.completion import complete_studies
from dicom_node.corrections import judge_corrections
from dicom_node.notes import IdentityRules
from dicom_node.purge import purge
from dicom_node.recovery import OrphanCollector
from dicom_node.services import open_decoders
from dicom_node.settings import NodeSettings
from dicom_node.steady import steadily
from dicom_node.tasks import WakeUps
from storage.database import Database
from storage.deliveries import due_destinations
from storage.files import open_files
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
        self._files = open_files(settings.storage)
        identity = IdentityRules(settings.identity.follow_rejection_notes)
        self._orphans = OrphanCollector(database, self._files, settings.sweep.orphans_every_s, identity)
        self._children = open_decoders(settings)
        self._steps = (
            self._complete, self._judge, self._wake_due, self._clean, self._collect_orphans, self._purge
        )  # fmt: skip
        self._sent_at: dict[str, float] = {}  # id -> monotonic seconds
        self._clean_after = 0.0
        self._purge_after = 0.0

    def run(self, is_stopping: threading.Event) -> None:
        """Pass after pass until `is_stopping`."""
        with kept(self._settings):
            while not is_stopping.is_set():
                self.run_once()
                is_stopping.wait(self._settings.sweep.interval_s)

    def run_once(self) -> None:
        """One pass; a step that fails is logged and tried again in the next."""
        for step in self._steps:
            steadily(step, otherwise=None, what="a step of the sweep", process_name=step.__name__)

    def _complete(self) -> None:
        complete_studies(self._database, self._settings)

    def _judge(self) -> None:
        judge_corrections(self._database, self._files, self._children)

    def _wake_due(self) -> None:
        with self._database.transaction() as tx:
            jobs, destinations = due_jobs(tx), due_destinations(tx)
        due = {*jobs, *destinations}
        self._sent_at = {work_id: at for work_id, at in self._sent_at.items() if work_id in due}
        self._wake(jobs, self._wake_ups.run_jobs)  # one wake-up for all: who wakes takes one after the other
        for destination in destinations:
            self._wake([destination], partial(self._wake_ups.deliver, destination))

    def _wake(self, work: Sequence[str], send: Callable[[], None]) -> None:
        now = time.monotonic()
        earliest = now - self._settings.sweep.reissue_s
        if all(self._sent_at.get(work_id, float("-inf")) > earliest for work_id in work):
            return
        send()
        self._sent_at |= dict.fromkeys(work, now)

    def _clean(self) -> None:
        if time.monotonic() < self._clean_after:
            return
        self._clean_after = time.monotonic() + CLEAN_EVERY_S
        count = discard_stale(self._settings.storage.files_root, self._settings.sweep.stale_incoming_s)
        if count:
            logger.info("unfinished incoming files removed", extra={"count": count})

    def _collect_orphans(self) -> None:
        fates = self._orphans.step()
        if fates:
            logger.warning("files without a row", extra={"count": fates.total()})

    def _purge(self) -> None:
        if time.monotonic() < self._purge_after:
            return
        self._purge_after = time.monotonic() + self._settings.retention.look_every_s
        purge(self._database, self._files, self._settings)
