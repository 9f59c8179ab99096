"""Settings of the network side: listener, web server, peers and destinations."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[ -\[\]-~]{1,16}$", strip_whitespace=True)
]  # Source: PS3.5 6.2, VR AE: at most 16 characters, no backslash, no control characters
Host = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9.:_-]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Section(BaseModel):
    """A frozen table of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DimseSettings(Section):
    """The DICOM listener."""

    ae_title: AeTitle = Field(default="SIM4SEG", description="Our AE title, at most 16 characters.")
    host: Host = Field(
        default="127.0.0.1",
        description="Address to listen on; AE titles are no authentication, so local by default.",
    )
    port: Port = Field(default=11112, description="TCP port of the DICOM listener.")
    require_called_ae: bool = Field(
        default=True, description="Refuse associations that call another AE title than ours."
    )
    allowed_calling_aes: tuple[AeTitle, ...] = Field(
        default=(), description="AE titles that may send to us; empty = anybody."
    )
    max_associations: int = Field(
        default=20, ge=1, le=1000, description="Associations open at the same time."
    )
    max_pdu: int = Field(default=131072, ge=4096, le=1048576, description="Largest PDU we receive, in bytes.")
    acse_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Wait for association messages, in seconds."
    )
    network_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Wait for a silent peer, in seconds."
    )


class HttpSettings(Section):
    """DICOMweb, the operator's pages and the viewer."""

    host: Host = Field(
        default="127.0.0.1", description="Address to listen on; there is no log-in, so local by default."
    )
    port: Port = Field(default=8080, description="TCP port of the web server.")
    max_body_mb: int = Field(default=1024, ge=1, le=65536, description="Largest body of a request, in MiB.")


class Destination(Section):
    """A peer that results are sent to."""

    name: Name = Field(description="Name of the destination; stands in deliveries and logs.")
    ae_title: AeTitle = Field(description="AE title of the destination.")
    host: Host = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")


class PeerSettings(Section):
    """A remote AE that we know by name."""

    name: Name = Field(description="Name of the peer, for `dicom-node echo NAME`.")
    ae_title: AeTitle = Field(description="AE title of the peer.")
    host: Host = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")
