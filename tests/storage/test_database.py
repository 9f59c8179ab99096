"""Transactions, the clock, locks, and errors in our own words."""

import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from storage import database as database_module
from storage.database import Database, database_now, require_current_schema, upgrade
from storage.errors import DatabaseDamaged, DatabaseRefused, SchemaMismatch, StorageFull, StorageUnavailable
from storage.tables import Instance, Study
from tests.storage.builders import STUDY, Archive, make_dataset


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    path = tmp_path / "copy.sqlite"
    path.write_bytes(migrated_sqlite.read_bytes())
    return f"sqlite:///{path}"


def test_the_clock_is_that_of_the_database_in_epoch_seconds(db: Database):
    before = time.time()
    with db.reading() as tx:
        first = tx.scalar(select(database_now()))
        time.sleep(0.02)
        second = tx.scalar(select(database_now()))
    assert isinstance(first, float)
    assert before - 0.01 <= first <= time.time() + 0.01
    assert isinstance(second, float)
    assert second - first >= 0.015  # the clock goes on inside a transaction


def test_the_clock_counts_in_parts_of_a_second(db: Database):
    with db.reading() as tx:
        readings = [tx.scalar(select(database_now())) or 0.0 for _ in range(5)]
    assert any(reading % 1 for reading in readings)


def test_sqlite_commits_are_durable_and_constraints_are_kept(sqlite_url: str):
    db = Database(sqlite_url)
    with db.transaction() as tx:
        values = {name: tx.scalar(text(f"PRAGMA {name}")) for name in (
            "journal_mode", "synchronous", "foreign_keys", "busy_timeout",
        )}  # fmt: skip
    db.close()
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}


def test_postgresql_commits_are_durable(migrated_postgresql: str):
    db = Database(migrated_postgresql)
    with db.transaction() as tx:
        assert tx.scalar(text("SHOW synchronous_commit")) == "on"
        assert tx.scalar(text("SHOW lock_timeout")) == "15s"
    db.close()


def test_a_row_without_its_parent_is_refused(db: Database):
    columns = {column.name: "" for column in Instance.__table__.columns}
    orphan = columns | {"size_bytes": 0, "received_at": 0.0, "rows": 1, "columns": 1}
    orphan |= {"instance_number": 1, "number_of_frames": 1, "retired_at": None}
    with pytest.raises(DatabaseRefused), db.transaction() as tx:
        tx.add(Instance(**orphan))


def test_an_unknown_state_is_refused(archive: Archive):
    archive.job()
    with pytest.raises(DatabaseRefused), archive.db.transaction() as tx:
        tx.execute(text("UPDATE job SET state = 'DONE'"))


def test_reading_cannot_write(db: Database):
    with pytest.raises((DatabaseRefused, StorageUnavailable)), db.reading() as tx:
        tx.execute(text("DELETE FROM study"))
    with db.transaction() as tx:  # on the same connection
        tx.execute(text("DELETE FROM study"))


def test_readers_do_not_wait_for_a_writer(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        archive.enter(tx, make_dataset("2"))
        with archive.db.reading() as reader:
            assert len(reader.scalars(select(Instance)).all()) == 1


def test_no_exception_repeats_a_patients_values(db: Database):
    """Not even in the traceback: PostgreSQL would repeat the whole row."""
    with pytest.raises(DatabaseRefused, match="patient_id") as caught, db.transaction() as tx:
        tx.execute(Study.__table__.insert().values(study_instance_uid="1.2", patient_name="Doe^Jane"))
    assert "Doe^Jane" not in "".join(traceback.format_exception(caught.value))


def test_a_locked_database_is_unavailable_after_the_timeout(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database_module, "_LOCK_TIMEOUT_S", 0.05)
    db = Database(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="SQLITE_BUSY"), db.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
    other.execute("ROLLBACK")
    with db.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
    other.close()
    db.close()


@pytest.fixture
def holder(sqlite_url: str) -> Iterator[sqlite3.Connection]:
    """Another connection, which holds the write lock."""
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_who_writes_arrivals_waits_for_the_lock_and_gives_the_connection_back_as_it_was(
    sqlite_url: str, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
):
    looked: list[float] = []

    def look_again(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            holder.execute("ROLLBACK")

    monkeypatch.setattr(database_module.time, "sleep", look_again)
    db = Database(sqlite_url)
    writer = db.writer()
    with writer.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
    assert looked == [database_module._LOOK_AGAIN_S] * 3
    writer.close()
    with db.transaction() as tx:
        assert tx.scalar(text("PRAGMA busy_timeout")) == 15_000
    db.close()


def test_who_writes_arrivals_does_not_wait_for_ever(
    sqlite_url: str, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "_LOCK_TIMEOUT_S", 0.05)
    db = Database(sqlite_url)
    writer = db.writer()
    with pytest.raises(StorageUnavailable, match="SQLITE_BUSY"), writer.transaction():
        pytest.fail("the lock was held")
    holder.execute("ROLLBACK")
    with writer.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
    db.close()


def test_a_full_sqlite_database_is_storage_full(sqlite_url: str):
    db = Database(sqlite_url)

    def fill() -> None:
        with db.transaction() as tx:
            tx.execute(text("PRAGMA max_page_count = 1"))  # SQLite makes it the present size
            tx.execute(text("CREATE TABLE filler AS SELECT zeroblob(10000000)"))

    with pytest.raises(StorageFull, match="free disk space"):
        fill()
    db.close()


def test_a_full_postgresql_disk_is_storage_full(migrated_postgresql: str):
    db = Database(migrated_postgresql)
    with pytest.raises(StorageFull), db.transaction() as tx:
        tx.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))
    db.close()


