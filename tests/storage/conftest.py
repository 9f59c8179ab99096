"""Fixtures of storage: every test of rows runs on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database, upgrade
from storage.tables import Table
from tests.storage.builders import Archive
from tests.storage.postgresql_server import create_database, running_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a running PostgreSQL, with NAME in place of the database."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the current schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "node.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str) -> str:
    """The URL of a PostgreSQL database with the current schema, to be emptied."""
    url = create_database(postgresql, "migrated")
    upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database with the current schema, once for each kind."""
    if request.param == "sqlite":
        path = tmp_path / "node.sqlite"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    url = str(request.getfixturevalue("migrated_postgresql"))
    empty(url)
    return url


@pytest.fixture
def db(storage_url: str) -> Iterator[Database]:
    opened = Database(storage_url)
    yield opened
    opened.close()


@pytest.fixture
def archive(db: Database, files_root: Path) -> Archive:
    """The database and the files, with shorthands to put instances in."""
    return Archive(db, files_root)


def empty(url: str) -> None:
    """Delete every row; a new database would take a hundred times as long."""
    opened = Database(url)
    with opened.transaction() as tx:
        for table in reversed(Table.metadata.sorted_tables):
            tx.execute(table.delete())
    opened.close()
