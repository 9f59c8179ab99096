"""Opens associations with peers: timeouts, role selection, and TLS where the peer is set up for it.

Source: PS3.8 7.1 (A-ASSOCIATE), PS3.7 D.3.3.4 (SCP/SCU role selection).
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from dicom_node.announced import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.answers import Answer, Kind
from dicom_node.errors import AssociationRejected, PeerUnreachable
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import TlsSettings
from dicom_node.tls import client_context

MAX_PDU: Final = 131072
CONNECT_TIMEOUT_S: Final = 10.0
RESPONSE_TIMEOUT_S: Final = 60.0  # a PACS may take long over a big instance, but not for ever


class Peer(Protocol):
    """A remote AE; the sections `peers` and `destinations` of the configuration are such."""

    @property
    def ae_title(self) -> str:
        """Its AE title."""

    @property
    def host(self) -> str:
        """Its host name or address."""

    @property
    def port(self) -> int:
        """Its TCP port."""

    @property
    def tls(self) -> bool:
        """Whether it is called with TLS."""


@dataclass(frozen=True)
class Caller:
    """Who we are to the peers that we call, and how long we wait for them."""

    ae_title: str
    tls: TlsSettings = field(default_factory=TlsSettings)
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    response_timeout_s: float = RESPONSE_TIMEOUT_S


@dataclass(frozen=True)
class Proposal:
    """What an association is for."""

    contexts: Sequence[PresentationContext]
    scp_of: Sequence[str] = ()  # SOP classes whose SCP we are on an association of our own (C-GET, N-EVENT)
    handlers: Sequence[EventHandlerType] = ()


def caller_of(settings: NodeSettings) -> Caller:
    """The caller of a configuration."""
    return Caller(settings.dimse.ae_title, settings.tls)


@contextmanager
def associated(peer: Peer, caller: Caller, proposal: Proposal) -> Iterator[Association]:
    """Hold an association with `peer`; it is released at the end.

    When the peer accepts none of the contexts, pynetdicom has ended it already.

    Raises
    ------
    PeerUnreachable, AssociationRejected, TlsUnusable
        If there is none to be had; `answer` says how that ended.
    """
    ae, noted = _our_ae(caller), _Noted()
    try:
        association = ae.associate(
            peer.host,
            peer.port,
            contexts=list(proposal.contexts),
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU,
            ext_neg=[build_role(uid, scp_role=True) for uid in proposal.scp_of],
            tls_args=(client_context(caller.tls), peer.host) if peer.tls else None,
            evt_handlers=[*noted.handlers, *proposal.handlers],
        )
    except socket.gaierror as error:
        raise PeerUnreachable(f"the host {peer.host} is unknown", Answer(Kind.UNKNOWN_HOST)) from error
    if association.is_rejected:
        ae.close_socket()
        raise AssociationRejected(
            f"{peer.ae_title} refused the association; is {caller.ae_title} registered there?",
            Answer(Kind.REJECTED, noted.rejection),
        )
    if not association.is_established and not association.rejected_contexts:
        ae.close_socket()
        answer = noted.why_not(peer, ae)
        hint = "; do both sides trust each other's certificates?" if answer.kind is Kind.NO_TLS else ""
        raise PeerUnreachable(f"no association with {peer.ae_title} at {peer.host}:{peer.port}{hint}", answer)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            ae.close_socket()


class _Noted:
    """What was seen of one association while it was asked for."""

    def __init__(self) -> None:
        self.rejection: tuple[int, ...] = (1, 1, 1)
        self._abort: tuple[int, ...] | None = None
        self._is_open = False
        self._started = time.monotonic()

    @property
    def handlers(self) -> list[EventHandlerType]:
        """The handlers to bind."""
        return [(evt.EVT_CONN_OPEN, self.open), (evt.EVT_PDU_RECV, self.receive)]

    def open(self, event: evt.Event) -> None:
        """The TCP connection stands."""
        del event
        self._is_open = True

    def receive(self, event: evt.Event) -> None:
        """A PDU has come."""
        pdu = event.pdu
        if isinstance(pdu, A_ASSOCIATE_RJ):
            self.rejection = (int(pdu.result or 0), int(pdu.source or 0), int(pdu.reason_diagnostic or 0))
        if isinstance(pdu, A_ABORT_RQ):
            self._abort = (int(pdu.source or 0), int(pdu.reason_diagnostic or 0))

    def why_not(self, peer: Peer, ae: AE) -> Answer:
        """Why there is no association, though it was not rejected."""
        waited_s = time.monotonic() - self._started
        if self._abort is not None:
            return Answer(Kind.ABORTED, self._abort)
        if self._is_open:
            is_late = waited_s >= (ae.acse_timeout or 0)
            return Answer(Kind.ASSOCIATE_TIMEOUT if is_late else Kind.LOST)
        if waited_s >= (ae.connection_timeout or 0):
            return Answer(Kind.CONNECT_TIMEOUT)
        return Answer(_why_no_connection(peer, ae.connection_timeout or CONNECT_TIMEOUT_S))


def _why_no_connection(peer: Peer, timeout_s: float) -> Kind:
    """Connect once more, since pynetdicom does not say what was wrong."""
    try:
        socket.create_connection((peer.host, peer.port), timeout=timeout_s).close()
    except socket.gaierror:
        return Kind.UNKNOWN_HOST
    except TimeoutError:
        return Kind.CONNECT_TIMEOUT
    except OSError:
        return Kind.NO_CONNECTION
    return Kind.NO_TLS if peer.tls else Kind.NO_CONNECTION


class _CallingAE(AE):
    """An AE that can close its socket: pynetdicom forgets that of a refused connection unclosed."""

    _opened: socket.socket | None = None

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        created = super()._create_socket(*arguments)
        self._opened = created.socket
        return created

    def close_socket(self) -> None:
        """Close it, if there is one."""
        if self._opened is not None:
            self._opened.close()


def _our_ae(caller: Caller) -> _CallingAE:
    ae = _CallingAE(caller.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = caller.connect_timeout_s
    ae.acse_timeout = caller.connect_timeout_s
    ae.dimse_timeout = caller.response_timeout_s
    ae.network_timeout = caller.response_timeout_s
    return ae