@pytest.mark.parametrize("kept", [8192, 0], ids=["pages", "all of it"])
def test_a_damaged_sqlite_file_says_what_to_do(sqlite_url: str, kept: int):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    content = path.read_bytes()
    path.write_bytes(content[:kept] + b"Z" * (len(content) - kept))
    db = Database(sqlite_url)
    with pytest.raises(DatabaseDamaged, match="move the database away"), db.transaction() as tx:
        tx.scalars(select(Instance)).all()
    db.close()


@pytest.mark.parametrize("code", ["XX001", "XX002"])
def test_a_damaged_postgresql_database_says_what_to_do(migrated_postgresql: str, code: str):
    db = Database(migrated_postgresql)
    with pytest.raises(DatabaseDamaged, match=code), db.transaction() as tx:
        tx.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$"))
    db.close()


def test_a_lost_connection_is_unavailable_and_the_next_transaction_works(migrated_postgresql: str):
    db = Database(migrated_postgresql)
    with pytest.raises(StorageUnavailable), db.transaction() as tx:
        tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with db.transaction() as tx:
        assert tx.scalar(text("SELECT 1")) == 1
    db.close()


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path):
    db = Database(f"postgresql://node@/node?host={tmp_path}")
    with pytest.raises(StorageUnavailable), db.transaction() as tx:
        tx.execute(text("SELECT 1"))
    db.close()


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path):
    db = Database(f"sqlite:///{tmp_path}/nowhere/node.sqlite")
    with pytest.raises(StorageUnavailable, match="SQLITE_CANTOPEN"), db.transaction() as tx:
        tx.execute(text("SELECT 1"))
    db.close()


def test_many_threads_that_read_before_they_write_are_never_refused(archive: Archive):
    """Each adds one to a number it has read: nothing is lost, nobody is told "database is locked"."""
    archive.receive(make_dataset())

    def add_one() -> None:
        for _ in range(5):
            with archive.db.transaction() as tx:
                study = tx.get(Study, STUDY, with_for_update=True)
                assert study is not None
                study.version += 1

    threads = [threading.Thread(target=add_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with archive.db.reading() as tx:
        assert tx.scalar(select(Study.version)) == 1 + 6 * 5


FORK = """
import os, sys
from sqlalchemy import text
from storage.database import Database
db = Database(sys.argv[1])
with db.transaction() as tx:
    tx.execute(text("DELETE FROM study"))
child = os.fork()
for _ in range(20):
    with db.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_gets_connections_of_its_own(storage_url: str, repository: Path):
    done = subprocess.run([sys.executable, "-c", FORK, storage_url], cwd=repository, check=False, timeout=60)
    assert done.returncode == 0


def test_upgrade_makes_a_private_file_in_a_folder_of_its_own(tmp_path: Path):
    path = tmp_path / "home" / "db" / "node.sqlite"
    upgrade(f"sqlite:///{path}")
    upgrade(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    db = Database(f"sqlite:///{path}")
    with db.transaction() as tx:
        tx.execute(text("DELETE FROM study"))
        log = Path(f"{path}-wal")
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
    db.close()


def test_a_folder_that_cannot_be_made_is_unavailable():
    with pytest.raises(StorageUnavailable):
        upgrade("sqlite:////proc/nowhere/node.sqlite")


def test_the_current_schema_is_accepted(db: Database):
    require_current_schema(db)


def test_a_database_without_tables_names_the_command(tmp_path: Path):
    db = Database(f"sqlite:///{tmp_path}/node.sqlite")
    with pytest.raises(SchemaMismatch, match=r"without tables.*run `dicom-node migrate`"):
        require_current_schema(db)
    db.close()


def test_an_older_schema_names_the_command(db: Database):
    with db.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SchemaMismatch, match=r"at revision 0001.*run `dicom-node migrate`"):
        require_current_schema(db)
    with db.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0003'"))


def test_a_newer_schema_is_left_alone(db: Database, storage_url: str):
    with db.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="use the newer program"):
        require_current_schema(db)
    with pytest.raises(SchemaMismatch, match="use the newer program"):
        upgrade(storage_url)
    with db.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0003'"))
