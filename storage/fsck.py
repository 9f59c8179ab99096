"""Rows against files: what is missing, what changed, what cannot be read, what nobody refers to.

Both ways are walked in batches, so memory does not grow with the archive, and no transaction stays open
while files are read. Nothing is changed here; `dicom_node.fsck` acts on what this finds.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice

from sqlalchemy import func, select

from storage.database import Database
from storage.errors import InstanceMissing, StorageUnavailable
from storage.files import FileStore, StoredObject
from storage.part10 import stale_incoming
from storage.soundness import digest_of
from storage.tables import Conflict, Instance

_BATCH = 500
_STALE_AFTER_S = 3600.0
_IN_FLIGHT_S = 60.0  # younger files are looked up again at the end: their rows may have been on the way
_MAX_LISTED = 10_000
_CONTENT_ADDRESS = re.compile(r"([0-9a-f]{64})\.dcm", re.ASCII)


class Kind(StrEnum):
    """What can be wrong between rows and files."""

    MISSING = "missing"  # a row without its file
    DIGEST_MISMATCH = "digest_mismatch"  # a row whose file has other bytes
    UNREADABLE = "unreadable"  # a row whose file the disk or the store does not give
    ORPHAN = "orphans"  # a file without a row
    STALE_INCOMING = "stale_incoming"  # a file that was never finished


UNSOUND = frozenset({Kind.MISSING, Kind.DIGEST_MISMATCH, Kind.UNREADABLE})


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `path` as in the index."""

    kind: Kind
    path: str


@dataclass
class FsckReport:
    """What was found; of each kind the first ten thousand paths, and how many there are."""

    instances: int
    missing: list[str] = field(default_factory=list)
    digest_mismatch: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stale_incoming: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    @property
    def is_sound(self) -> bool:
        """True when every row has its file, unchanged; orphans are only waste."""
        return not any(self.counts[kind] for kind in UNSOUND)

    def add(self, finding: Finding) -> None:
        """Count a finding, and list it while there is room."""
        self.counts[finding.kind] += 1
        listed: list[str] = getattr(self, finding.kind)
        if len(listed) < _MAX_LISTED:
            listed.append(finding.path)


Progress = Callable[[str, int], None]  # what is being looked at, and how many so far


def check(db: Database, files: FileStore, progress: Progress | None = None) -> FsckReport:
    """Compare every file that a row refers to with its digest; changes nothing, may run beside the node."""
    report = FsckReport(instances=count_instances(db))
    for finding in findings(db, files, progress):
        report.add(finding)
    return report


def findings(db: Database, files: FileStore, progress: Progress | None = None) -> Iterator[Finding]:
    """Give what is wrong, one by one; the caller may act on each before it takes the next."""
    tell = progress or _tell_nobody
    for path in stale_incoming(files.spool, _STALE_AFTER_S):
        yield Finding(Kind.STALE_INCOMING, path.relative_to(files.spool).as_posix())
    yield from _unsound(db, files, tell)
    for orphan in orphans(db, files, tell):
        yield Finding(Kind.ORPHAN, orphan.path)


def count_instances(db: Database) -> int:
    """How many instances the index has."""
    with db.reading() as tx:
        return tx.scalar(select(func.count()).select_from(Instance)) or 0


def orphans(db: Database, files: FileStore, progress: Progress | None = None) -> Iterator[StoredObject]:
    """Give the files that no row refers to; one whose row came while we looked is none."""
    tell = progress or _tell_nobody
    young: list[StoredObject] = []
    seen = 0
    for batch in _batches(files.walk()):
        seen += len(batch)
        tell("files", seen)
        horizon = time.time() - _IN_FLIGHT_S
        for stored in unreferenced(db, batch):
            if stored.modified_at > horizon:
                young.append(stored)
            else:
                yield stored
    for batch in _batches(young):
        yield from unreferenced(db, batch)


def unreferenced(db: Database, batch: Iterable[StoredObject]) -> list[StoredObject]:
    """Return those of `batch` that neither an instance nor the quarantine refers to."""
    candidates = list(batch)
    digests = [found[1] for stored in candidates if (found := _CONTENT_ADDRESS.search(stored.path))]
    with db.reading() as tx:
        known = {
            *tx.scalars(select(Instance.path).where(Instance.sha256.in_(digests))),
            *tx.scalars(select(Conflict.path).where(Conflict.second_sha256.in_(digests))),
        }
    return [stored for stored in candidates if stored.path not in known]


def _unsound(db: Database, files: FileStore, tell: Progress) -> Iterator[Finding]:
    for number, (path, sha256) in enumerate(chain(_instance_files(db), _quarantined_files(db)), 1):
        if number % _BATCH == 0:
            tell("rows", number)
        try:
            if digest_of(files, path) != sha256:
                yield Finding(Kind.DIGEST_MISMATCH, path)
        except InstanceMissing:
            yield Finding(Kind.MISSING, path)
        except StorageUnavailable:
            yield Finding(Kind.UNREADABLE, path)


def _instance_files(db: Database) -> Iterator[tuple[str, str]]:
    # Batch by batch: hashing takes hours, and an open transaction would keep SQLite's log growing.
    last = ""
    while True:
        statement = select(Instance.sop_instance_uid, Instance.path, Instance.sha256)
        statement = statement.where(Instance.sop_instance_uid > last).order_by(Instance.sop_instance_uid)
        with db.reading() as tx:
            rows = tx.execute(statement.limit(_BATCH)).all()
        if not rows:
            return
        for last, path, sha256 in rows:  # noqa: B007 - `last` is where the next batch begins
            yield path, sha256


def _quarantined_files(db: Database) -> Iterator[tuple[str, str]]:
    last = 0
    while True:
        statement = select(Conflict.id, Conflict.path, Conflict.second_sha256).where(Conflict.id > last)
        with db.reading() as tx:
            rows: Sequence[tuple[int, str, str]] = [
                (row[0], row[1], row[2]) for row in tx.execute(statement.order_by(Conflict.id).limit(_BATCH))
            ]
        if not rows:
            return
        for last, path, sha256 in rows:  # noqa: B007 - as above
            yield path, sha256


def _batches(stored: Iterable[StoredObject]) -> Iterator[list[StoredObject]]:
    iterator = iter(stored)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _tell_nobody(what: str, count: int) -> None:
    del what, count
