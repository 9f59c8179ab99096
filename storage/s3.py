"""S3Files: Part 10 files in a bucket, for nodes whose disk is not the place to keep them.

A file comes in on this machine's disk, is PUT under its content address with its sha256, and is kept when
the store has confirmed that very checksum; the local file then goes. Reading is by range: one request
streams until the reader jumps. What libraries need as a whole file is fetched, checked, and kept in a
bounded cache.
"""

import base64
import errno
import hashlib
import io
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.durable import disk_errors, make_durable_directory
from storage.errors import InstanceMissing, NotDurable, StorageError, StorageFull, StorageUnavailable
from storage.files import RULINGS, SET_ASIDE, StoredObject, ruling_name
from storage.journal_recovery import LeftBehind
from storage.part10 import OBJECTS, IncomingFile, StoredFile, absolute

_FETCHED = "fetched"
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "EntityTooLarge", "507"})
_CHUNK_BYTES = 1 << 20
_DEADLINES = Config(
    connect_timeout=5,
    read_timeout=20,
    retries={"total_max_attempts": 2, "mode": "standard"},
    max_pool_connections=64,
)


@dataclass(frozen=True)
class Bucket:
    """Where the files are; credentials come from boto3's own places (environment, files, roles)."""

    name: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    cache_bytes: int = 1 << 30


class S3Files:
    """Files in a bucket; `spool` is the local folder they come in by."""

    def __init__(self, spool: Path, bucket: Bucket) -> None:
        self._spool = spool
        self._bucket = bucket
        self._clients: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def spool(self) -> Path:
        """The local folder of incoming and fetched files."""
        return self._spool

    def new_incoming(self) -> IncomingFile:
        """Begin a file on the local disk; `keep` puts it into the bucket."""
        return _Incoming(self)

    def prepare(self) -> None:
        """A bucket has no folders."""

    def journal(self, index: Path | None) -> None:
        """None: the bucket is what makes a file durable."""

    def left_behind(self) -> AbstractContextManager[list[LeftBehind]]:
        """None either."""
        return nullcontext([])

    def held_paths(self) -> set[str]:
        """None, again."""
        return set()

    def keep_all(
        self,
        incoming: Sequence[IncomingFile],
        *,
        is_journaled: bool = False,  # noqa: ARG002 - never, here
    ) -> list[StoredFile]:
        """Put one after the other; those that were put before an error are orphans, as after a crash."""
        return [each.keep() for each in incoming]

    def put(self, file: Path, stored: StoredFile) -> None:
        """Store a local file; raises NotDurable unless the store confirms its checksum."""
        checksum = base64.b64encode(bytes.fromhex(stored.sha256)).decode("ascii")
        with disk_errors(), file.open("rb") as body, _store_errors(stored.path):
            answer = self._client().put_object(
                Bucket=self._bucket.name,
                Key=self._key(stored.path),
                Body=body,
                ContentLength=stored.size_bytes,
                ContentType="application/dicom",
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
            )
        if answer.get("ChecksumSHA256") != checksum:
            msg = "the object store did not confirm a checksum: it must support x-amz-checksum-sha256"
            raise NotDurable(msg)

    def open(self, path: str) -> BinaryIO:
        """Open for reading; seeking begins another request."""
        return cast("BinaryIO", io.BufferedReader(_Object(self, path), _CHUNK_BYTES))

    def get(self, path: str, start: int = 0) -> Any:
        """Ask for the file from byte `start` on; the answer has ContentLength, and a Body to close."""
        key = self._key(path)
        part = {"Range": f"bytes={start}-"} if start else {}
        with _store_errors(path):
            return self._client().get_object(Bucket=self._bucket.name, Key=key, **part)

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give a name of the fetched file that lasts as long as the block, whatever the cache forgets."""
        name = Path(self._relative(path)).name
        with disk_errors():
            folder = Path(make_durable_directory(str(self._spool), _FETCHED))
        mine = folder / f"{secrets.token_hex(8)}.use"
        try:
            if not self._link(folder / name, mine):
                self._fetch(path, folder / name, mine)
            yield mine
        finally:
            mine.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Ask the store."""
        return self.find(path) is not None

    def find(self, path: str) -> StoredObject | None:
        """Ask the store for the file's size and time."""
        key = self._key(path)
        try:
            with _store_errors(path):
                found = self._client().head_object(Bucket=self._bucket.name, Key=key)
        except InstanceMissing:
            return None
        return StoredObject(path, int(found["ContentLength"]), found["LastModified"].timestamp())

    def delete(self, path: str) -> None:
        """Delete the object, and what was fetched of it."""
        key = self._key(path)
        with _store_errors(path):
            self._client().delete_object(Bucket=self._bucket.name, Key=key)
            self._client().delete_object(Bucket=self._bucket.name, Key=self._ruling_key(path))
        (self._spool / _FETCHED / Path(path).name).unlink(missing_ok=True)

    def set_aside(self, path: str) -> str:
        """Copy to set-aside/, then delete."""
        target = f"{SET_ASIDE}/{Path(self._relative(path)).name}.{secrets.token_hex(4)}"
        source = {"Bucket": self._bucket.name, "Key": self._key(path)}
        with _store_errors(path):
            self._client().copy_object(
                Bucket=self._bucket.name, Key=f"{self._bucket.prefix}{target}", CopySource=source
            )
        self.delete(path)
        return target

    def walk(self) -> Iterator[StoredObject]:
        """List the bucket, a thousand keys a request."""
        for found in self._listed(OBJECTS):
            path = found["Key"].removeprefix(self._bucket.prefix)
            yield StoredObject(path, int(found["Size"]), found["LastModified"].timestamp())

    def add_ruling(self, path: str, line: str) -> None:
        """Put what was there and the line; two at the same time may leave only one, which is enough."""
        body = (self.ruling(path) + line).encode()
        with _store_errors(path):
            self._client().put_object(Bucket=self._bucket.name, Key=self._ruling_key(path), Body=body)

    def ruling(self, path: str) -> str:
        """Get the small object."""
        with suppress(InstanceMissing):
            return self._text(self._ruling_key(path))
        return ""

    def rulings(self) -> Iterator[tuple[str, str]]:
        """Get all small objects."""
        for found in self._listed(RULINGS):
            yield Path(found["Key"]).stem, self._text(found["Key"])

    def _listed(self, folder: str) -> Iterator[dict[str, Any]]:
        pages = self._client().get_paginator("list_objects_v2")
        with _store_errors(folder):
            for page in pages.paginate(Bucket=self._bucket.name, Prefix=f"{self._bucket.prefix}{folder}/"):
                yield from page.get("Contents", [])

    def _text(self, key: str) -> str:
        with (
            _store_errors(key),
            closing(self._client().get_object(Bucket=self._bucket.name, Key=key)["Body"]) as body,
        ):
            return cast("bytes", body.read()).decode()

    def _ruling_key(self, path: str) -> str:
        return self._bucket.prefix + ruling_name(path)

    def _key(self, path: str) -> str:
        return self._bucket.prefix + self._relative(path)

    def _relative(self, path: str) -> str:
        """Return `path`; raises PathRefused unless it is a content address."""
        return absolute(Path(), path).as_posix()

    def _client(self) -> Any:
        """Return this process's client: connections must not be shared with a child."""
        with self._lock:
            if os.getpid() not in self._clients:
                session = boto3.session.Session()
                self._clients = {
                    os.getpid(): session.client(
                        "s3",
                        endpoint_url=self._bucket.endpoint_url,
                        region_name=self._bucket.region,
                        config=_DEADLINES,
                    )
                }
            return self._clients[os.getpid()]

    def _link(self, cached: Path, mine: Path) -> bool:
        try:
            os.utime(cached)  # the cache forgets what was not used for longest
            os.link(cached, mine)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, path: str, cached: Path, mine: Path) -> None:
        digest = hashlib.sha256()
        with disk_errors(), mine.open("xb") as file, closing(self.get(path)["Body"]) as body:
            while chunk := _read(body, _CHUNK_BYTES, path):
                digest.update(chunk)
                file.write(chunk)
        if f"{digest.hexdigest()}.dcm" != cached.name:
            msg = f"the file {path} is not what was stored: run `dicom-node fsck`"
            raise StorageUnavailable(msg)
        self._make_room(cached.parent, mine.stat().st_size)
        with suppress(FileExistsError):
            os.link(mine, cached)

    def _make_room(self, folder: Path, size_bytes: int) -> None:
        found = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.dcm"))
        total = sum(size for _, size, _ in found) + size_bytes
        for _, size, file in found:
            if total <= self._bucket.cache_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size


