"""fsync that is never retried, and directories that survive a power cut."""

import ctypes
import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from storage.errors import NotDurable, StorageFull, StorageUnavailable

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


_libc = ctypes.CDLL(None, use_errno=True)


def fsync(descriptor: int) -> None:
    """Flush to the disk; raises NotDurable when the disk says no, since trying again would lie."""
    with _not_durable():
        os.fsync(descriptor)


def fdatasync(descriptor: int) -> None:
    """Flush the bytes, and of the rest what they cannot be read without; raises as `fsync`."""
    with _not_durable():
        os.fdatasync(descriptor)


class FileSystem:
    """The file system that a folder lies on, to be flushed as a whole.

    Its errors are told once to each open descriptor, hence one is held from the beginning.
    Source: syncfs(2), Linux 5.8.
    """

    def __init__(self, folder: Path | str) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def sync(self) -> None:
        """Have everything durable that was written so far, names too; raises NotDurable."""
        with _not_durable():
            if _libc.syncfs(self._descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))


@contextmanager
def _not_durable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        msg = f"fsync failed ({errno_name(error)}): stop the node and check the disk"
        raise NotDurable(msg) from error


def fsync_directory(path: Path | str) -> None:
    """Flush the names in `path` to the disk: what is renamed or made there is only then certain."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1 << 17)
def make_durable_directory(root: str, *names: str) -> str:
    """Make `root`/`names`..., private to this user, and fsync the directory above each new name.

    Once per process and directory, whoever made it: another process may have made it a moment ago
    and not yet fsynced the one above.
    """
    if not names:
        return str(_make_durable_root(Path(root)))
    above = make_durable_directory(root, *names[:-1])
    path = f"{above}/{names[-1]}"
    Path(path).mkdir(mode=0o700, exist_ok=True)
    fsync_directory(above)
    return path


class disk_errors:  # noqa: N801 - used like a function; one made by `contextmanager` costs four times as much
    """Say every OSError of the disk in this room's words: StorageFull or StorageUnavailable."""

    def __enter__(self) -> None:
        """Nothing is done before an error."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say it."""
        if isinstance(error, OSError):
            raise disk_error(error) from error


def disk_error(error: OSError) -> StorageUnavailable:
    """Say an OSError of the disk in this room's words: StorageFull or StorageUnavailable."""
    if error.errno in _NO_ROOM:
        return StorageFull("no room left for files: free disk space or raise the quota")
    return StorageUnavailable(
        f"the disk cannot be used ({errno_name(error)}): check that it is mounted and writable"
    )


def errno_name(error: OSError) -> str:
    """Name the error number, such as EIO; never the path."""
    return errno.errorcode.get(error.errno or 0, "unknown")


def _make_durable_root(root: Path) -> Path:
    if not root.is_dir():
        above = _make_durable_root(root.parent)
        root.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(above)
    return root
