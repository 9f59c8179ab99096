"""Who may associate, and how many at a time: decided by the A-ASSOCIATE-RQ and the address it came from.

An AE title is a name, not a credential: what keeps strangers out is the network, or TLS with certificates.

Source: PS3.8 9.3.4 (A-ASSOCIATE-RJ: results, sources and reasons).
"""

import ipaddress
import logging
import socket
import threading
from collections import Counter
from typing import Final

from dicom_node.audit.events import Node
from dicom_node.audit.trail import trail_of
from dicom_node.dimse.pdu import APPLICATION_CONTEXT, AssociateRequest, Rejection
from dicom_node.pressure import Pressure
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination, PeerSettings

CONGESTED: Final = Rejection(2, 3, 1)  # transient, by the provider: temporary congestion
LIMIT_EXCEEDED: Final = Rejection(2, 3, 2)  # transient, by the provider: local limit exceeded
CALLING_UNKNOWN: Final = Rejection(1, 1, 3)
CALLED_UNKNOWN: Final = Rejection(1, 1, 7)
CONTEXT_UNKNOWN: Final = Rejection(1, 1, 2)  # application context name
VERSION_UNKNOWN: Final = Rejection(1, 2, 2)  # protocol version

logger = logging.getLogger(__name__)


class Admission:
    """Counts the associations of the node; safe to share between threads."""

    def __init__(self, settings: NodeSettings, pressure: Pressure) -> None:
        self._settings = settings.dimse
        self._pressure = pressure
        self._audit = trail_of(settings)
        self._hosts = _known_hosts(settings) if settings.dimse.verify_peer_address else {}
        self._lock = threading.Lock()
        self._of_address = Counter[str]()
        self._total = 0

    @property
    def total(self) -> int:
        """Associations that are open."""
        return self._total

    def refuse(self, request: AssociateRequest, address: str) -> Rejection | None:
        """Say why the association is refused, by what it asks and by whom; None = it may come in."""
        rejection = self._judge(request, address)
        if rejection is not None:
            why = f"association rejected {rejection.result}/{rejection.source}/{rejection.reason}"
            self._audit.refused(Node(request.calling_ae, address), why)
        return rejection

    def _judge(self, request: AssociateRequest, address: str) -> Rejection | None:
        if not request.protocol_version & 1:
            return VERSION_UNKNOWN
        if request.application_context != APPLICATION_CONTEXT:
            return CONTEXT_UNKNOWN
        if self._settings.require_called_ae and request.called_ae != self._settings.ae_title:
            return CALLED_UNKNOWN
        if not self._is_known(request.calling_ae, address):
            return CALLING_UNKNOWN
        return None

    def enter(self, address: str) -> Rejection | None:
        """Take a place for an association from `address`; None = it is taken, and `leave` gives it back."""
        if (problem := self._pressure.soft_problem()) is not None:
            logger.warning("association refused", extra={"reason": problem})
            return CONGESTED
        with self._lock:
            is_full = self._total >= self._settings.max_associations
            if is_full or self._of_address[address] >= self._settings.max_of_one_address:
                return LIMIT_EXCEEDED
            self._of_address[address] += 1
            self._total += 1
        return None

    def leave(self, address: str) -> None:
        """Give the place back."""
        with self._lock:
            self._total -= 1
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def _is_known(self, calling_ae: str, address: str) -> bool:
        allowed = self._settings.allowed_calling_aes
        if not calling_ae or (allowed and calling_ae not in allowed):
            return False
        networks = self._settings.allowed_networks
        if networks and not any(ipaddress.ip_address(address) in network for network in networks):
            return False
        return calling_ae not in self._hosts or address in self._hosts[calling_ae]


def _known_hosts(settings: NodeSettings) -> dict[str, set[str]]:
    """The addresses of every peer and destination by AE title, looked up once, when the node starts."""
    found: dict[str, set[str]] = {}
    known: tuple[Destination | PeerSettings, ...] = (*settings.peers, *settings.destinations)
    for peer in known:
        found.setdefault(peer.ae_title, set()).update(_addresses_of(peer.host))
    return found


def _addresses_of(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        logger.warning("a peer's host name is not known: nobody may call as this peer", extra={"peer": host})
        return set()
