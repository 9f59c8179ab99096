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
    database_answer_s: float = Field(
        default=20.0,
        ge=1,
        le=3600,
        description="A PostgreSQL server that says nothing for so long counts as down, in seconds.",
    )
    files_root: Path = Field(
        description="Folder of the Part 10 files; with a bucket, of files coming in and fetched."
    )
    s3_bucket: str | None = Field(
        default=None,
        min_length=3,
        max_length=63,
        description="Bucket of the Part 10 files; empty = files_root. Credentials: where boto3 finds them.",
    )
    s3_prefix: str = Field(default="", max_length=200, description="What every key begins with.")
    s3_endpoint_url: str | None = Field(
        default=None, description="Address of an S3 server that is not Amazon's, e.g. https://s3.example.org."
    )
    s3_region: str | None = Field(default=None, description="Region of the bucket.")
    s3_cache_mb: int = Field(
        default=1024, ge=1, description="Room for fetched files under files_root/fetched, in MiB."
    )

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
