"""The trail on disk: one chain of records in order, written by every process of the node under one lock.

    head                 where the chain ends; also the lock. A record counts once the head says so
    000000000001.jsonl   records, one a line, from that number on; then the next file
    start                what the oldest record that is still here must name as the one before it
    cursor               how far the trail has been sent (forward.py)

A record is in the kernel's hands when `append` returns: kill -9 loses none. The keeper flushes to the disk
every second, so that no caller waits for a disk; a power cut may cost the last second. The head is not
flushed: records behind it are taken in.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from dicom_node.audit.record import GENESIS, NoRecord, Record, digest_of, parse
from storage.durable import fdatasync, fsync_directory

LOCK_S: Final = 2.0  # whoever holds the lock does so for microseconds
LOCK_PAUSE_S: Final = 0.0005
PATTERN: Final = "[0-9]" * 12 + ".jsonl"
PROBE_BYTES: Final = 64 * 1024
MARK_BYTES: Final = 12 + 1 + 15 + 1 + 12 + 1 + 64 + 1


class SpoolBusy(OSError):
    """The lock was not to be had in time."""


class Mark(NamedTuple):
    """A place in the chain: behind record `number`, `size` bytes into the file that begins with `first`."""

    first: int = 1
    size: int = 0
    number: int = 0
    digest: str = GENESIS

    def encode(self) -> bytes:
        """The mark as it stands in a file, always of the same length."""
        return f"{self.first:012d} {self.size:015d} {self.number:012d} {self.digest}\n".encode("ascii")

    @classmethod
    def decode(cls, content: bytes) -> "Mark | None":
        """The mark of a file; None where it is none."""
        fields = content.decode("ascii", "replace").split()
        if len(content) != MARK_BYTES or len(fields) != 4 or not all(map(str.isalnum, fields)):
            return None
        first, size, number = fields[:3]
        if not (first.isdigit() and size.isdigit() and number.isdigit()):
            return None
        return cls(int(first), int(size), int(number), fields[3])


@dataclass(frozen=True)
class Spool:
    """The folder of a trail."""

    folder: Path
    segment_bytes: int = 16 * 1024 * 1024

    def append(self, messages: Sequence[str], at: datetime | None = None) -> int:
        """Add a record for each of `messages`, all or none; returns the number of the last.

        Raises
        ------
        OSError
            If there is no room, or the disk cannot be used. Nothing was added then.
        """
        when = (at or datetime.now(UTC)).isoformat(timespec="milliseconds")
        with self._locked() as lock:
            head, content = self._head(lock), b""
            number, digest = head.number, head.digest
            for message in messages:
                number += 1
                line = Record(number, digest, when, os.getpid(), message).line()
                digest = digest_of(line)
                content += line + b"\n"
            first, size = self._write(head, content)
            os.pwrite(lock, Mark(first, size, number, digest).encode(), 0)
        return number

    def head(self) -> Mark:
        """Where the chain ends, as far as is known without the lock."""
        return read_mark(self.folder / "head") or Mark()

    def start(self) -> Mark:
        """What stands before the oldest record that is kept."""
        return read_mark(self.folder / "start") or Mark()

    def segments(self) -> list[Path]:
        """The files of records, oldest first."""
        return sorted(self.folder.glob(PATTERN))

    def records(self, after: Mark | None = None) -> Iterator[tuple[Mark, Record]]:
        """Yield each record behind `after`, with the place behind it; lines that are none are passed over."""
        mark = after or Mark()
        for path in self.segments():
            first = first_of(path)
            if first < mark.first:
                continue
            yield from _records_of(path, mark.size if first == mark.first else 0)

    def flush(self) -> None:
        """Have everything that was written so far on the disk; raises NotDurable, OSError."""
        path = self.folder / _name(self.head().first)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def probe(self) -> None:
        """Raise OSError unless there is room for a few records."""
        path = self.folder / f"probe.{os.getpid()}"
        descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            _write_all(descriptor, bytes(PROBE_BYTES), 0)
        finally:
            os.close(descriptor)
            path.unlink()

    def remove_before(self, before: float, sent: Mark | None) -> int:
        """Remove files whose last record was written before `before` (seconds), and sent; returns how many.

        The current file stays. The mark of what goes is written first, so that `verify` knows it was us.
        """
        removed = 0
        with self._locked():
            for path, following in zip(segments := self.segments(), segments[1:], strict=False):
                is_sent = sent is None or sent.first > first_of(path)
                if path.stat().st_mtime >= before or not is_sent:
                    break
                last = Mark()
                for mark, _ in _records_of(path, 0):
                    last = mark
                write_mark(self.folder / "start", Mark(first_of(following), 0, last.number, last.digest))
                path.unlink()
                removed += 1
        return removed

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the chain; gives the descriptor of the head."""
        lock = self._open(self.folder / "head", os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise SpoolBusy("another process holds the audit trail") from error
                    time.sleep(LOCK_PAUSE_S)
            yield lock
        finally:
            os.close(lock)

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def _head(self, lock: int) -> Mark:
        """Where to go on: behind the head, and behind what a killed writer wrote without saying so."""
        head = Mark.decode(os.pread(lock, MARK_BYTES + 1, 0)) or self._found_head()
        head = self._adopted(head)
        while self._size_of(following := Mark(head.number + 1, 0, head.number, head.digest)):
            if following.first == head.first:
                break
            head = self._adopted(following)  # a writer was killed, or the power cut, behind the next file
        return head

    def _size_of(self, mark: Mark) -> int:
        path = self.folder / _name(mark.first)
        return path.stat().st_size if path.exists() else 0

    def _found_head(self) -> Mark:
        """The end of the chain where the head is lost: behind the last record there is."""
        found = self.start()
        for path in self.segments()[-1:]:
            found = Mark(first_of(path), 0, found.number, found.digest)
            for mark, _ in _records_of(path, 0):
                found = mark
        return found

    def _adopted(self, head: Mark) -> Mark:
        """Take in whole records behind the head, and cut off half of one, which nobody was told of."""
        size = self._size_of(head)
        if size == head.size:
            return head
        path = self.folder / _name(head.first)
        for mark, record in _records_of(path, head.size):
            if record.number != head.number + 1 or record.previous != head.digest:
                break
            head = mark
        # The rest somebody else wrote, or took away: the chain goes on behind it, and `verify` says so.
        return head._replace(size=_end_of_lines(path, head.size))

    def _write(self, head: Mark, content: bytes) -> tuple[int, int]:
        """Write behind `head`, in the next file where this one is long enough; returns file and size."""
        is_next = head.size > 0 and head.size + len(content) > self.segment_bytes
        first = head.number + 1 if is_next or head.number == 0 else head.first
        size = 0 if is_next else head.size
        if is_next:
            self.flush()
        path = self.folder / _name(first)
        is_new = not path.exists()
        descriptor = self._open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if is_new:
                fsync_directory(self.folder)
            _write_all(descriptor, content, size)
        finally:
            os.close(descriptor)
        return first, size + len(content)


def read_mark(path: Path) -> Mark | None:
    """The mark of a file; None where there is none, or it says nothing."""
    try:
        return Mark.decode(path.read_bytes()[: MARK_BYTES + 1])
    except FileNotFoundError:
        return None


def write_mark(path: Path, mark: Mark) -> None:
    """Write a mark, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, mark.encode())
    finally:
        os.close(descriptor)
    draft.replace(path)


def first_of(path: Path) -> int:
    """The number of the first record of a file, by its name."""
    return int(path.stem)


def _name(first: int) -> str:
    return f"{first:012d}.jsonl"


def _records_of(path: Path, offset: int) -> Iterator[tuple[Mark, Record]]:
    first = first_of(path)
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # being written, or half of one
            offset += len(line)
            try:
                record = parse(line[:-1])
            except NoRecord:
                continue
            yield Mark(first, offset, record.number, digest_of(line[:-1])), record


def _end_of_lines(path: Path, known: int) -> int:
    """Make a file end with a whole line; returns its length. `known` bytes of it are the trail's."""
    content = path.read_bytes() if path.exists() else b""
    if len(content) >= known:
        end = content.rfind(b"\n") + 1
        os.truncate(path, end)
        return end
    if content and not content.endswith(b"\n"):  # cut off within a record: what is left of it stays
        with path.open("ab") as file:
            file.write(b"\n")
        return len(content) + 1
    return len(content)


def _write_all(descriptor: int, content: bytes, size: int) -> None:
    """Write all of it or nothing: what a full disk took of it is taken back."""
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise
