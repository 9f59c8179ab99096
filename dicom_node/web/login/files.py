"""Files of the log-in: in a folder below the home, for nobody else to read; read again when they change.

Whatever is wrong with them closes the door.
"""

import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar

from dicom_node.settings import BadConfiguration

FOLDER: Final = "login"
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

Content = TypeVar("Content")
Stamp = tuple[int, int, int]


class LoginUnusable(BadConfiguration):
    """A file of the log-in cannot be used, or nobody could log in; the message is one sentence."""


def folder_of(home: Path) -> Path:
    """Where users, tokens, and the key of the sessions lie."""
    return home / FOLDER


def read_private(path: Path) -> bytes:
    """Content of a file that only its owner can read.

    Raises
    ------
    LoginUnusable
        If others can read or write it, or it cannot be read.
    FileNotFoundError
        If it is not there.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & OTHERS:
                raise LoginUnusable(
                    f"{path}: others than its owner can use it; take their rights away (chmod 600), and make "
                    "its passwords and tokens anew if somebody may have read it."
                )
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LoginUnusable(
            f"{path}: cannot be read ({error.strerror}); it must belong to the user that the node runs as."
        ) from error


def write_private(path: Path, content: bytes) -> None:
    """Write a file whole, durable and for its owner only, who is the owner of the home."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            _give_to_owner_of(path.parent, descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold the folder for one change; makes it where it is missing."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _hand_over(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Watched(Generic[Content]):
    """What a file says, read again when it is another one; may be shared by threads."""

    def __init__(self, path: Path, read: Callable[[bytes], Content], empty: Content) -> None:
        self.path = path
        self._read = read
        self._empty = empty
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._content = empty

    def now(self) -> Content:
        """The content as it is now; empty where there is no file. Raises LoginUnusable."""
        stamp = self._look()
        with self._lock:
            if stamp == self._stamp:
                return self._content
        content = self._fresh()
        with self._lock:
            self._stamp, self._content = stamp, content
        return content

    def _look(self) -> Stamp | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns  # ctime: rights may have changed

    def _fresh(self) -> Content:
        try:
            return self._read(read_private(self.path))
        except FileNotFoundError:
            return self._empty


def _hand_over(folder: Path) -> None:
    """A folder made by root belongs to whom the home belongs to, who must be able to use it."""
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)


def _give_to_owner_of(folder: Path, descriptor: int) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
