"""DICOM Part 10 files: written durably under their content address, read back, never named after a UID.

    incoming/<random>.part            while the bytes arrive
    objects/ab/<sha256>.dcm           once they are complete: fsync, rename, fsync of the directory

256 folders, not 65,536: each new one costs an fsync, and several files that are kept together share the
fsync of their folder. Files of earlier versions lie one folder deeper and are found there.

A kept file is never removed here, not even when its row could not be written: the same bytes may already
belong to an instance that was acknowledged on another association. `storage.fsck` lists orphans.
"""

import fcntl
import hashlib
import mmap
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from storage.durable import (
    disk_errors,
    errno_name,
    fsync,
    fsync_directory,
    make_durable_directory,
)
from storage.errors import InstanceMissing, PathRefused, StorageUnavailable

INCOMING = "incoming"
OBJECTS = "objects"

_HEX = "[0-9a-f]"
_OBJECT_PATH = re.compile(
    rf"{OBJECTS}/({_HEX}{{2}})/(?:\1{_HEX}{{62}}|({_HEX}{{2}})/\1\2{_HEX}{{60}})\.dcm", re.ASCII
)
_BLOCK_BYTES = 1 << 20  # whole pages: small pieces, or a page written twice, cost several times as much
_SPARE_BLOCKS = 8
_BEGINNING_BYTES = 1 << 16
_DIRECT_BYTES = 1 << 17  # shorter pieces go through the page cache as quickly
_NO_BLOCK = memoryview(b"")
_spare_blocks: list[memoryview] = []  # new memory is slower than a used one; append and pop are atomic


@dataclass(frozen=True)
class StoredFile:
    """A Part 10 file that survives a power cut; `path` is relative to files_root."""

    path: str
    sha256: str
    size_bytes: int


