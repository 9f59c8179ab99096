"""Keeps the lease of a job or delivery alive while work goes on, and ends work that takes too long."""

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from storage.errors import StorageError

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3.0


class Lease:
    """Context manager: a thread that beats until the block ends.

    `beat` extends the lease in the database and says whether it is still ours. With `time_limit_s`,
    `end_overdue` is called once when the block has run for so long; it is expected to end the process,
    since nothing else stops a computation in native code. `lost` is called once when the lease is another's.
    """

    def __init__(
        self,
        beat: Callable[[], bool],
        lease_s: float,
        *,
        time_limit_s: float = math.inf,
        end_overdue: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._pause_s = lease_s / BEATS_PER_LEASE
        self._time_limit_s = time_limit_s
        self._end_overdue = end_overdue
        self._lost = lost
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        end = time.monotonic() + self._time_limit_s
        while not self._is_over.wait(min(self._pause_s, max(end - time.monotonic(), 0.0))):
            if time.monotonic() >= end:
                self._end_overdue()
                return
            if not self._still_ours():
                self._lost()
                return

    def _still_ours(self) -> bool:
        try:
            return self._beat()
        except (SQLAlchemyError, StorageError):
            # A busy database may free itself before the lease runs out; the fence protects us if it does not.
            logger.warning("lease could not be extended", exc_info=True)
            return True
