"""Settings of the audit trail."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from dicom_node.settings_network import Host, Port, Section

SYSLOG_PORTS: Final = {"tls": 6514, "udp": 514}  # Source: RFC 5425 4.1, RFC 5426 3.3
Label = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,64}$", strip_whitespace=True)]


class AuditSettings(Section):
    """The audit trail (PS3.15 A.5), and where it is sent."""

    enabled: bool = Field(default=True, description="Keep an audit trail.")
    folder: Path | None = Field(
        default=None, description="Folder of the trail, on a disk of its own if you like; empty = HOME/audit."
    )
    patient_ids: bool = Field(
        default=False,
        description="Write Patient ID, name and queries in full, as PS3.15 wants; otherwise UIDs only.",
    )
    source_id: Label | None = Field(
        default=None, description="Audit Source ID of our messages; empty = our AE title."
    )
    enterprise_site: Label | None = Field(
        default=None, description="Audit Enterprise Site ID of our messages."
    )
    segment_mb: float = Field(
        default=16.0,
        ge=0.01,
        le=1024,
        description="Size at which the next file of the trail begins, in MiB.",
    )
    keep_days: float = Field(
        default=365.0,
        gt=0,
        le=36500,
        description="Files of the trail are removed after so many days, but not before they were sent.",
    )
    when_full: Literal["go on", "refuse"] = Field(
        default="go on",
        description="When the trail cannot be written: say so, and go on; or take no images until it can.",
    )
    access_again_s: float = Field(
        default=300.0,
        ge=0,
        le=86400,
        description="A study read again from the same address is a new record after so many seconds.",
    )
    syslog: Literal["off", "tls", "udp"] = Field(
        default="off",
        description="Send the trail to an audit record repository: RFC 5425 (tls) or 5426 (udp).",
    )
    syslog_host: Host | None = Field(default=None, description="Host name or address of the repository.")
    syslog_port: Port | None = Field(default=None, description="Its port; empty = 6514 for tls, 514 for udp.")
    certificate: Path | None = Field(
        default=None, description="What we show the repository, PEM; empty = tls.certificate and tls.key."
    )
    key: Path | None = Field(default=None, description="The private key of that, PEM without passphrase.")
    trusted: Path | None = Field(
        default=None, description="Authorities whose repository we believe, PEM; empty = tls.trusted."
    )

    @property
    def port(self) -> int:
        """The port of the repository."""
        return self.syslog_port or SYSLOG_PORTS.get(self.syslog, SYSLOG_PORTS["tls"])

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.syslog != "off" and self.syslog_host is None:
            raise ValueError("syslog needs syslog_host: the repository to send to")
        if self.syslog != "off" and not self.enabled:
            raise ValueError("syslog needs enabled = true: what is not kept cannot be sent")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self
