"""NodeSettings: AE title, ports, peers, limits, quiet periods. Frozen; from TOML and environment."""

import os
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from dicom_node.audit.settings import AuditSettings
from dicom_node.default_routes import DEFAULT_ROUTES
from dicom_node.routing import Route
from dicom_node.settings_network import (
    Destination,
    DimseSettings,
    PeerSettings,
    TlsSettings,
)
from dicom_node.settings_web import HttpSettings, OidcSettings
from dicom_node.settings_work import (
    BrokerSettings,
    CompletionSettings,
    DeliverySettings,
    IdentitySettings,
    JobSettings,
    LimitSettings,
    LogSettings,
    QuestionSettings,
    RetentionSettings,
    ServeSettings,
    SweepSettings,
    ViewerSettings,
)
from inference.settings import InferenceSettings
from storage.settings import StorageSettings

ENV_PREFIX = "DICOM_NODE_"
MAX_PUT_MB = 5120  # Source: Amazon S3, PutObject: 5 GB
COMMAND_VARIABLES = frozenset({"DICOM_NODE_HOME", "DICOM_NODE_CONFIG"})  # read by the command line


class BadConfiguration(Exception):
    """The configuration cannot be used; the message is one sentence that names the key."""


class NodeSettings(BaseSettings):
    """Everything that can be configured; sections are tables of the TOML file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(description="Folder that holds all state of the node; set by --home.")
    dimse: DimseSettings = Field(default_factory=DimseSettings, description="The DICOM listener.")
    tls: TlsSettings = Field(default_factory=TlsSettings, description="DICOM over TLS.")
    http: HttpSettings = Field(default_factory=HttpSettings, description="The web server.")
    oidc: OidcSettings = Field(
        default_factory=OidcSettings, description="Tokens of an OpenID provider, where http.login = required."
    )
    storage: StorageSettings = Field(description="Database and files.")
    completion: CompletionSettings = Field(
        default_factory=CompletionSettings, description="When a study counts as complete."
    )
    sweep: SweepSettings = Field(
        default_factory=SweepSettings, description="The loop that wakes what is due."
    )
    serve: ServeSettings = Field(
        default_factory=ServeSettings, description="How the processes of the node are tended."
    )
    broker: BrokerSettings = Field(default_factory=BrokerSettings, description="Celery's broker.")
    identity: IdentitySettings = Field(
        default_factory=IdentitySettings, description="Whose images these are, and which of them count."
    )
    retention: RetentionSettings = Field(
        default_factory=RetentionSettings, description="How long studies are kept."
    )
    jobs: JobSettings = Field(default_factory=JobSettings, description="How jobs are run.")
    questions: QuestionSettings = Field(
        default_factory=QuestionSettings, description="What a person may ask."
    )
    delivery: DeliverySettings = Field(default_factory=DeliverySettings, description="How results are sent.")
    inference: InferenceSettings = Field(
        default_factory=InferenceSettings, description="Models and how they run."
    )
    limits: LimitSettings = Field(default_factory=LimitSettings, description="What the node takes in.")
    viewer: ViewerSettings = Field(default_factory=ViewerSettings, description="OHIF at the web root.")
    audit: AuditSettings = Field(
        default_factory=AuditSettings, description="The audit trail (PS3.15 A.5), and where it is sent."
    )
    logs: LogSettings = Field(default_factory=LogSettings, description="JSON logs.")
    destinations: tuple[Destination, ...] = Field(default=(), description="Peers that results are sent to.")
    peers: tuple[PeerSettings, ...] = Field(default=(), description="Remote AEs known by name.")
    routes: tuple[Route, ...] = Field(
        default=DEFAULT_ROUTES,
        description="Rules that choose model and question; the first that matches a series wins.",
    )

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may be asked for: those of the rules first, each once."""
        return tuple(dict.fromkeys([*(route.model for route in self.routes), *self.questions.models]))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file (handed over as init arguments); no .env file."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @model_validator(mode="before")
    @classmethod
    def _place_storage_under_home(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Database, files and engines are absolute; what is not given lies under `home`."""
        home = Path(data["home"])
        storage = dict(data.get("storage") or {})
        storage["files_root"] = home / storage.get("files_root", "files")
        storage.setdefault("database_url", f"sqlite:///{home / 'node.sqlite'}")
        inference = data.get("inference") or {}
        if isinstance(inference, dict):
            inference = {"prepared_root": home / "engines", **inference}
        return {**data, "storage": storage, "inference": inference}

    @model_validator(mode="after")
    def _instances_fit_the_bucket(self) -> Self:
        if self.storage.s3_bucket is not None and self.limits.max_instance_mb > MAX_PUT_MB:
            raise ValueError(f"limits.max_instance_mb: a bucket takes {MAX_PUT_MB} MiB in one piece")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for key in ("destinations", "peers", "routes"):
            names = [entry.name for entry in getattr(self, key)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: the name {twice[0]!r} stands there twice")
        return self


def load_settings(home: Path, config: Path | None = None) -> NodeSettings:
    """Read the configuration: environment over `config` over defaults.

    Without `config`, HOME/node.toml is read if it is there.

    Raises
    ------
    BadConfiguration
        With one sentence that names the key and what is wrong with it.
    """
    home = home.absolute()
    file = _read_toml(config if config is not None else home / "node.toml", is_required=config is not None)
    if "home" in file:
        raise BadConfiguration("home: cannot stand in the file; give it with --home.")
    _refuse_unknown_variables()
    try:
        return NodeSettings(**{**file, "home": home})
    except ValidationError as error:
        raise BadConfiguration(_sentence(error, config)) from error
    except SettingsError as error:
        raise BadConfiguration(f"environment: {error}; lists and tables are given as JSON.") from error


def _read_toml(path: Path, *, is_required: bool) -> dict[str, Any]:
    if not is_required and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: is not TOML ({error}).") from error


def _refuse_unknown_variables() -> None:
    for variable in sorted(os.environ):
        if not variable.startswith(ENV_PREFIX) or variable in COMMAND_VARIABLES:
            continue
        section = variable[len(ENV_PREFIX) :].split("__")[0].lower()
        if section not in NodeSettings.model_fields or section == "home":
            raise BadConfiguration(f"{variable}: there is no setting of this name.")


def _sentence(error: ValidationError, config: Path | None) -> str:
    """The first thing wrong, by its key; the value is not repeated, it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    what = "there is no setting of this name" if first["type"] == "extra_forbidden" else first["msg"]
    where = f" (in {config} or {ENV_PREFIX}...)" if config is not None else ""
    return f"{key + ': ' if key else ''}{what.removeprefix('Value error, ')}{where}."
