"""Accepts associations: C-ECHO, and C-STORE of every storage SOP class in every transfer syntax.

An AE title is a name, not a credential: the listener binds to the loopback address by default.
A connection costs one waiting thread, and no association, until a whole A-ASSOCIATE-RQ of sensible size
has come in: health probes that connect and close, and peers that never speak, take no place.

Source: PS3.8 9.3.2 (A-ASSOCIATE-RQ), PS3.4 B.
"""

import logging
import select
import socket
import struct
import threading
import time
from typing import Any, Final

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import EventHandlerType
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.dimse.negotiation import VERIFICATION, name_service, offer_storage
from dicom_node.dimse.store_scp import answer_store, status
from dicom_node.errors import UnexpectedFailure
from dicom_node.receive import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Receiver
from dicom_node.settings import NodeSettings

ASSOCIATE_RQ: Final = 0x01
MAX_REQUEST_BYTES: Final = 128 * 1024  # 128 contexts with a dozen transfer syntaxes each need 60 KiB
REQUEST_TIMEOUT_S: Final = 30.0  # when the AE has no timeout of its own
WAITING_PER_ASSOCIATION: Final = 8  # connections that may wait to be vetted, for each association allowed
DRAIN_S: Final = 5.0  # associations under way get so long to end before they are aborted

logger = logging.getLogger(__name__)


class Listener:
    """A running DICOM listener."""

    def __init__(self, ae: AE, server: "VettingServer", thread: threading.Thread) -> None:
        self._ae = ae
        self._server = server
        self._thread = thread

    @property
    def server_address(self) -> tuple[str, int]:
        """Host and port it really listens on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def shutdown(self) -> None:
        """Stop accepting, let associations under way end for a while, then abort them."""
        self._server.shutdown()
        deadline = time.monotonic() + DRAIN_S
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        self._ae.shutdown()
        self._thread.join(timeout=DRAIN_S)


class VettingServer(ThreadedAssociationServer):
    """Looks at a connection before an association is spent on it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting = threading.Semaphore(self.ae.maximum_associations * WAITING_PER_ASSOCIATION)

    def process_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any
    ) -> None:
        """Vet in a thread of its own, or close at once when too many wait already."""
        if isinstance(request, tuple) or not self._waiting.acquire(blocking=False):
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self._vet, args=(request, client_address), daemon=True)
        thread.start()

    def _vet(self, request: socket.socket, client_address: Any) -> None:
        try:
            is_whole = _has_whole_request(request, self.ae.acse_timeout or REQUEST_TIMEOUT_S)
        except OSError:
            is_whole = False
        finally:
            self._waiting.release()
        if not is_whole:
            self.shutdown_request(request)
            return
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.process_request_thread(request, client_address)


def start_listener(settings: NodeSettings, receiver: Receiver) -> Listener:
    """Start listening as `settings.dimse` says; every instance goes to `receiver`."""
    ae = _application_entity(settings)
    handlers: list[EventHandlerType] = [
        (evt.EVT_REQUESTED, offer_storage),
        (evt.EVT_SOP_COMMON, name_service),
        (evt.EVT_C_STORE, _handle_store, [receiver]),
        (evt.EVT_C_ECHO, _handle_echo),
        (evt.EVT_REJECTED, _log_rejected),
    ]
    address = (settings.dimse.host, settings.dimse.port)
    server = VettingServer(ae, address, ae.ae_title, ae.supported_contexts, evt_handlers=handlers)
    ae._servers.append(server)  # noqa: SLF001 - as AE.start_server does; shutdown() takes it out again
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="listener", daemon=True)
    thread.start()
    return Listener(ae, server, thread)


def _application_entity(settings: NodeSettings) -> AE:
    ae = AE(settings.dimse.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = settings.dimse.max_associations
    ae.maximum_pdu_size = settings.dimse.max_pdu
    ae.acse_timeout = settings.dimse.acse_timeout_s
    ae.dimse_timeout = settings.dimse.network_timeout_s
    ae.network_timeout = settings.dimse.network_timeout_s
    ae.require_called_aet = settings.dimse.require_called_ae
    ae.require_calling_aet = list(settings.dimse.allowed_calling_aes)
    ae.add_supported_context(VERIFICATION)
    return ae


def _has_whole_request(connection: socket.socket, timeout_s: float) -> bool:
    """Wait until a whole A-ASSOCIATE-RQ is there to read, without reading it.

    Linux wakes the wait only when SO_RCVLOWAT bytes have come, so a dripping peer wakes nothing.
    """
    deadline = time.monotonic() + timeout_s
    head = _peek(connection, 6, deadline)
    if len(head) < 6 or head[0] != ASSOCIATE_RQ:
        return False
    length = 6 + struct.unpack(">I", head[2:6])[0]
    if length > MAX_REQUEST_BYTES:
        return False
    is_whole: bool = len(_peek(connection, length, deadline)) == length
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return is_whole


def _peek(connection: socket.socket, length: int, deadline: float) -> bytes:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, length)
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    is_ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
    return connection.recv(length, socket.MSG_PEEK) if is_ready else b""


def _handle_store(event: evt.Event, receiver: Receiver) -> Dataset:
    """Boundary of the SCP: whatever happens inside, the peer gets a failure and the node goes on."""
    try:
        return answer_store(event, receiver)
    except Exception as error:
        logger.exception("C-STORE failed unexpectedly: %s", type(error).__name__)
        return status(UnexpectedFailure.dimse_status, UnexpectedFailure.advice)


def _handle_echo(event: evt.Event) -> int:
    del event
    return 0x0000


def _log_rejected(event: evt.Event) -> None:
    logger.warning("association rejected", extra={"peer": str(event.assoc.requestor.ae_title).strip()})
