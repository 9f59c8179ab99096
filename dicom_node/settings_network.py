"""Settings of DICOM's own network: listener, TLS, peers and destinations."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    StringConstraints,
    field_validator,
    model_validator,
)

from dicom_node.forms.form import DEFAULT_FORMS, Form, contradiction

AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[ -\[\]-~]{1,16}$", strip_whitespace=True)
]  # Source: PS3.5 6.2, VR AE: at most 16 characters, no backslash, no control characters
Host = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9.:_-]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Section(BaseModel):
    """A frozen table of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Right(StrEnum):
    """What a calling AE may ask of us; C-ECHO, and our own confirmations coming back, are for everybody."""

    STORE = "store"
    QUERY = "query"
    RETRIEVE = "retrieve"
    COMMIT = "commit"


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
    others_may: tuple[Right, ...] = Field(
        default=(Right.STORE,),
        description="What an AE that is not among the peers may ask: store, query, retrieve, commit.",
    )
    max_matches: int = Field(
        default=1000,
        ge=1,
        le=9999,
        description="Most matches of one C-FIND; beyond them it ends with 0xA700.",
    )
    max_associations: int = Field(
        default=20, ge=1, le=1000, description="Associations open at the same time."
    )
    max_associations_per_address: int | None = Field(
        default=None,
        ge=1,
        description="Of these, from one address; empty = four fifths, so that one peer cannot take all.",
    )
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description="Networks that may connect, such as 10.1.0.0/16; empty = every address."
    )
    verify_peer_address: bool = Field(
        default=False,
        description="A calling AE title that belongs to a peer or destination must come from its host.",
    )
    storage_classes: Literal["all", "standard"] = Field(
        default="all",
        description="Take instances of private and unknown SOP classes too (all), or of PS3.4's only.",
    )
    processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Processes that receive at the same port; 0 = one for each core, at most two.",
    )
    max_pdu: int = Field(
        default=131072,
        ge=0,
        le=1048576,
        description="Largest PDU we receive, in bytes: 0 = any, otherwise at least 4096.",
    )
    pdu_timeout_s: float = Field(
        default=15.0, gt=0, le=600, description="Longest time that one PDU may take to come in, in seconds."
    )
    acse_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Wait for association messages, in seconds."
    )
    network_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Wait for a silent peer, in seconds."
    )

    @field_validator("max_pdu")
    @classmethod
    def _holds_a_command(cls, size: int) -> int:
        if 0 < size < 4096:
            raise ValueError("must be 0 (any size) or at least 4096")
        return size

    @property
    def process_count(self) -> int:
        """Processes that receive."""
        return self.processes or min(2, os.cpu_count() or 1)

    @property
    def max_of_one_address(self) -> int:
        """Associations that one address may have at the same time."""
        return self.max_associations_per_address or self.max_associations - self.max_associations // 5


class TlsSettings(Section):
    """DICOM over TLS, after BCP 195: TLS 1.2 or 1.3, forward secrecy, authenticated encryption."""

    listen: bool = Field(default=False, description="Listen with TLS too, on a port of its own.")
    port: Port = Field(default=2762, description="TCP port of the DICOM listener with TLS.")
    is_required: bool = Field(default=False, description="Close the port without TLS (dimse.port).")
    certificate: Path | None = Field(
        default=None, description="Our certificate with its chain, PEM; shown to callers and to called peers."
    )
    key: Path | None = Field(
        default=None, description="Its private key, PEM without passphrase, not readable by others."
    )
    trusted: Path | None = Field(
        default=None, description="Certificates of the authorities whose peers we believe, PEM."
    )
    client_certificate: Literal["required", "none"] = Field(
        default="required", description="Whether a calling peer must show a certificate of `trusted`."
    )
    binds_ae_title: bool = Field(
        default=False,
        description="The calling AE title must be the common name, or a DNS name, of the peer's certificate.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.is_required and not self.listen:
            raise ValueError("is_required needs listen = true")
        return self


class Destination(Section):
    """A peer that results are sent to."""

    name: Name = Field(description="Name of the destination; stands in deliveries and logs.")
    ae_title: AeTitle = Field(description="AE title of the destination.")
    host: Host = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")
    tls: bool = Field(default=False, description="Call it with TLS (section tls), and never without.")
    commitment: bool = Field(
        default=False, description="Ask it for Storage Commitment; a result is kept until it is confirmed."
    )
    concurrency: int = Field(default=1, ge=1, le=16, description="Associations with it at the same time.")
    forms: tuple[Form, ...] = Field(
        default=DEFAULT_FORMS,
        min_length=1,
        description="What it gets of a result: SEG (or SEG_LABELMAP, or SEG_FRACTIONAL), SR, SC (key images "
        "with the contour burnt in), GSPS, KOS, PDF.",
    )

    reports_unmatched: bool = Field(
        default=False,
        description="Send it a small SR, too, for every study that no rule matches, saying that it was not "
        "analysed and why; needs SR among `forms`. Meant for nodes that get only what is to be analysed.",
    )

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        if self.reports_unmatched and Form.SR not in self.forms:
            raise ValueError("reports_unmatched needs SR among forms: the report is one")
        return self

    @field_validator("forms")
    @classmethod
    def _go_together(cls, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        if (why_not := contradiction(forms)) is not None:
            raise ValueError(why_not)
        return forms


class PeerSettings(Section):
    """A remote AE that we know by name."""

    name: Name = Field(description="Name of the peer, for `dicom-node echo NAME`.")
    ae_title: AeTitle = Field(description="AE title of the peer.")
    host: Host = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")
    tls: bool = Field(default=False, description="Call it with TLS (section tls), and never without.")
    may: tuple[Right, ...] = Field(
        default=tuple(Right), description="What it may ask of us: store, query, retrieve, commit."
    )
