"""fsync that is never retried, and directories that survive a power cut."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from storage.errors import NotDurable, StorageFull, StorageUnavailable

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def fsync(descriptor: int) -> None:
    """Flush to the disk; raises NotDurable when the disk says no, since trying again would lie."""
    try:
        os.fsync(descriptor)
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


@contextmanager
def disk_errors() -> Iterator[None]:
    """Say every OSError of the disk in this room's words: StorageFull or StorageUnavailable."""
    try:
        yield
    except OSError as error:
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
