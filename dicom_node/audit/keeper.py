"""The thread beside the sweep that tends the trail: flushes it, sends it on, removes what is old enough."""

import logging
import threading
import time
from typing import Final

from dicom_node import readiness
from dicom_node.audit.forward import Forwarder, cursor_of
from dicom_node.audit.spool import Mark
from dicom_node.audit.syslog import NotSent, sender_of
from dicom_node.audit.trail import AUDIT, spool_of
from dicom_node.backoff import backoff_s
from dicom_node.errors import TlsUnusable
from dicom_node.settings import NodeSettings
from storage.errors import StorageError

FLUSH_EVERY_S: Final = 1.0
REMOVE_EVERY_S: Final = 3600.0
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
DAY_S: Final = 86400.0

logger = logging.getLogger(__name__)


class Keeper:
    """Tends the trail of one node; there is one, in the process of the sweep."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._audit = settings.audit
        self._spool = spool_of(settings)
        self._flushed, self._remove_after = Mark(), 0.0
        self._is_stopping = threading.Event()
        self._threads = [threading.Thread(target=self._tend, name="audit", daemon=True)]
        if self._audit.syslog != "off":
            self._threads.append(threading.Thread(target=self._forward, name="audit-syslog", daemon=True))

    def start(self) -> None:
        """Begin, unless there is no trail."""
        if self._audit.enabled:
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """End; what was not sent is sent after the next start."""
        self._is_stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(FLUSH_EVERY_S * 2)

    def _tend(self) -> None:
        while True:
            is_last = self._is_stopping.wait(FLUSH_EVERY_S)
            try:
                self.tend()
            except (OSError, StorageError) as error:
                extra = {"reason": type(error).__name__}
                logger.error("the audit trail cannot be tended", extra=extra)  # noqa: TRY400 - every second
            if is_last:
                return

    def tend(self) -> None:
        """Flush what was written, say when there is room again, and remove what is old; raises OSError."""
        if readiness.is_reported(self._settings.home, AUDIT):
            self._spool.probe()
            readiness.report(self._settings.home, AUDIT, None)
        if (head := self._spool.head()) != self._flushed:
            self._spool.flush()
            self._flushed = head
        if time.monotonic() >= self._remove_after:
            self._remove_after = time.monotonic() + REMOVE_EVERY_S
            self.remove_old()

    def remove_old(self) -> int:
        """Remove files of the trail that are older than audit.keep_days, and sent; returns how many."""
        sent = cursor_of(self._spool) if self._audit.syslog != "off" else None
        count = self._spool.remove_before(time.time() - self._audit.keep_days * DAY_S, sent)
        if count:
            logger.info("old files of the audit trail removed", extra={"count": count})
        return count

    def _forward(self) -> None:
        failures = 0
        while not self._is_stopping.is_set():
            try:
                is_more = Forwarder(self._spool, sender_of(self._settings)).step() > 0
                failures = 0
            except (NotSent, TlsUnusable, OSError) as error:
                failures, is_more = failures + 1, False
                reason = str(error) if isinstance(error, NotSent | TlsUnusable) else type(error).__name__
                extra = {"reason": reason, "attempt": failures}
                logger.warning("the audit trail was not sent on: it waits", extra=extra)
            if not is_more:
                pause_s = backoff_s(failures, FIRST_RETRY_S, MAX_RETRY_S) if failures else FIRST_RETRY_S
                self._is_stopping.wait(pause_s)
