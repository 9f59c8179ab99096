"""Watermarks: when the node takes no new associations, and when it takes no instance at all.

Above the soft watermark new work is refused politely (A-ASSOCIATE-RJ 02/03/01, 503 with Retry-After) and
what is under way goes on; above the hard one instances are refused (0xA700, 507). What is left below the
hard watermark is for results: deliveries, jobs and the database go on.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dicom_node import readiness
from dicom_node.header import MIB
from storage.durable import errno_name

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2  # the figures are not older than this
FSYNC: Final = "fsync"


class Pressure:
    """Looks at the disk now and then; may be asked by any thread, before every instance."""

    def __init__(
        self,
        home: Path,
        root: Path,
        *,
        soft_bytes: int,
        hard_bytes: int,
        needs: Sequence[str] = (),
        find_missing: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`find_missing` says, in a sentence, that the files are not where they were."""
        self._home = home
        self._find_missing = find_missing
        self._needs = needs  # names of readiness.report without which nothing is taken
        self._root = root
        self._hard_bytes = hard_bytes
        self._soft_bytes = max(soft_bytes, hard_bytes)
        self._is_draining = threading.Event()
        self._is_distrusted = False
        self._looked_at = float("-inf")
        self._free: int | None = None
        self._problem: str | None = None
        self._missing: str | None = None

    def soft_problem(self) -> str | None:
        """Say why no new association or request is taken now, in a sentence; None = all is well."""
        if self._is_draining.is_set():
            return "the node is ending; send again in a minute"
        self._look()
        if self._problem is None and self._free is not None and self._free < self._soft_bytes:
            return f"{self._free // MIB} MiB of disk are free, below limits.low_free_mb"
        return self._problem or self._missing

    def hard_problem(self, *, may_use_reserve: bool = False) -> str | None:
        """Say why no instance is taken now, in a sentence; None = all is well.

        `may_use_reserve`: for our own results, which the reserve is kept for.
        """
        self._look()
        if may_use_reserve:
            return self._problem
        if self._problem is None and self._free is not None and self._free < self._hard_bytes:
            return f"{self._free // MIB} MiB are free; the reserve is kept"
        return self._problem or self._missing

    def drain(self) -> None:
        """Take no new work from now on: the process was told to end."""
        self._is_draining.set()

    def fsync_failed(self) -> None:
        """Take nothing any more until the node is started again: nobody knows what the disk holds."""
        sentence = "fsync failed: what was written last may be lost; check the disk, then restart the node"
        self._is_distrusted = True
        try:
            readiness.report(self._home, FSYNC, sentence)
        except OSError as error:  # the same disk, most likely; this process has to remember it alone
            logger.critical(sentence, extra={"reason": f"nor could it be reported ({errno_name(error)})"})
        self._looked_at = float("-inf")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        free, problem = _free_bytes(self._root)
        if self._is_distrusted or readiness.is_reported(self._home, FSYNC):
            problem = "an fsync failed: the disk is not trusted until the node is started again"
        problem = problem or self._find_missing()
        missing = [name for name in self._needs if readiness.is_reported(self._home, name)]
        self._missing = f"not ready: {', '.join(missing)}; see /health/ready" if missing else None
        # First what, then when: another thread must not take what nobody has looked at for a finding.
        self._free, self._problem = free, problem
        self._looked_at = now


def _free_bytes(root: Path) -> tuple[int | None, str | None]:
    """Return the room that is left for this user below `root`, or why it cannot be told."""
    try:
        found = os.statvfs(root)
    except FileNotFoundError:
        return None, None  # nothing was received yet; the folder is made with the first file
    except OSError as error:
        return None, f"the disk of the files cannot be looked at ({errno_name(error)})"
    return found.f_bavail * found.f_frsize, None
