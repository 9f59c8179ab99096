"""How often somebody failed to log in: one table in memory that all processes of the web server share.

It has a fixed size. Where it is full, the entry that was counted least gives way; names are kept as hashes,
since people type passwords where names belong.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

SETS, WAYS = 1024, 8
ENTRY: Final = struct.Struct("<16sdI4x")  # name, begin of the window, failures in it
WINDOW_S: Final = 900.0
MOST_OF_ACCOUNT: Final = 10
MOST_OF_ADDRESS: Final = 30


class _Entry(NamedTuple):
    place: int
    name: bytes
    since: float  # monotonic seconds, the same in all processes
    failures: int


class Failures:
    """Counts failures by name; made before the processes part, or by each test for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._descriptor = os.memfd_create("login-failures", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, SETS * WAYS * ENTRY.size)
        self._table = mmap.mmap(self._descriptor, SETS * WAYS * ENTRY.size)
        self._lock = threading.Lock()

    def wait_s(self, name: str, most: int) -> float:
        """Seconds until the next try of `name`, which may fail `most` times in a window; 0 = now."""
        with self._held():
            entry = self._find(name)
            left = 0.0 if entry is None else entry.since + WINDOW_S - self._clock()
            return left if entry is not None and entry.failures >= most and left > 0 else 0.0

    def count(self, name: str) -> int:
        """Count a failure; returns how many there are in the window."""
        with self._held():
            entry, now = self._find(name), self._clock()
            is_old = entry is None or now - entry.since >= WINDOW_S
            place = self._place_for(name, now) if entry is None else entry.place
            since, count = (now, 1) if entry is None or is_old else (entry.since, entry.failures + 1)
            ENTRY.pack_into(self._table, place, _hashed(name), since, count)
            return count

    def forget(self, name: str) -> None:
        """A success: what was before does not count any more."""
        with self._held():
            if (entry := self._find(name)) is not None:
                ENTRY.pack_into(self._table, entry.place, bytes(16), 0.0, 0)

    def close(self) -> None:
        """Give the memory back."""
        self._table.close()
        os.close(self._descriptor)

    def _find(self, name: str) -> _Entry | None:
        wanted = _hashed(name)
        return next((entry for entry in self._set_of(wanted) if entry.name == wanted), None)

    def _place_for(self, name: str, now: float) -> int:
        """Of its set an entry that is free or over, otherwise the one with the fewest failures."""
        entries = self._set_of(_hashed(name))
        return min(entries, key=lambda e: (e.failures if now - e.since < WINDOW_S else 0, e.since)).place

    def _set_of(self, name: bytes) -> list[_Entry]:
        first = int.from_bytes(name[:4], "little") % SETS * WAYS
        places = (number * ENTRY.size for number in range(first, first + WAYS))
        return [_Entry(place, *ENTRY.unpack_from(self._table, place)) for place in places]

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Nobody else, of these threads and of the other processes; the kernel frees what a dead one held."""
        with self._lock:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _hashed(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
