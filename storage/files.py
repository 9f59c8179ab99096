"""FileStore: where Part 10 files are kept, whatever it is made of; the form on a disk.

Every store names a file by its content address (`storage.part10`), takes bytes in through a local incoming
file, and has them durable when `IncomingFile.keep` returns; only then may rows be written.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from storage.durable import disk_errors, fsync, fsync_directory, make_durable_directory
from storage.journal import Journal
from storage.journal_recovery import LeftBehind, held_paths, left_behind
from storage.part10 import (
    OBJECTS,
    IncomingFile,
    StoredFile,
    absolute,
    is_there,
    keep_all,
    new_incoming,
    open_file,
    prepare_folders,
)
from storage.settings import StorageSettings

SET_ASIDE = "set-aside"
RULINGS = "rulings"


@dataclass(frozen=True)
class StoredObject:
    """A file that a store holds, whether rows refer to it or not."""

    path: str
    size_bytes: int
    modified_at: float  # UTC epoch seconds, by the store's clock


class FileStore(Protocol):
    """What receive, WADO, pipeline, delivery and fsck need of a place for files."""

    @property
    def spool(self) -> Path:
        """The local folder under which files come in; its disk is the one that can fill."""
        ...

    def new_incoming(self) -> IncomingFile:
        """Begin a file; use it in a `with`, and call `keep` when it is whole."""
        ...

    def prepare(self) -> None:
        """Make the folders that files will need."""
        ...

    def journal(self, index: Path | None) -> Journal | None:
        """Make this process's journal, for files that are kept with `is_journaled`.

        `index`: the folder of their rows, if those are not durable either. None: this store needs no journal.
        """
        ...

    def left_behind(self) -> AbstractContextManager[list[LeftBehind]]:
        """Make files again of what dead processes left in their journals; inside, rows are made of them."""
        ...

    def held_paths(self) -> set[str]:
        """Files that would come back from a journal if they were deleted now."""
        ...

    def keep_all(self, incoming: Sequence[IncomingFile], *, is_journaled: bool = False) -> list[StoredFile]:
        """Make several files durable under their content addresses at once; what is journaled is already."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a stored file for reading at any place; raises InstanceMissing, StorageUnavailable."""
        ...

    def local(self, path: str) -> AbstractContextManager[Path]:
        """Have a stored file on this machine's disk while the `with` lasts; only for reading."""
        ...

    def exists(self, path: str) -> bool:
        """Say whether the file is there; raises StorageUnavailable when the store cannot tell."""
        ...

    def find(self, path: str) -> StoredObject | None:
        """Return what the store says of the file, or None; raises StorageUnavailable."""
        ...

    def delete(self, path: str) -> None:
        """Remove the file, durably; harmless when it is gone already."""
        ...

    def set_aside(self, path: str) -> str:
        """Move a file that is not what its name says out of the way, durably; returns where it is now."""
        ...

    def walk(self) -> Iterator[StoredObject]:
        """Give every stored file, in the order of their paths, without holding them in memory."""
        ...

    def add_ruling(self, path: str, line: str) -> None:
        """Add a line to what is kept about a file beside it, durably; `delete` removes all of it."""
        ...

    def ruling(self, path: str) -> str:
        """Return what is kept about a file beside it; "" if nothing is."""
        ...

    def rulings(self) -> Iterator[tuple[str, str]]:
        """Give the sha256 of every file that something is kept about, and what."""
        ...


def ruling_name(path: str) -> str:
    """Where a store keeps what it knows about the file `path` beside its bytes."""
    return f"{RULINGS}/{absolute(Path(), path).stem}.txt"


def open_files(settings: StorageSettings) -> FileStore:
    """Return the store that the settings name: a bucket, or the folder `files_root`."""
    if settings.s3_bucket is None:
        return DiskFiles(settings.files_root)
    from storage.s3 import Bucket, S3Files  # noqa: PLC0415 - boto3 is an extra, needed for buckets only

    bucket = Bucket(
        settings.s3_bucket,
        settings.s3_prefix,
        settings.s3_endpoint_url,
        settings.s3_region,
        settings.s3_cache_mb << 20,
    )
    return S3Files(settings.files_root, bucket)


