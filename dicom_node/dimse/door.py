"""Vetted connections in one process: our own loop for C-ECHO and C-STORE, pynetdicom for the rest.

One thread for each association. The process may be the only one, or one of several at the same port.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dicom_node.announced import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.audit.events import Node
from dicom_node.audit.trail import trail_of
from dicom_node.dimse import pdu
from dicom_node.dimse.acceptor import Acceptor
from dicom_node.dimse.admission import CALLING_UNKNOWN, Admission
from dicom_node.dimse.dimse_command import Answer
from dicom_node.dimse.inflow import InflowLimits, set_timeout
from dicom_node.dimse.negotiation import ACCEPTED, answer_contexts, is_ours
from dicom_node.dimse.rights import rights_of
from dicom_node.dimse.store_scp import Accepted, StoreServices, StoringAssociation
from dicom_node.dimse.vetting import Vetted
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Right
from dicom_node.tls import listening_context, may_call_itself
from storage.database import Database

DRAIN_S: Final = 20.0  # a C-STORE under way may take so long to end, once the node is told to
IMPLEMENTATION: Final = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoorServices:
    """What a process opens once for all its associations."""

    receiver: Receiver
    database: Database
    admission: Admission  # for what can only be read after a TLS handshake
    guard: Callable[[Callable[[], Answer]], Answer]


class Door:
    """Serves the associations of this process."""

    def __init__(self, settings: NodeSettings, services: DoorServices) -> None:
        self._settings = settings
        self._services = services
        self._acceptor = Acceptor(settings, services.receiver, services.database)
        self._tls = listening_context(settings)
        self._audit = trail_of(settings)
        self._lock = threading.Lock()
        self._storing: dict[socket.socket, StoringAssociation] = {}
        self._threads = set[threading.Thread]()

    def start(self) -> None:
        """Begin what goes on beside the associations."""
        self._acceptor.start()

    def open(self, vetted: Vetted, on_end: Callable[[str], None]) -> bool:
        """Serve the connection in a thread of its own; `on_end` gets its address. False = no thread left."""
        thread = threading.Thread(target=self._run, args=(vetted, on_end), name="association", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            logger.exception("no thread is left for another association")
            with self._lock:
                self._threads.discard(thread)
            return False
        return True

    def drain(self) -> None:
        """Let every C-STORE under way end, then end the associations; returns when they are over."""
        with self._lock:
            storing = list(self._storing.values())
        for association in storing:
            association.drain()
        self._acceptor.shutdown()
        deadline = time.monotonic() + DRAIN_S
        for thread in self._alive():
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            left = list(self._storing)
        for connection in left:
            _break(connection)
        for thread in self._alive():
            thread.join(1.0)

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    def _run(self, vetted: Vetted, on_end: Callable[[str], None]) -> None:
        connection = vetted.connection
        try:
            if vetted.is_tls:
                connection = self._shake_hands(connection, vetted.address)
                self._serve_tls(connection, vetted.address)
            else:
                self._serve(connection, vetted.address, vetted.first)
        except (OSError, pdu.ProtocolError) as error:
            logger.info("connection ended early", extra={"reason": type(error).__name__})
        finally:
            connection.close()
            with self._lock:
                self._threads.discard(threading.current_thread())
            on_end(vetted.address[0])

    def _shake_hands(self, connection: socket.socket, address: tuple[str, int]) -> ssl.SSLSocket:
        if self._tls is None:
            raise ConnectionRefusedError
        connection.settimeout(self._settings.dimse.acse_timeout_s)
        try:
            return self._tls.wrap_socket(connection, server_side=True)
        except OSError as error:
            reason = getattr(error, "reason", None) or str(error)
            logger.warning("TLS handshake failed", extra={"reason": reason})
            self._audit.refused(Node(address=address[0]), f"TLS handshake failed: {reason}")
            connection.close()
            raise

    def _serve_tls(self, connection: ssl.SSLSocket, address: tuple[str, int]) -> None:
        first = _read_request(connection, time.monotonic() + self._settings.dimse.acse_timeout_s)
        request = pdu.parse_associate_rq(first)
        rejection = self._services.admission.refuse(request, address[0])
        if rejection is None and not may_call_itself(connection, request.calling_ae, self._settings.tls):
            logger.warning("certificate and calling AE differ", extra={"calling_ae": request.calling_ae})
            who = Node(request.calling_ae, address[0])
            self._audit.refused(who, "the certificate does not name the calling AE title")
            rejection = CALLING_UNKNOWN
        if rejection is not None:
            connection.sendall(pdu.encode_associate_rj(rejection))
            return
        self._serve(connection, address, first)

    def _serve(self, connection: socket.socket, address: tuple[str, int], first: bytes) -> None:
        length = pdu.request_length(first)
        request = pdu.parse_associate_rq(first[:length])
        if not is_ours(request):
            connection.settimeout(None)
            self._acceptor.serve(connection, address, first)
            return
        association = self._associate(connection, request, first[length:])
        with self._lock:
            self._storing[connection] = association
        began = time.monotonic()
        try:
            ended = association.run()
        finally:
            with self._lock:
                del self._storing[connection]
        who = Node(request.calling_ae, address[0])
        self._audit.received(who, association.tally, association.refused)
        extra = {
            "calling_ae": request.calling_ae,
            "peer": address[0],
            "result": ended,
            "count": association.stored,
            "seconds": round(time.monotonic() - began, 3),
        }
        logger.info("association ended, instances refused: %d", association.refused, extra=extra)

    def _associate(
        self, connection: socket.socket, request: pdu.AssociateRequest, rest: bytes
    ) -> StoringAssociation:
        dimse = self._settings.dimse
        answers = answer_contexts(request, dimse.storage_classes)
        proposed = {context.context_id: context.abstract_syntax for context in request.contexts}
        contexts = {
            answer.context_id: (proposed[answer.context_id], answer.transfer_syntax)
            for answer in answers
            if answer.result == ACCEPTED
        }
        items = pdu.encode_user_items(request, dimse.max_pdu, IMPLEMENTATION)
        accepted = Accepted(request, contexts, pdu.encode_associate_ac(request, answers, items))
        services = StoreServices(
            receiver=self._services.receiver,
            guard=self._services.guard,
            limits=InflowLimits(dimse.max_pdu, dimse.pdu_timeout_s, dimse.network_timeout_s),
            may_store=Right.STORE in rights_of(self._settings, request.calling_ae),
        )
        return StoringAssociation(connection, accepted, services, rest)


def _read_request(connection: ssl.SSLSocket, deadline: float) -> bytes:
    """Read a whole A-ASSOCIATE-RQ; raises ProtocolError, or OSError when it does not come in time."""
    received = bytearray()
    length = pdu.HEADER.size
    while len(received) < length:
        set_timeout(connection, max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(length - len(received))
        if not chunk or time.monotonic() > deadline:
            raise ConnectionAbortedError
        received += chunk
        if len(received) == pdu.HEADER.size:
            length = pdu.request_length(received)
    return bytes(received)


def _break(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