class IncomingFile:
    """A Part 10 file while its bytes arrive; gone at the end of the `with` unless kept.

    One that fits into a block has no file until `write_out`.
    """

    def __init__(self, files_root: Path) -> None:
        self._files_root = files_root
        self.name = f"{files_root}/{INCOMING}/{os.urandom(16).hex()}.part"
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self._collected = 0  # bytes of the block
        self._written = 0  # of them, those that are in the file too
        self._complete: StoredFile | None = None
        self._is_sealed = False
        self._writing = threading.Lock()
        self._is_direct = False  # past the page cache: new memory for it costs more than the disk
        self.size_bytes = 0
        self._block = _take_block()
        self._beginning = b""  # of a file that is longer than a block

    @property
    def path(self) -> Path:
        """Where the bytes are while they arrive."""
        return Path(self.name)

    @property
    def pages(self) -> memoryview | None:
        """The whole file in whole pages, valid until it is kept; None when it is longer than a block."""
        if self.size_bytes > _BLOCK_BYTES or not self._block:
            return None
        return self._block[: -(-self.size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE]

    @property
    def beginning(self) -> bytes | memoryview:
        """What is in memory from the first byte on, nearly every header among it; valid until it is kept."""
        return self._beginning or self._block[: self._collected]

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; raises StorageFull when the disk has no room for it, now or at the next call."""
        self._digest.update(data)  # while it is in the processor's cache
        self.size_bytes += len(data)
        if self._collected + len(data) > _BLOCK_BYTES:
            data = self._write_blocks(memoryview(data))
        end = self._collected + len(data)
        self._block[self._collected : end] = data
        self._collected = end

    def _write_blocks(self, data: memoryview) -> memoryview:
        """Fill the block and empty it into the file, as often as `data` does; gives what is left of them."""
        while (room := _BLOCK_BYTES - self._collected) < len(data):
            self._block[self._collected :] = data[:room]
            self._collected, data = _BLOCK_BYTES, data[room:]
            self._beginning = self._beginning or bytes(self._block[:_BEGINNING_BYTES])
            self.write_out()
            self._collected = self._written = 0
        return data

    def reader(self) -> BinaryIO:
        """Open what was written so far, from its beginning; the caller closes it."""
        self.write_out()
        with disk_errors():
            return self.path.open("rb")

    def complete(self) -> StoredFile:
        """Say that all has come; returns what `keep_all` will make of the file."""
        if self._complete is None:
            sha256 = self._digest.hexdigest()
            self._complete = StoredFile(f"{OBJECTS}/{sha256[:2]}/{sha256}.dcm", sha256, self.size_bytes)
        return self._complete

    def write_out(self) -> None:
        """Have all bytes in the file; for any thread. Raises StorageFull if there is no room."""
        with self._writing, disk_errors():
            start, end = self._written, self._collected
            self._written = end
            if self._descriptor < 0:
                self._open()
            whole = start + (end - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if self._is_direct and whole - start >= _DIRECT_BYTES:
                self._write(self._block[start:whole])
                start = whole
            if start < end:
                self._leave_direct()
                self._write(self._block[start:end])

    def finish(self) -> StoredFile:
        """Have all bytes in the file, and say what it is; nothing is durable."""
        self.write_out()
        return self.complete()

    def seal(self) -> StoredFile:
        """Make the bytes durable, still without their name; returns what `keep_all` will make of them.

        Raises
        ------
        StorageFull
            If there is no room.
        NotDurable
            If fsync failed. It is not tried again: the kernel may have dropped the pages already.
        """
        stored = self.complete()
        if not self._is_sealed:
            self.write_out()
            self._give_block_back()
            with disk_errors():
                fsync(self._descriptor)
            self._is_sealed = True
        return stored

    def keep(self) -> StoredFile:
        """Make the file durable under its content address, alone; raises as `seal` does."""
        (stored,) = keep_all(self._files_root, [self])
        return stored

    def discard(self) -> None:
        """Remove the incoming file; harmless after it was kept."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file, which stays where it is."""
        self._give_block_back()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> None:
        try:
            self._create()
        except FileNotFoundError:  # somebody tidied up: the folder is remembered, but there no more
            make_durable_directory.cache_clear()
            self._create()
        # Asked for afterwards, since a file system that cannot do it says so to a file that is there.
        self._is_direct = self.size_bytes >= _DIRECT_BYTES and _set_direct(self._descriptor, os.O_DIRECT)

    def _create(self) -> None:
        make_durable_directory(str(self._files_root), INCOMING)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.name, flags, 0o600)

    def _leave_direct(self) -> None:
        """The rest is no whole page, or written where such a page was begun: through the page cache."""
        if self._is_direct:
            _set_direct(self._descriptor, 0)
            self._is_direct = False

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _give_block_back(self) -> None:
        block, self._block = self._block, _NO_BLOCK
        if block and len(_spare_blocks) < _SPARE_BLOCKS:
            _spare_blocks.append(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def _set_direct(descriptor: int, flag: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flag)
    except OSError:
        return False
    return True


def _take_block() -> memoryview:
    try:
        return _spare_blocks.pop()
    except IndexError:
        return own_pages(_BLOCK_BYTES)


def own_pages(size: int) -> memoryview:
    """Zeroed memory that begins with a page, as writing past the page cache needs; a fork gets a copy."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def keep_all(
    files_root: Path, incoming: Sequence[IncomingFile], *, is_journaled: bool = False
) -> list[StoredFile]:
    """Make files durable under their content addresses; those of one folder share its fsync.

    `is_journaled`: they are durable in the journal, so here only the names change, and nothing is waited for.
    The callers then write their rows. Raises as `IncomingFile.seal` does; then none of them counts as kept.
    """
    try:
        stored = [each.finish() if is_journaled else each.seal() for each in incoming]
        with disk_errors():
            folders = set[str]()
            for each, file in zip(incoming, stored, strict=True):
                folder = f"{_object_folders(str(files_root))}/{file.sha256[:2]}"
                os.rename(each.name, f"{files_root}/{file.path}")  # noqa: PTH104 - no Path: this runs a lot
                each.close()
                folders.add(folder)
            for folder in () if is_journaled else sorted(folders):
                fsync_directory(folder)
    except BaseException:
        for each in incoming:
            each.discard()
        raise
    return stored


def prepare_folders(files_root: Path) -> None:
    """Make every folder that a file passes through."""
    make_durable_directory(str(files_root), INCOMING)
    _object_folders(str(files_root))


@lru_cache(maxsize=16)
def _object_folders(root: str) -> str:
    """Make all 256 folders with one fsync above them, rather than one for each when it is first needed."""
    objects = make_durable_directory(root, OBJECTS)
    for number in range(256):
        Path(f"{objects}/{number:02x}").mkdir(mode=0o700, exist_ok=True)
    fsync_directory(objects)
    return objects


def new_incoming(files_root: Path) -> IncomingFile:
    """Begin a Part 10 file; use it in a `with`."""
    return IncomingFile(files_root)


def is_address(path: str) -> bool:
    """Say whether `path` is one that this room hands out."""
    return _OBJECT_PATH.fullmatch(path) is not None


def absolute(files_root: Path, path: str) -> Path:
    """Return where the stored file `path` is; raises PathRefused unless `path` is a content address."""
    _require_address(path)
    return files_root / path


def is_there(files_root: Path, path: str) -> bool:
    """Say whether the stored file `path` is there; raises as `absolute`."""
    _require_address(path)
    return os.path.isfile(f"{files_root}/{path}")  # noqa: PTH113 - no Path: this runs a lot


def _require_address(path: str) -> None:
    if not is_address(path):
        msg = "not the path of a stored file"
        raise PathRefused(msg)


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
