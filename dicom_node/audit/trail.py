"""The door of the audit trail: one method for each event, called where it happens.

A record is written before the method returns, so before the answer that follows it; nothing is raised and
nobody waits for a disk or a network. What cannot be written is kept in memory, some of it, and reported by
/health/ready, doctor and the operator's page, until it can.
"""

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from dicom_node import readiness
from dicom_node.audit import codes, events
from dicom_node.audit.events import Counts, Node, PatientOf, StudyOf, Tally, Transfer
from dicom_node.audit.message import Event, Source, Subject, encode
from dicom_node.audit.patients import patients_of
from dicom_node.audit.settings import AuditSettings
from dicom_node.audit.spool import Spool
from dicom_node.audit.throttle import Throttle
from dicom_node.settings import NodeSettings
from storage.errors import StorageError

MIB: Final = 1024 * 1024
KEPT: Final = 1000  # records in memory while the disk takes none
ALERTS: Final = 20  # of one address in ALERT_WINDOW_S; more are counted
ALERT_WINDOW_S: Final = 60.0
AUDIT: Final = "audit"  # the reason of /health/ready

logger = logging.getLogger(__name__)


class Trail:
    """What one process tells; may be shared by threads and by forked processes."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._audit = settings.audit
        self._spool = spool_of(settings)
        self._source = Source(self._audit.source_id or settings.dimse.ae_title, self._audit.enterprise_site)
        self._lock = threading.Lock()
        self._waiting = deque[str]()
        self._lost = 0
        self.is_told_of = False  # that this process runs
        self._alerts = Throttle(ALERTS, ALERT_WINDOW_S, shares=True)
        self._reads = Throttle(1, self._audit.access_again_s, shares=False)

    @property
    def ours(self) -> Node:
        """The node that keeps the trail."""
        return Node(self._settings.dimse.ae_title, host_name())

    @property
    def tells_patients(self) -> bool:
        """Whether patients may be named."""
        return self._audit.patient_ids

    def started(self, process: str, user: str) -> None:
        """The node, or a process that runs alone, begins."""
        self.is_told_of = True
        self._write([events.application(self.ours, process, user, is_start=True)])

    def stopped(self, process: str, user: str) -> None:
        """It ends."""
        self._write([events.application(self.ours, process, user, is_start=False)])

    def received(self, sender: Node, tally: Tally, refused: int = 0) -> None:
        """An association, or a request, that brought instances ended."""
        told = self._arrived(sender, sender, tally)
        if refused:
            transfer = Transfer(sender, self.ours, sender, "C")
            told.append(events.not_transferred(transfer, None, f"{refused} instances were refused"))
        self._write(told)

    def fetched(self, sender: Node, tally: Tally) -> None:
        """What we asked a peer for has come on our own association."""
        self._write(self._arrived(sender, self.ours, tally))

    def sending(self, receiver: Node, tally: Tally, requestor: Node | None = None) -> None:
        """A delivery or a retrieval begins."""
        transfer = Transfer(self.ours, receiver, requestor or self.ours)
        self._write([events.transferring(transfer, study) for study in self._studies(tally.studies)])

    def sent(
        self, receiver: Node, tally: Tally, failed: Tally | None = None, requestor: Node | None = None
    ) -> None:
        """It ended; `failed` is what did not arrive."""
        transfer = Transfer(self.ours, receiver, requestor or self.ours)
        went = [events.transferred(transfer, study) for study in self._studies(tally.studies)]
        why, lost = "the receiver did not take them", self._studies((failed or Tally()).studies)
        self._write(went + [events.not_transferred(transfer, study, why) for study in lost])

    def accessed(self, reader: Node, study_instance_uid: str) -> None:
        """Somebody looked at a study; told again after `audit.access_again_s`."""
        who = f"{reader.user} {reader.address} {study_instance_uid}"
        if self._audit.enabled and self._reads.ask(who) is not None:
            (study,) = self._studies({study_instance_uid: {}})
            self._write([events.accessed(reader, self.ours, study)])

    def deleted(self, study_instance_uid: str, process: str, patients: dict[str, PatientOf]) -> None:
        """A study was removed; `patients` were asked for before."""
        study = StudyOf(study_instance_uid, patient=patients.get(study_instance_uid))
        self._write([events.deleted(self.ours, process, study)])

    def queried(self, asker: Node, query: Subject) -> None:
        """Somebody searched."""
        self._write([events.queried(asker, self.ours, query)])

    def refused(self, by: Node, why: str, kind: codes.Code = codes.NODE_AUTHENTICATION) -> None:
        """Somebody was turned away; of a flood some are told, and how many were not."""
        untold = self._alerts.ask(by.address or by.ae_title)
        if untold is not None:
            words = f"{why}; {untold} more before were not told one by one" if untold else why
            self._write([events.alert(self.ours, by, kind, words)])

    def logged_in(self, user: str, address: str, *, is_success: bool) -> None:
        """Somebody logged in, or was not believed; of a flood of failures some are told."""
        if is_success or self._alerts.ask(f"login {address}") is not None:
            self._write([events.logged_in(self.ours, user, address, is_success=is_success)])

    def logged_out(self, user: str, address: str) -> None:
        """Somebody ended a session."""
        self._write([events.logged_out(self.ours, user, address)])

    def operated(self, user: str, address: str, what: str) -> None:
        """A person had the node do something."""
        self._write([events.operated(self.ours, user, address, what)])

    def read_by(self, user: str) -> None:
        """A person read the trail."""
        self._write([events.log_used(self.ours, user, self._spool.folder.as_uri())])

    def _arrived(self, sender: Node, requestor: Node, tally: Tally) -> list[Event]:
        told: list[Event] = []
        for action, counts in (("C", tally.studies), ("R", tally.held), ("U", tally.corrected)):
            transfer = Transfer(sender, self.ours, requestor, action)
            told += [events.transferred(transfer, study) for study in self._studies(counts)]
        corrected = self._studies(tally.corrected)
        return told + [events.patient_corrected(sender, self.ours, study) for study in corrected]

    def _studies(self, counts: Counts) -> list[StudyOf]:
        patients = patients_of(self._settings, counts) if counts else {}
        return [StudyOf(uid, classes, patients.get(uid)) for uid, classes in counts.items()]

    def _write(self, told: Sequence[Event]) -> None:
        if not self._audit.enabled or not told:
            return
        messages = [encode(event, self._source, _now()) for event in told]
        with self._lock:
            self._waiting.extend(messages)
            self._write_waiting()

    def _write_waiting(self) -> None:
        had_trouble = self._lost or len(self._waiting) > KEPT
        messages = [*self._waiting]
        if self._lost:
            messages.append(encode(events.recording_stopped(self.ours, self._lost), self._source, _now()))
        try:
            self._spool.append(messages)
        except (OSError, StorageError) as error:
            self._keep_some(error)
            return
        self._waiting.clear()
        self._lost = 0
        if had_trouble or readiness.is_reported(self._settings.home, AUDIT):
            _tell(self._settings.home, None)

    def _keep_some(self, error: OSError | StorageError) -> None:
        while len(self._waiting) > KEPT:
            self._waiting.popleft()
            self._lost += 1
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if not readiness.is_reported(self._settings.home, AUDIT):  # once, not for every record
            logger.error("the audit trail cannot be written", extra={"reason": reason})
        _tell(self._settings.home, f"the audit trail cannot be written ({reason}): make room at audit.folder")


def trail_of(settings: NodeSettings) -> Trail:
    """The trail of this process for a configuration; the same one whenever it is asked for."""
    return _trail(_Key(os.getpid(), settings.home, settings.audit, settings))


def spool_of(settings: NodeSettings) -> Spool:
    """The folder of the trail."""
    return Spool(folder_of(settings), int(settings.audit.segment_mb * MIB))


def folder_of(settings: NodeSettings) -> Path:
    """Where the trail lies."""
    return settings.home / (settings.audit.folder or "audit")


@lru_cache(maxsize=1)
def host_name() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class _Key:
    """What makes a trail another one: what it remembers belongs to one process and one home."""

    pid: int
    home: Path
    audit: AuditSettings
    settings: NodeSettings = field(compare=False)


@lru_cache(maxsize=64)
def _trail(key: _Key) -> Trail:
    return Trail(key.settings)


def _tell(home: Path, problem: str | None) -> None:
    """Report or take back; where the disk of the home is full too, audit/health.py sees it by itself."""
    try:
        readiness.report(home, AUDIT, problem)
    except OSError:
        logger.exception("the state of the audit trail cannot be reported")
