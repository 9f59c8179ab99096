"""Keeps a flood of the same event from filling the disk: some of each address, then their number."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MOST_ADDRESSES: Final = 2048  # told apart; more share one count
OTHERS: Final = "others"


@dataclass
class _Seen:
    since: float  # monotonic seconds
    told: int = 0
    untold: int = 0


class Throttle:
    """At most `most` events of a name in `window_s`; may be shared by threads.

    Where there are more names than are told apart, those that are new share one count (`shares`: for what an
    attacker could invent), or are told each time.
    """

    def __init__(
        self,
        most: int,
        window_s: float,
        *,
        shares: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._shares = shares
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def ask(self, name: str) -> int | None:
        """Whether to tell this one: None = no, otherwise how many before it were not told."""
        with self._lock:
            now = self._clock()
            seen = self._look_up(name, now)
            if now - seen.since >= self._window_s:
                seen.since, seen.told = now, 0
            if seen.told >= self._most:
                seen.untold += 1
                return None
            seen.told += 1
            untold, seen.untold = seen.untold, 0
            return untold

    def _look_up(self, name: str, now: float) -> _Seen:
        if name not in self._seen and len(self._seen) >= MOST_ADDRESSES:
            self._forget_old(now)
        if name not in self._seen and len(self._seen) >= MOST_ADDRESSES:
            return self._seen.setdefault(OTHERS, _Seen(now)) if self._shares else _Seen(now)
        return self._seen.setdefault(name, _Seen(now))

    def _forget_old(self, now: float) -> None:
        self._seen = {
            name: seen
            for name, seen in self._seen.items()
            if now - seen.since < self._window_s or seen.untold
        }
