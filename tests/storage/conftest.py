"""Fixtures of storage: every test of rows runs on SQLite and on PostgreSQL."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from storage.database import Database, upgrade
from tests.storage.builders import Archive
from tests.storage.postgresql_server import running_postgresql

MakeUrl = Callable[[], str]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a running PostgreSQL, with NAME in place of the database."""
    with running_postgresql() as url:
        create_database(url, "migrated")
        upgrade(url.replace("NAME", "migrated"))
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the current schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "node.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


def create_database(url: str, name: str, template: str = "template1") -> None:
    server = make_url(url.replace("NAME", "postgres"))
    arguments = {"host": server.query["host"], "user": server.username, "dbname": server.database}
    with psycopg.connect(**arguments, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database with the current schema, once for each kind."""
    if request.param == "sqlite":
        path = tmp_path / "node.sqlite"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    name = f"test_{uuid.uuid4().hex}"
    server = request.getfixturevalue("postgresql")
    create_database(server, name, "migrated")
    return str(server.replace("NAME", name))


@pytest.fixture
def db(storage_url: str) -> Iterator[Database]:
    opened = Database(storage_url)
    yield opened
    opened.close()


@pytest.fixture
def archive(db: Database, files_root: Path) -> Archive:
    """The database and the files, with shorthands to put instances in."""
    return Archive(db, files_root)
