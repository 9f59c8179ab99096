"""Connects; one `transaction()` context manager, one `reading()`; the database clock; migrations.

SQLite: write-ahead log, synchronous=FULL (every commit is fsynced before it returns, but for arrivals that
a journal holds: see `Writer`), foreign keys on, and
BEGIN IMMEDIATE for whatever may write: a transaction that takes the write lock first can only wait for it,
while one that reads first and then writes is refused with "database is locked" as soon as another wrote.
PostgreSQL: psycopg 3, synchronous_commit=on whatever the server's default, READ COMMITTED.
"""

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Double,
    Engine,
    case,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage.durable import disk_errors, make_durable_directory
from storage.errors import (
    DatabaseDamaged,
    DatabaseRefused,
    SchemaMismatch,
    StorageError,
    StorageFull,
    StorageUnavailable,
)

Transaction: TypeAlias = Session
DRIVER = "driver"  # key of `Session.info`: the driver's connection, where it is known to stay the same

_LOCK_TIMEOUT_S = 15.0  # nobody holds a lock for so long; who asked us waits for an answer
_LOOK_AGAIN_S = 0.0002
ANSWER_WITHIN_S = 20.0  # as settings.database_answer_s, for those without a configuration
_POOL_TIMEOUT_S = 10.0
_DISK_FULL = frozenset({"SQLITE_FULL", "53100"})  # SQLite's error name, PostgreSQL's SQLSTATE
_DAMAGED = frozenset({"SQLITE_NOTADB", "XX001", "XX002"})  # and SQLite's SQLITE_CORRUPT, in its variants
_MIGRATION_LOCK = 0x51345E6  # any number that nobody else uses for pg_advisory_xact_lock


class DatabaseNow(FunctionElement[float]):
    """The database's clock as an SQL expression."""

    inherit_cache = True
    name = "database_now"
    type = Double()


