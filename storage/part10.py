"""DICOM Part 10 files: written durably under their content address, read back, never named after a UID.

    incoming/<random>.part            while the bytes arrive
    objects/ab/cd/<sha256>.dcm        once they are complete: fsync, rename, fsync of the directory

A kept file is never removed here, not even when its row could not be written: the same bytes may already
belong to an instance that was acknowledged on another association. `storage.fsck` lists orphans.
"""

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from storage.durable import disk_errors, errno_name, fsync, fsync_directory, make_durable_directory
from storage.errors import InstanceMissing, PathRefused, StorageUnavailable

INCOMING = "incoming"
OBJECTS = "objects"

_OBJECT_PATH = re.compile(rf"{OBJECTS}/([0-9a-f]{{2}})/([0-9a-f]{{2}})/(\1\2[0-9a-f]{{60}})\.dcm", re.ASCII)
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True)
class StoredFile:
    """A Part 10 file that survives a power cut; `path` is relative to files_root."""

    path: str
    sha256: str
    size_bytes: int


class IncomingFile:
    """A Part 10 file while its bytes arrive; gone at the end of the `with` unless kept."""

    def __init__(self, files_root: Path) -> None:
        self._files_root = files_root
        self._path = files_root / INCOMING / f"{secrets.token_hex(16)}.part"
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        with disk_errors():
            make_durable_directory(files_root, INCOMING)
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=_BUFFER_BYTES)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; raises StorageFull when the disk has no room for it."""
        with disk_errors():
            self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data) if isinstance(data, bytes) else data.nbytes

    def reader(self) -> BinaryIO:
        """Open what was written so far, from its beginning; the caller closes it."""
        with disk_errors():
            self._file.flush()
            return self._path.open("rb")

    def keep(self) -> StoredFile:
        """Make the file durable under its content address; the caller then writes its rows.

        Raises
        ------
        StorageFull
            If there is no room.
        NotDurable
            If fsync failed. It is not tried again: the kernel may have dropped the pages already.
        """
        sha256 = self._digest.hexdigest()
        relative = f"{OBJECTS}/{sha256[:2]}/{sha256[2:4]}/{sha256}.dcm"
        try:
            with disk_errors():
                self._file.flush()
                fsync(self._file.fileno())
                self._file.close()
                directory = make_durable_directory(self._files_root, OBJECTS, sha256[:2], sha256[2:4])
                os.rename(self._path, self._files_root / relative)  # noqa: PTH104 - tests watch os.rename
                fsync_directory(directory)
        except BaseException:
            self.discard()
            raise
        return StoredFile(relative, sha256, self.size_bytes)

    def discard(self) -> None:
        """Remove the incoming file; harmless after `keep`."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def new_incoming(files_root: Path) -> IncomingFile:
    """Begin a Part 10 file; use it in a `with`."""
    return IncomingFile(files_root)


def absolute(files_root: Path, path: str) -> Path:
    """Return where the stored file `path` is; raises PathRefused unless `path` is a content address."""
    if _OBJECT_PATH.fullmatch(path) is None:
        msg = "not the path of a stored file"
        raise PathRefused(msg)
    return files_root / path


def open_file(files_root: Path, path: str) -> BinaryIO:
    """Open a stored file for reading; raises InstanceMissing if it is not there."""
    try:
        descriptor = os.open(absolute(files_root, path), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        msg = f"the file {path} is missing: run `dicom-node fsck`"
        raise InstanceMissing(msg) from error
    except OSError as error:
        msg = f"the file {path} cannot be read ({errno_name(error)})"
        raise StorageUnavailable(msg) from error
    return os.fdopen(descriptor, "rb")


def stale_incoming(files_root: Path, older_than_s: float) -> list[Path]:
    """List incoming files that nobody wrote to for `older_than_s` seconds: left by a killed process."""
    horizon = time.time() - older_than_s
    found = []
    for path in sorted((files_root / INCOMING).glob("*.part")):
        with suppress(FileNotFoundError):  # finished while we looked
            if path.stat().st_mtime <= horizon:
                found.append(path)
    return found


def discard_stale(files_root: Path, older_than_s: float) -> int:
    """Remove incoming files left by killed processes; returns how many."""
    stale = stale_incoming(files_root, older_than_s)
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
