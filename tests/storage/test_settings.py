"""Where the database and the files are: absolute, known, frozen, without secrets in their text."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.settings import StorageSettings


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/lib/node/node.sqlite",
        "postgresql://node@db/node",
        "postgresql+psycopg://node:secret@db:5432/node?sslmode=require",
    ],
)
def test_sqlite_and_postgresql_are_accepted(url: str):
    settings = StorageSettings(database_url=url, files_root=Path("/var/lib/node/files"))
    assert settings.database_url == url


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///node.sqlite", "four slashes"),
        ("sqlite://", "four slashes"),
        ("mysql://node@db/node", "sqlite, postgresql"),
        ("node.sqlite", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_another_database_is_refused_with_what_to_write(url: str, sentence: str):
    with pytest.raises(ValidationError, match=sentence):
        StorageSettings(database_url=url, files_root=Path("/files"))


def test_a_relative_folder_is_refused():
    with pytest.raises(ValidationError, match="absolute"):
        StorageSettings(database_url="sqlite:////node.sqlite", files_root=Path("files"))


def test_settings_do_not_change_and_do_not_tell_the_password():
    settings = StorageSettings(database_url="postgresql://node:secret@db/node", files_root=Path("/files"))
    assert "secret" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.files_root = Path("/other")
    with pytest.raises(ValidationError) as caught:
        StorageSettings(database_url="mysql://node:secret@db/node", files_root=Path("/files"))
    assert "secret" not in str(caught.value)