@compiles(DatabaseNow, "sqlite")
def _compile_sqlite_now(element: DatabaseNow, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ARG001 - SQLAlchemy gives it
    # unixepoch('subsec') needs SQLite 3.42; Debian 12 has 3.40. 2440587.5 is the Julian day of 1970-01-01.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseNow, "postgresql")
def _compile_postgresql_now(element: DatabaseNow, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ARG001 - SQLAlchemy gives it
    # Not now(): that is when the transaction began, which may be long before a lock was granted.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def database_now() -> DatabaseNow:
    """Seconds since 1970-01-01 UTC by the database's clock, the only clock that decides anything."""
    return DatabaseNow()


def now_after(at: InstrumentedAttribute[Any]) -> ColumnElement[float]:
    """The database's clock, but not before `at`: set back or not, nothing ends before it began."""
    return case((at > database_now(), at), else_=database_now())


class Database:
    """Holds the connections to one database; safe to share between threads and to inherit by fork."""

    def __init__(self, url: str, answer_within_s: float | None = ANSWER_WITHIN_S) -> None:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(parsed) if is_sqlite else _postgresql_engine(parsed, answer_within_s)
        self._writers: list[Writer] = []
        self._reading_engine = self._engine.execution_options(is_reading=True, postgresql_readonly=True)
        os.register_at_fork(after_in_child=partial(_forget_connections, weakref.ref(self._engine)))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open a transaction that may write: commits at the end, rolls back on any error.

        Raises
        ------
        StorageFull
            If the database has no room left.
        StorageUnavailable
            If the database cannot be reached, says nothing for 20 s, or is locked for 15 s.
        DatabaseRefused
            If a statement breaks a constraint; its message names columns, never values.
        """
        with _translated_errors(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Open a transaction that may only read; it neither waits for a writer nor makes one wait."""
        with (
            _translated_errors(),
            Session(self._reading_engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def writer(self) -> "Writer":
        """Give what the group commit of arrivals writes with."""
        writer = Writer(self, self._engine)
        self._writers.append(writer)
        return writer

    def close(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()
        self._engine.dispose()


class Writer:
    """Transactions one after the other, of one thread at a time; on SQLite always on the same connection.

    Making a session, taking a connection out of the pool and putting it back, and SQLAlchemy's own account of
    the transaction cost more than the statements of an arrival: here BEGIN and COMMIT go to the driver.
    PostgreSQL's connections are taken anew: they may be gone in between.
    """

    def __init__(self, database: Database, engine: Engine) -> None:
        self._database = database
        self._engine = engine.execution_options(is_only_writing=True)
        self._is_kept = engine.dialect.name == "sqlite"
        self._session: Session | None = None
        self._is_waiting = True  # for the disk, at a commit

    @contextmanager
    def transaction(self, *, is_journaled: bool = False) -> Iterator[Transaction]:
        """Open a transaction as `Database.transaction` does.

        `is_journaled`: until `folder` is synced, what it writes can be made again from the journal of the
        files, so SQLite's commit is not waited for. Everybody sees it at once.
        """
        if not self._is_kept:
            with self._database.transaction() as tx:
                yield tx
            return
        session, self._session = self._session, None
        if session is None:
            with _translated_errors():
                session = self._open()
        driver: sqlite3.Connection = session.info[DRIVER]
        try:
            self._wait_for_disk(driver, is_wanted=not is_journaled)
            _begin_at_once(driver)
            yield session
            session.flush()
            _run(driver, "COMMIT")
        except BaseException as error:
            if driver.in_transaction:
                driver.execute("ROLLBACK")
            _close(session)
            if isinstance(error, DBAPIError):
                raise _storage_error(error) from None
            raise
        if session.identity_map:
            session.expunge_all()
        self._session = session

    @property
    def folder(self) -> Path | None:
        """Where commits lie that were not waited for: syncing it makes them durable. None: there are none."""
        return Path(self._engine.url.database or "").parent if self._is_kept else None

    def close(self) -> None:
        """Give the connection back."""
        session, self._session = self._session, None
        if session is not None:
            _close(session)

    def _wait_for_disk(self, driver: sqlite3.Connection, *, is_wanted: bool) -> None:
        if is_wanted is not self._is_waiting:
            _run(driver, f"PRAGMA synchronous={'FULL' if is_wanted else 'NORMAL'}")
            self._is_waiting = is_wanted

    def _open(self) -> Session:
        self._is_waiting = True  # as every connection begins
        connection = self._engine.connect()
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA query_only=OFF")  # it may have been used for reading
        driver.execute("PRAGMA busy_timeout=0")  # see _begin_at_once
        session = Session(connection, expire_on_commit=False, info={DRIVER: driver})
        session.connection()  # SQLAlchemy believes in one long transaction from here on
        return session


def _begin_at_once(driver: sqlite3.Connection) -> None:
    """Wait for the write lock, looking for it more often than SQLite.

    SQLite sleeps 1, 2, 5, 10 ... 100 ms, another receiving process holds the lock for less than one: who has
    to wait would find it taken again and again.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            _run(driver, "BEGIN IMMEDIATE")
        except OperationalError as error:
            is_busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)
        else:
            return


def _run(driver: sqlite3.Connection, sql: str) -> None:
    """Execute on the driver; errors are SQLAlchemy's."""
    try:
        driver.execute(sql)
    except sqlite3.Error as error:
        raise DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True) from None


def _close(session: Session) -> None:
    connection = session.get_bind()
    session.info[DRIVER].execute("PRAGMA synchronous=FULL")
    session.info[DRIVER].execute(f"PRAGMA busy_timeout={_LOCK_TIMEOUT_S * 1000:.0f}")
    session.close()
    if isinstance(connection, Connection):
        connection.close()


def upgrade(url: str) -> None:
    """Bring the tables to this program's version; does nothing when they are; safe in several processes."""
    _create_sqlite_file(make_url(url))
    database = Database(url, answer_within_s=None)  # a step may take long over many rows
    try:
        with database.transaction() as tx:
            connection = tx.connection()
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            _refuse_newer_schema(connection)
            command.upgrade(migration_config(connection), "head")
    finally:
        database.close()


def require_current_schema(db: Database) -> None:
    """Return if the tables are those of this program.

    Raises
    ------
    SchemaMismatch
        If they are missing, older or newer; the sentence says what to do.
    """
    with db.reading() as tx:
        connection = tx.connection()
        current = MigrationContext.configure(connection).get_current_revision()
        _refuse_newer_schema(connection)
    head = ScriptDirectory.from_config(migration_config()).get_current_head()
    if current != head:
        found = f"at revision {current}" if current else "without tables"
        msg = f"the database is {found}, this program needs revision {head}: run `dicom-node migrate`"
        raise SchemaMismatch(msg)


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; a command that touches tables does so on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _refuse_newer_schema(connection: Connection) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return
    try:
        ScriptDirectory.from_config(migration_config()).get_revision(current)
    except CommandError as error:
        msg = (
            f"the database is at revision {current}, which this program does not know: use the newer program"
        )
        raise SchemaMismatch(msg) from error


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": _LOCK_TIMEOUT_S},
        hide_parameters=True,  # exceptions end up in logs, and parameters are patient attributes
        pool_size=20,  # more would be opened and closed again for every request of a busy web server
        max_overflow=30,
    )
    event.listen(engine, "connect", _prepare_sqlite_connection)
    event.listen(engine, "begin", _begin_on_sqlite)
    return engine


def _postgresql_engine(url: URL, answer_within_s: float | None) -> Engine:
    from storage import postgresql  # noqa: PLC0415 - psycopg is an extra; SQLite needs none

    lock_timeout_ms = int(_LOCK_TIMEOUT_S * 1000)
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={
            "options": f"-c synchronous_commit=on -c lock_timeout={lock_timeout_ms}",
        },
        hide_parameters=True,
        pool_pre_ping=True,
        pool_timeout=_POOL_TIMEOUT_S,
        pool_size=5,
        max_overflow=20,
    )
    event.listen(
        engine,
        "do_connect",
        lambda _dialect, _record, arguments, options: postgresql.connect(
            answer_within_s, *arguments, **options
        ),
    )
    return engine


def _prepare_sqlite_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    _enter_wal_mode(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    # DICOM matching is case-sensitive except for names, which have folded columns.
    connection.execute("PRAGMA case_sensitive_like=ON")


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for its lock here (the busy timeout does not apply), so we do.
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_on_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("is_only_writing"):
        return  # the Writer says it
    is_reading = bool(connection.get_execution_options().get("is_reading"))
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if is_reading else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _forget_connections(engine: weakref.ref[Engine]) -> None:
    # A child must not use its parent's connections, nor close them (that would end the parent's locks).
    inherited = engine()
    if inherited is not None:
        inherited.dispose(close=False)


def _create_sqlite_file(url: URL) -> None:
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    path = Path(url.database)
    with disk_errors():
        make_durable_directory(str(path.parent))
        path.touch(mode=0o600)  # the index names patients; SQLite gives its side files the same mode


@contextmanager
def _translated_errors() -> Iterator[None]:
    # `from None`: PostgreSQL repeats the whole row in its DETAIL, and tracebacks end up in logs.
    try:
        yield
    except DBAPIError as error:
        raise _storage_error(error) from None
    except PoolTimeoutError as error:
        msg = "all database connections are in use: try again later"
        raise StorageUnavailable(msg) from error


def _storage_error(error: DBAPIError) -> StorageError:
    orig = error.orig
    name = getattr(orig, "sqlite_errorname", None) or getattr(orig, "sqlstate", None)
    if name in _DISK_FULL:
        return StorageFull("the database has no room left: free disk space")
    if name in _DAMAGED or str(name).startswith("SQLITE_CORRUPT"):
        return DatabaseDamaged(
            f"the database is damaged ({name}): stop the node, and restore the backup; or move the database "
            "away (SQLite's has files beside it that end in -wal and -shm) and run `dicom-node rebuild-index`"
        )
    if isinstance(error, OperationalError | InterfaceError) and name != "SQLITE_ERROR":
        return StorageUnavailable(f"the database cannot be used now ({name or type(orig).__name__})")
    return DatabaseRefused(f"the database refused a statement ({name}: {_what_was_refused(orig)})")


def _what_was_refused(orig: BaseException | None) -> str:
    """Name tables and columns, never values."""
    if isinstance(orig, sqlite3.Error):
        return str(orig)
    found = getattr(orig, "diag", None)
    parts = (getattr(found, f"{name}_name", None) for name in ("table", "column", "constraint"))
    return " ".join([type(orig).__name__, *filter(None, parts)])
