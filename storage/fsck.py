"""Rows against files: what is missing, what changed, what nobody refers to."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from sqlalchemy import func, select

from storage.database import Database
from storage.errors import InstanceMissing
from storage.part10 import OBJECTS, open_file, stale_incoming
from storage.tables import Conflict, Instance

_BATCH = 500
_CHUNK_BYTES = 1 << 20
_STALE_AFTER_S = 3600.0


@dataclass(frozen=True)
class FsckReport:
    """What `check` found; paths are relative to files_root."""

    instances: int
    missing: list[str] = field(default_factory=list)
    digest_mismatch: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stale_incoming: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """True when every row has its file, unchanged; orphans are only waste."""
        return not (self.missing or self.digest_mismatch)


def check(db: Database, files_root: Path) -> FsckReport:
    """Compare every file that a row refers to with its digest; changes nothing, may run beside the node."""
    # Files first, rows second: what is received meanwhile has its row by then, and is no orphan.
    unreferenced = {path.relative_to(files_root).as_posix() for path in _object_files(files_root)}
    stale = [path.relative_to(files_root).as_posix() for path in stale_incoming(files_root, _STALE_AFTER_S)]
    report = FsckReport(instances=_count_instances(db), stale_incoming=stale)
    for path, sha256 in chain(_instance_files(db), _quarantined_files(db)):
        unreferenced.discard(path)
        found = _digest(files_root, path)
        if found is None:
            report.missing.append(path)
        elif found != sha256:
            report.digest_mismatch.append(path)
    report.orphans.extend(sorted(unreferenced))
    return report


def _object_files(files_root: Path) -> Iterator[Path]:
    return (path for path in (files_root / OBJECTS).rglob("*") if not path.is_dir())


def _count_instances(db: Database) -> int:
    with db.reading() as tx:
        return tx.scalar(select(func.count()).select_from(Instance)) or 0


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
    with db.reading() as tx:
        rows = tx.execute(select(Conflict.path, Conflict.second_sha256).distinct()).all()
    yield from ((path, sha256) for path, sha256 in rows)


def _digest(files_root: Path, path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open_file(files_root, path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except InstanceMissing:
        return None
    return digest.hexdigest()
