"""The journal: a short instance is durable here by one flush, before its file and its rows are on the disk.

    journal/<random>.journal    of one process, locked by it; two segments, filled in turn

A record is one page that says what follows (JSON), then the Part 10 file in whole pages. The segments keep
their place on the disk and are written past the page cache, so a flush is data only: no folder, no inode.
Files and rows are made at the same time, and not waited for. When a segment is full, or nothing came for a
while, everything is synced in the background, and only then the segment counts as empty again. What a dead
process left is made into files again by `journal_recovery`.

Source: write-ahead logging with redo, after ARIES (Mohan et al., 1992), without undo.
"""

import fcntl
import os
import queue
import secrets
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from storage.durable import FileSystem, disk_errors, fdatasync, fsync_directory, make_durable_directory
from storage.errors import NotDurable, StorageError
from storage.journal_format import (
    JOURNAL,
    JOURNAL_BYTES,
    MAX_RECORDS,
    PAGE,
    SEGMENT_BYTES,
    STARTS,
    Record,
    locked,
    write_head,
)
from storage.part10 import own_pages

IDLE_S: Final = 1.0  # after so long without an instance, everything is synced
_END: Final = -1
_ROOM_LEFT: Final = 4  # times its size must be free for a journal to be made: small disks have better uses


class Journal:
    """Of one process; its batches come one after the other."""

    def __init__(self, root: Path, index: Path | None) -> None:
        self._root = root
        self._index = index  # the folder of rows that are not waited for; None = there are none
        self._file_systems: list[FileSystem] = []
        self._turn = threading.Lock()
        self._descriptor: int | None = None
        self._is_possible = True
        self._error: NotDurable | None = None
        self._segment, self._end, self._pass = 0, 0, b""
        self._is_empty = [threading.Event() for _ in STARTS]
        self._full: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._settler: threading.Thread | None = None
        self._heads = own_pages(PAGE * MAX_RECORDS)

    @contextmanager
    def batch(self, records: Sequence[Record]) -> Iterator[bool]:
        """Have `records` durable; inside, their files and rows are made. False: no journal can be had here.

        Raises
        ------
        NotDurable
            If a flush failed, now or earlier: nothing is written here any more.
        """
        with self._turn:
            yield self._open() and self._append(records)

    def prepare(self) -> None:
        """Open the journal and write it once all over: blocks that were written before are flushed faster.

        Raises
        ------
        NotDurable
            If the disk did not take it; nothing is written to this journal any more.
        """
        with self._turn:
            if not self._open() or self._end:
                return
            try:
                self._write_zeros()
            except StorageError as error:  # a flush that failed once may say yes the next time, and lie
                self._error = NotDurable("the journal cannot be written: stop the node and check the disk")
                raise self._error from error

    def _write_zeros(self) -> None:
        zeros = own_pages(1 << 20)
        with disk_errors():
            for start in range(0, JOURNAL_BYTES, len(zeros)):
                os.pwrite(self._opened, zeros, start)
            fdatasync(self._opened)

    def close(self) -> None:
        """Sync everything and remove the journal; what cannot be synced stays for recovery."""
        with self._turn:
            was_open, self._is_possible = self._descriptor is not None and self._is_possible, False
            if not was_open:
                return
            if self._settler is not None:
                self._full.put(_END)
                self._settler.join()
            with suppress(StorageError), disk_errors():
                if self._error is None:
                    self._sync()
                    self._path.unlink()
            self._descriptor = None
            self._closer()

    @property
    def _opened(self) -> int:
        assert self._descriptor is not None  # noqa: S101 - asked for inside a batch only
        return self._descriptor

    def _open(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._descriptor is None and self._is_possible:
            try:
                self._make()
            except OSError:  # no room, or a file system that cannot do this: instances are fsynced one by one
                self._is_possible = False
        return self._descriptor is not None

    def _make(self) -> None:
        size = JOURNAL_BYTES
        folder = make_durable_directory(str(self._root), JOURNAL)
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize < _ROOM_LEFT * size:
            raise OSError
        self._path = Path(folder) / f"{secrets.token_hex(8)}.journal"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
        folders = [self._root] if self._index is None else [self._root, self._index]
        by_device = {folder.stat().st_dev: folder for folder in folders}  # mostly one: then it is synced once
        self._file_systems = [FileSystem(folder) for folder in by_device.values()]
        with locked(folder):
            descriptor = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.posix_fallocate(descriptor, 0, size)
                os.fsync(descriptor)
                fsync_directory(folder)
            except (OSError, StorageError):
                self._path.unlink()
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        self._closer = weakref.finalize(self, os.close, descriptor)
        for event in self._is_empty:
            event.set()
        self._begin(0)

    def _begin(self, segment: int) -> None:
        """Fill `segment` from its start; what is left there of an earlier pass has another number."""
        self._segment, self._end, self._pass = segment, 0, secrets.token_bytes(16)
        self._is_empty[segment].clear()

    def _append(self, records: Sequence[Record]) -> bool:
        size = sum(PAGE + len(record.pages) for record in records)
        if size > SEGMENT_BYTES or len(records) > MAX_RECORDS:
            return False
        if self._end + size > SEGMENT_BYTES:
            self._change_segment()
        views: list[memoryview] = []
        for number, record in enumerate(records):
            head = self._heads[number * PAGE : (number + 1) * PAGE]
            write_head(record, self._pass, head)
            views += [head, record.pages]
        try:
            if os.pwritev(self._opened, views, STARTS[self._segment] + self._end) != size:
                raise OSError
            fdatasync(self._opened)
        except (OSError, NotDurable) as error:
            self._error = NotDurable("the journal cannot be written: stop the node and check the disk")
            raise self._error from error
        self._end += size
        self._have_settler()
        return True

    def _change_segment(self) -> None:
        """Go on in the other segment, as soon as it is empty."""
        following = (self._segment + 1) % len(STARTS)
        self._full.put(self._segment)
        self._have_settler()
        self._is_empty[following].wait()
        if self._error is not None:
            raise self._error
        self._begin(following)

    def _have_settler(self) -> None:
        if self._settler is None or not self._settler.is_alive():
            self._settler = threading.Thread(target=self._settle, name="journal", daemon=True)
            self._settler.start()

    def _settle(self) -> None:
        """Empty segments that are full, after a while without instances the one in use too; then end."""
        seen = -1
        while seen:
            try:
                segment = self._full.get(timeout=IDLE_S)
            except queue.Empty:
                seen = self._look_for_rest(seen)
                continue
            if segment == _END:
                return
            self._empty(segment)

    def _look_for_rest(self, seen: int) -> int:
        """Have the segment in use emptied if it holds `seen` bytes as before; returns what it holds, 0 = end.

        Only when no other waits to be emptied, which is for this thread to do.
        """
        if not self._turn.acquire(blocking=False):
            return -1
        try:
            if not self._end or self._error is not None:
                self._settler = None
                return 0
            if self._end != seen or not self._full.empty():
                return self._end
            self._change_segment()
            return -1
        finally:
            self._turn.release()

    def _sync(self) -> None:
        for file_system in self._file_systems:
            file_system.sync()

    def _empty(self, segment: int) -> None:
        """Have everything durable that the segment's records were kept for, then forget them."""
        try:
            if self._error is not None:
                raise self._error  # an fsync is not tried again
            self._sync()
            with disk_errors():
                # Not flushed: what is read once too often is in the index already.
                os.pwrite(self._opened, own_pages(PAGE), STARTS[segment])
        except StorageError as error:
            self._error = NotDurable("what the journal holds cannot be synced: check the disk")
            self._error.__cause__ = error
        self._is_empty[segment].set()
