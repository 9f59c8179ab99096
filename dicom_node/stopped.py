"""Processes of the node that somebody stopped (SIGSTOP) go on after a while: nothing else would wake them.

A stopped process keeps its ports, locks and connections, and says nothing. Its work would wait for ever.

Source: proc(5), /proc/PID/stat (state) and /proc/PID/task/TID/children.
"""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

STOPPED: Final = "T"  # by a signal; a debugger's "t" is let alone
WAKE_AFTER_S: Final = 20.0  # long enough for who wants to look at one

logger = logging.getLogger(__name__)


class Waker:
    """Looks at all processes below one now and then."""

    def __init__(self, above: int, after_s: float | None = None) -> None:
        self._above = above
        self._after_s = WAKE_AFTER_S if after_s is None else after_s
        self._since: dict[int, float] = {}  # pid -> when it was first seen stopped, monotonic seconds

    def look(self, now: float) -> None:
        """Wake what has been seen stopped for `after_s`; `now` in monotonic seconds."""
        stopped = [pid for pid in below(self._above) if state_of(pid) == STOPPED]
        self._since = {pid: self._since.get(pid, now) for pid in stopped}
        for pid, since in self._since.items():
            if now - since >= self._after_s:
                logger.error("a process was stopped, it is told to go on", extra={"pid": pid})
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def below(pid: int) -> Iterator[int]:
    """Give the children of process `pid`, and theirs."""
    for task in _tasks(pid):
        try:
            children = (task / "children").read_text(encoding="ascii").split()
        except OSError:  # it ended meanwhile
            continue
        for child in map(int, children):
            yield child
            yield from below(child)


def state_of(pid: int) -> str:
    """The letter of a process's state; "" if it is over."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]  # its name, in brackets, may hold anything


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