class DiskFiles:
    """Files under one folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def spool(self) -> Path:
        """The folder itself."""
        return self._root

    def new_incoming(self) -> IncomingFile:
        """Begin a file under incoming/; `keep` renames it."""
        return new_incoming(self._root)

    def prepare(self) -> None:
        """Make all folders at once."""
        with disk_errors():
            prepare_folders(self._root)

    def journal(self, index: Path | None) -> Journal:
        """Make a journal beside the files."""
        return Journal(self._root, index)

    def left_behind(self) -> AbstractContextManager[list[LeftBehind]]:
        """Take the journals of dead processes."""
        return left_behind(self._root)

    def held_paths(self) -> set[str]:
        """Look into all journals."""
        return held_paths(self._root)

    def keep_all(self, incoming: Sequence[IncomingFile], *, is_journaled: bool = False) -> list[StoredFile]:
        """Rename them; files of one folder share its fsync."""
        return keep_all(self._root, incoming, is_journaled=is_journaled)

    def open(self, path: str) -> BinaryIO:
        """Open the file itself."""
        return open_file(self._root, path)

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give the path of the file itself; raises InstanceMissing if it is not there."""
        self.open(path).close()
        yield absolute(self._root, path)

    def exists(self, path: str) -> bool:
        """Say whether the file is there."""
        return is_there(self._root, path)

    def find(self, path: str) -> StoredObject | None:
        """Look at the file's size and time."""
        with disk_errors():
            try:
                found = absolute(self._root, path).stat()
            except FileNotFoundError:
                return None
        return StoredObject(path, found.st_size, found.st_mtime)

    def delete(self, path: str) -> None:
        """Unlink, and fsync the folder."""
        file = absolute(self._root, path)
        with disk_errors(), suppress(FileNotFoundError):
            (self._root / ruling_name(path)).unlink(missing_ok=True)
            file.unlink()
            fsync_directory(file.parent)

    def set_aside(self, path: str) -> str:
        """Rename into set-aside/, which nothing reads and nothing empties."""
        file = absolute(self._root, path)
        with disk_errors():
            folder = Path(make_durable_directory(str(self._root), SET_ASIDE))
            target = _free_name(folder, file.name)
            file.rename(target)
            fsync_directory(folder)
            fsync_directory(file.parent)
        return f"{SET_ASIDE}/{target.name}"

    def walk(self) -> Iterator[StoredObject]:
        """Go through objects/ folder by folder, holding the names of one folder at a time."""
        with disk_errors():
            yield from _walk(self._root / OBJECTS, OBJECTS)

    def add_ruling(self, path: str, line: str) -> None:
        """Append to a small file, and fsync it and its folder."""
        with disk_errors():
            folder = make_durable_directory(str(self._root), RULINGS)
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._root / ruling_name(path), flags, 0o600), "w") as file:
                file.write(line)
                file.flush()
                fsync(file.fileno())
            fsync_directory(folder)

    def ruling(self, path: str) -> str:
        """Read the small file."""
        with disk_errors(), suppress(FileNotFoundError):
            return (self._root / ruling_name(path)).read_text()
        return ""

    def rulings(self) -> Iterator[tuple[str, str]]:
        """Read all small files."""
        with disk_errors():
            for entry in _sorted_folder(self._root / RULINGS):
                yield entry.name.removesuffix(".txt"), Path(entry.path).read_text()


def _walk(folder: Path, path: str) -> Iterator[StoredObject]:
    for entry in _sorted_folder(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{path}/{entry.name}")
            continue
        with suppress(FileNotFoundError):  # deleted while we looked
            found = entry.stat(follow_symlinks=False)
            yield StoredObject(f"{path}/{entry.name}", found.st_size, found.st_mtime)


def _sorted_folder(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _free_name(folder: Path, name: str) -> Path:
    number = 0
    while (candidate := folder / (f"{name}.{number}" if number else name)).exists():
        number += 1
    return candidate
