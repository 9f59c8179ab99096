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
from dicom_node.steady import steadily

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
        self._failures = 0  # to send the trail on, one after the other
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
            steadily(self.tend, otherwise=None, what="tending the audit trail")
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
        while not self._is_stopping.is_set():
            if not steadily(self._send_some, otherwise=False, what="sending the audit trail on"):
                pauses = self._failures, FIRST_RETRY_S, MAX_RETRY_S
                self._is_stopping.wait(backoff_s(*pauses) if self._failures else FIRST_RETRY_S)

    def _send_some(self) -> bool:
        """Whether there may be more to send at once."""
        try:
            count = Forwarder(self._spool, sender_of(self._settings)).step()
        except (NotSent, TlsUnusable, OSError) as error:
            self._failures += 1
            reason = str(error) if isinstance(error, NotSent | TlsUnusable) else type(error).__name__
            extra = {"reason": reason, "attempt": self._failures}
            logger.warning("the audit trail was not sent on: it waits", extra=extra)
            return False
        self._failures = 0
        return count > 0
