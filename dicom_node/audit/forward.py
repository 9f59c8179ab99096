"""Sends the trail on: every record in order, at least once, from the place that the cursor names.

The cursor moves when a batch has arrived. A repository that is down, or a process that is killed in between,
costs the repetition of one batch, never a record.
"""

import logging
from itertools import islice
from typing import Final

from dicom_node.audit.spool import Mark, Spool, read_mark, write_mark
from dicom_node.audit.syslog import Sender, message_of

BATCH: Final = 500
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024

logger = logging.getLogger(__name__)


class Forwarder:
    """Sends what has not been sent."""

    def __init__(self, spool: Spool, sender: Sender) -> None:
        self._spool = spool
        self._sender = sender

    def step(self) -> int:
        """Send one batch; returns how many records it had. Raises NotSent, OSError."""
        messages: list[bytes] = []
        mark, size = cursor_of(self._spool), 0
        for place, record in islice(self._spool.records(mark), BATCH):
            messages.append(message_of(record))
            mark, size = place, size + len(messages[-1])
            if size > MAX_BATCH_BYTES:
                break
        if messages:
            self._sender(messages)
            write_mark(self._spool.folder / "cursor", mark)
        return len(messages)


def cursor_of(spool: Spool) -> Mark:
    """How far the trail has been sent."""
    return read_mark(spool.folder / "cursor") or Mark()


def waiting(spool: Spool) -> int:
    """How many records have not been sent."""
    return max(0, spool.head().number - max(cursor_of(spool).number, spool.start().number))
