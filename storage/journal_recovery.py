"""What dead processes left in their journals is made into files again, before anything else looks at them."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from storage.durable import FileSystem, disk_errors, fsync_directory
from storage.journal_format import JOURNAL, STARTS, locked, read_heads
from storage.part10 import StoredFile, keep_all, new_incoming


class LeftBehind(NamedTuple):
    """An instance from the journal of a process that died; its file is durable again."""

    stored: StoredFile
    note: dict[str, str]
    written_at: int  # monotonic nanoseconds, alike in all processes of one boot


@contextmanager
def left_behind(root: Path) -> Iterator[list[LeftBehind]]:
    """Make files again of what dead processes left in their journals; at the end the journals go.

    Inside, the caller makes the rows durable. Journals of processes that live are not touched; who else
    recovers meanwhile waits.
    """
    folder = root / JOURNAL
    if not any(folder.glob("*.journal")):
        yield []
        return
    with disk_errors(), locked(str(folder)):
        with _of_the_dead(folder) as journals:
            file_system = FileSystem(root)
            restored = [record for journal in journals for record in _restored(root, journal)]
            file_system.sync()
            yield sorted(restored, key=lambda record: record.written_at)
            for journal in journals:
                Path(journal.name).unlink()
        fsync_directory(folder)


@contextmanager
def _of_the_dead(folder: Path) -> Iterator[list[BinaryIO]]:
    """Hold the journals that nobody else holds."""
    held: list[BinaryIO] = []
    try:
        for path in sorted(folder.glob("*.journal")):
            journal: BinaryIO = path.open("rb")
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(journal)
            except BlockingIOError:
                journal.close()
        yield held
    finally:
        for journal in held:
            journal.close()


def held_paths(root: Path) -> set[str]:
    """Files whose records no journal has forgotten yet, of the living and the dead: deleted, they come back.

    A file that is not among them does not come back, unless it is received again.
    """
    held: set[str] = set()
    with disk_errors():
        for path in (root / JOURNAL).glob("*.journal"):
            with suppress(FileNotFoundError), path.open("rb") as journal:
                held |= {told["stored"]["path"] for start in STARTS for told in read_heads(journal, start)}
    return held


def _restored(root: Path, journal: BinaryIO) -> Iterator[LeftBehind]:
    for start in STARTS:
        for told in read_heads(journal, start):
            if not _restore(root, told, journal.read(told["stored"]["size_bytes"])):
                break  # torn: it was never acknowledged, and nothing comes after it
            yield LeftBehind(StoredFile(**told["stored"]), told["note"], told["at"])


def _restore(root: Path, told: dict[str, Any], content: bytes) -> bool:
    """Write the file anew: what lies under its name may be a part of it. False: the record is torn."""
    with new_incoming(root) as incoming:
        incoming.write(content)
        is_whole = incoming.complete() == StoredFile(**told["stored"])
        if is_whole:
            keep_all(root, [incoming], is_journaled=True)
    return is_whole
