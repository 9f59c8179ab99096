"""StorageSettings: where the database and the Part 10 files are. Frozen."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_BACKENDS = ("sqlite", "postgresql")


class StorageSettings(BaseModel):
    """Where the index and the files live; both absolute, so that the working directory never matters."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: str = Field(repr=False, description="SQLAlchemy URL: sqlite:////... or postgresql://...")
    files_root: Path = Field(description="Folder of the Part 10 files.")

    @field_validator("files_root")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            msg = "files_root must be an absolute path"
            raise ValueError(msg)
        return value

    @field_validator("database_url")
    @classmethod
    def _is_known_database(cls, value: str) -> str:
        try:
            url = make_url(value)
        except ArgumentError as error:
            msg = "database_url is not a URL such as sqlite:////var/lib/node/node.db or postgresql://user@host/name"
            raise ValueError(msg) from error
        if url.get_backend_name() not in _BACKENDS:
            msg = f"database_url must begin with one of {', '.join(_BACKENDS)}"
            raise ValueError(msg)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_absolute():
            msg = "database_url of SQLite needs an absolute path (four slashes: sqlite:////var/lib/node/node.db)"
            raise ValueError(msg)
        return value