class _Incoming(IncomingFile):
    """A file on the local disk whose keeping is a PUT; the local bytes need no fsync."""

    def __init__(self, files: S3Files) -> None:
        super().__init__(files.spool)
        self._files = files

    def seal(self) -> StoredFile:
        """Say what `keep` will make of the bytes."""
        return self.finish()

    def keep(self) -> StoredFile:
        """Put the file; raises NotDurable, StorageFull, StorageUnavailable."""
        stored = self.seal()
        try:
            self._files.put(self.path, stored)
        finally:
            self.discard()
        return stored


class _Object(io.RawIOBase):
    """A stored file as a stream: one request until somebody jumps."""

    def __init__(self, files: S3Files, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path
        answer = files.get(path)
        self._body: Any = answer["Body"]
        self._size = int(answer["ContentLength"])
        self._position = self._body_position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        if self._position != self._body_position:
            self._body.close()
            self._body = self._files.get(self._path, self._position)["Body"]
            self._body_position = self._position
        chunk = _read(self._body, len(buffer), self._path)
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        self._body_position = self._position
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def _read(body: Any, length: int, path: str) -> bytes:
    with _store_errors(path):
        return cast("bytes", body.read(length))


@contextmanager
def _store_errors(path: str) -> Iterator[None]:
    """Say every error of the object store in this room's words."""
    try:
        yield
    except ClientError as error:
        raise _storage_error(error, path) from error
    except BotoCoreError as error:
        msg = f"the object store cannot be used now ({type(error).__name__}): check that it is up"
        raise StorageUnavailable(msg) from error


def _storage_error(error: ClientError, path: str) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code in _MISSING:
        return InstanceMissing(f"the file {path} is missing: run `dicom-node fsck`")
    if code in _FULL:
        return StorageFull("no room left in the object store: free space or raise the quota")
    return StorageUnavailable(f"the object store refused ({code}): check bucket, credentials and rights")
