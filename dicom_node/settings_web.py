"""Settings of the web server: where it listens, who may use it, and the OpenID provider that it believes."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, StringConstraints, model_validator

from dicom_node.settings_network import Host, Port, Section

RoleOfValue = Annotated[str, StringConstraints(pattern=r"^[^=]{1,256}=[a-z]{1,16}$")]
LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


class Role(StrEnum):
    """What somebody may do by HTTP; one may have several."""

    VIEWER = "viewer"  # search, retrieve, OHIF, questions
    SENDER = "sender"  # store instances; create and perform workitems
    OPERATOR = (
        "operator"  # requeue, redeliver, cancel, the operator's pages; and what viewers and monitors may
    )
    MONITOR = "monitor"  # metrics, and why the node is not ready


class HttpSettings(Section):
    """DICOMweb, the operator's pages and the viewer."""

    host: Host = Field(
        default="127.0.0.1",
        description="Address to listen on; another than this machine's own needs login = required.",
    )
    port: Port = Field(default=8080, description="TCP port of the web server.")
    tls: bool = Field(
        default=False,
        description="Answer with HTTPS, with tls.certificate and tls.key, and never without.",
    )
    login: Literal["none", "required"] = Field(
        default="none",
        description="Whether everybody must say who they are: a token, a user's password, or a token of the "
        "OpenID provider (section oidc). `dicom-node users` makes tokens and users.",
    )
    open_to_everyone: bool = Field(
        default=False,
        description="Needed for login = none at an address that others reach: whoever connects reads every "
        "patient's images, sends images, and works the node as its operator does.",
    )
    behind_tls_proxy: bool = Field(
        default=False,
        description="A proxy in front of us answers HTTPS for us: passwords and cookies are taken over plain "
        "HTTP then, and the proxy says who called (X-Forwarded-For, X-Forwarded-Proto).",
    )
    proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=LOOPBACK, description="With behind_tls_proxy: the addresses whose word on that is taken."
    )
    session_hours: float = Field(
        default=10.0, gt=0, le=168, description="A browser must log in again after so many hours."
    )
    allowed_hosts: tuple[Host, ...] = Field(
        default=(),
        description="Names, besides `host` and localhost, by which a browser may log in and ask for changes.",
    )
    max_body_mb: int = Field(default=1024, ge=1, le=65536, description="Largest body of a request, in MiB.")
    processes: int = Field(
        default=2, ge=1, le=64, description="Processes that answer at the same port, one core each."
    )
    metadata_cache_mb: int = Field(
        default=2048,
        ge=1,
        description="Disk for rendered metadata below the home, in MiB; it may be deleted at any time.",
    )

    @property
    def takes_passwords(self) -> bool:
        """Whether passwords and cookies travel where nobody else reads them."""
        return self.tls or self.behind_tls_proxy or is_loopback(self.host)

    @property
    def has_https(self) -> bool:
        """Whether browsers come by HTTPS, to us or to the proxy."""
        return self.tls or self.behind_tls_proxy

    @model_validator(mode="after")
    def _is_open_on_purpose(self) -> Self:
        if self.login == "none" and not is_loopback(self.host) and not self.open_to_everyone:
            raise ValueError(
                f"without a log-in, everybody who reaches {self.host} would read and change everything: set "
                'login = "required", or host = "127.0.0.1", or open_to_everyone = true if that is meant'
            )
        return self


class OidcSettings(Section):
    """Tokens (JWT) of an OpenID provider, sent as `Authorization: Bearer`."""

    issuer: str | None = Field(
        default=None, description="Address of the provider, as its tokens name it (iss); empty = none."
    )
    audience: str | None = Field(
        default=None, description="What the provider calls this node: must be among the token's aud."
    )
    roles_claim: str = Field(
        default="roles",
        min_length=1,
        description="Claim with the roles or groups; dots go inside: realm_access.roles.",
    )
    roles: tuple[RoleOfValue, ...] = Field(
        default=(),
        description='Which value gives which role: ["radiologists=viewer"]; empty = values are role names.',
    )
    trusted: Path | None = Field(
        default=None,
        description="Authorities that sign the provider's certificate, PEM; empty = the machine's.",
    )

    @property
    def role_of(self) -> dict[str, list[Role]]:
        """Roles by value of the claim."""
        found: dict[str, list[Role]] = {}
        for entry in self.roles or tuple(f"{role}={role}" for role in Role):
            value, _, role = entry.rpartition("=")
            found.setdefault(value, []).append(Role(role))
        return found

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for entry in self.roles:
            if (named := entry.rpartition("=")[2]) not in set(Role):
                raise ValueError(f"roles: {named!r} is no role; there are {', '.join(Role)}")
        if self.issuer is None:
            return self
        if not self.audience:
            raise ValueError("audience is needed with issuer: tokens made for others must not be good here")
        if not is_private(self.issuer):
            raise ValueError("issuer: must be an https:// address")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(url: str) -> bool:
    """Whether nobody on the way reads or changes what is fetched from an address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))
