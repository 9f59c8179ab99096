"""Whether a stored file still is what was stored: its name is the digest of its bytes.

Whoever sends a file on as a whole, or computes from it, asks here first: a disk that changed some bytes must
not speak in our name. `dicom-node fsck` asks about all of them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.durable import errno_name
from storage.errors import InstanceDamaged, StorageUnavailable
from storage.files import FileStore

CHUNK_BYTES = 1 << 20


def digest_of(files: FileStore, path: str) -> str:
    """Sha256 of a stored file; raises InstanceMissing, StorageUnavailable."""
    digest = hashlib.sha256()
    with files.open(path) as file:
        try:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        except OSError as error:
            msg = f"the file {path} cannot be read"
            raise StorageUnavailable(msg) from error
    return digest.hexdigest()


def recorded_digest(path: str) -> str:
    """The digest that a stored file was named after."""
    return path.rsplit("/", 1)[-1].removesuffix(".dcm")


@contextmanager
def sound_local(files: FileStore, path: str) -> Iterator[Path]:
    """Have a stored file on this machine's disk while the `with` lasts, every byte as it was stored.

    Raises
    ------
    InstanceMissing, InstanceDamaged, StorageUnavailable
    """
    with files.local(path) as local:
        if _digest(local) != recorded_digest(path):
            msg = f"the file {path} is not what was stored: some of its bytes are others"
            raise InstanceDamaged(msg)
        yield local


def _digest(local: Path) -> str:
    try:
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"the file {local.name} cannot be read ({errno_name(error)})"
        raise StorageUnavailable(msg) from error
