"""An association served by pynetdicom, on a connection that another loop accepted and looked at.

Every PDU is bounded in length and time, and every message in length, before pynetdicom holds it in memory;
the data set of a C-STORE never is, it goes to its file as it comes.
C-MOVE and C-GET go to `retrieve_scp`, because pynetdicom's own would encode every data set anew.

Source: PS3.8 9.3.1 (PDUs), 9.2.1 (A-ABORT on an invalid PDU), PS3.7 9.1.3 and 9.1.4.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, cast

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_node.audit.dimse import caller
from dicom_node.audit.events import Tally
from dicom_node.dimse.mixed_store import ArrivingInstance, Begin
from storage.records import VALUE_ERRORS

MAX_PDU_BYTES: Final = 1024 * 1024
PDU_DEADLINE_S: Final = 15.0
SEND_DEADLINE_S: Final = 30.0
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024  # identifiers, lists of references
STORE_REQUEST: Final = 0x0001
P_DATA_TF: Final = 0x04
MAX_ARRIVING: Final = 4  # instances at once; an honest peer sends one, and waits for the answer
SHORTEST_DATA: Final = 6  # one item: its length, presentation context id, message control header
A_ABORT: Final = bytes.fromhex("07000000000400000200")  # source: service provider

Retrieve = Callable[[Association, C_MOVE | C_GET, PresentationContext], None]


@dataclass(frozen=True)
class Rooms:
    """Where requests go that pynetdicom does not serve itself."""

    retrieve: Retrieve
    begin: Begin  # of an instance that is stored
    max_instance_bytes: int


class ServedAssociation(Association):
    """An association as acceptor."""

    def __init__(self, ae: AE, rooms: Rooms) -> None:
        super().__init__(ae, "acceptor")
        self.dimse = _CheckedMessages(self)
        self.rooms = rooms
        self.tally = Tally()  # what it brought
        self._arriving: list[ArrivingInstance] = []

    def accept(self, connection: socket.socket, address: tuple[str, int], first: bytes) -> None:
        """Take the connection over, with the bytes already read from it; `start` then serves it."""
        self.set_socket(HandedSocket(self, connection, first))
        self.acceptor.maximum_length = self.ae.maximum_pdu_size
        self.acceptor.ae_title = self.ae.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(connection.getsockname())
        self.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        self.acceptor.implementation_version_name = self.ae.implementation_version_name
        self.acceptor.supported_contexts = list(self.ae.supported_contexts)
        self.requestor.address_info = AddressInformation.from_tuple(address)

    @property
    def is_receiving_instance(self) -> bool:
        """Whether the message that is coming in is a C-STORE request."""
        message = self.dimse.message
        command = getattr(message, "command_set", None)
        return command is not None and command.get("CommandField") == STORE_REQUEST

    def begin_instance(self, request: C_STORE_RQ) -> ArrivingInstance:
        """Take the data set that follows `request`; raises ValueError for a peer that waits for no answer."""
        self._arriving = [each for each in self._arriving if each.is_open]
        if len(self._arriving) >= MAX_ARRIVING:
            raise ValueError("request after request comes before the answer to the first")
        syntax = str(self._accepted_cx[request.context_id or 0].transfer_syntax[0])
        self._arriving.append(ArrivingInstance(partial(self.rooms.begin, request, syntax, caller(self))))
        return self._arriving[-1]

    def forget_arriving(self) -> None:
        """Let go of what came and was not received."""
        while self._arriving:
            self._arriving.pop().close()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        context = self._accepted_cx.get(context_id)
        if not isinstance(msg, C_MOVE | C_GET) or context is None or not msg.is_valid_request:
            super()._serve_request(msg, context_id)
            return
        self.dimse.cancel_req = {}
        self._is_paused = True  # sub-operations of a C-GET use this association
        self.rooms.retrieve(self, msg, context)
        self._is_paused = False
        self.dimse.cancel_req = {}


class _CheckedMessages(DIMSEServiceProvider):
    """Ends the association over a message that cannot be decoded, where pynetdicom's thread would die."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA in; runs in the thread that reads."""
        try:
            for fragment in primitive.presentation_data_value_list:
                alone = P_DATA()
                alone.presentation_data_value_list = [cast("Any", list(fragment))]
                super().receive_primitive(alone)
                self._open_file()
        except VALUE_ERRORS:
            connection = self.assoc.dul.socket
            if isinstance(connection, HandedSocket):
                connection.end()

    def _open_file(self) -> None:
        """Between the command of a C-STORE and its data set."""
        message: Any = self.message
        if isinstance(message, C_STORE_RQ) and message._data_set_file is None:  # noqa: SLF001 - no other way in
            message._data_set_file = cast("Any", self.assoc).begin_instance(message)  # noqa: SLF001


class HandedSocket(AssociationSocket):
    """A connection whose first bytes were read already."""

    def __init__(self, association: ServedAssociation, connection: socket.socket, first: bytes) -> None:
        super().__init__(association, client_socket=connection)
        self._association = association
        self._connection = connection
        self._first = bytearray(first)
        self._message_bytes = 0
        self._is_header_next = True
        connection.settimeout(SEND_DEADLINE_S)

    def message_is_over(self) -> None:
        """Begin to count anew: a whole message was received."""
        self._message_bytes = 0

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._first) or bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly `nr_bytes`, unless the peer closes.

        Raises
        ------
        OSError
            If they are too many or too late; the connection is closed then, after an A-ABORT.
        """
        is_header, self._is_header_next = self._is_header_next, not self._is_header_next
        if not is_header:
            self._require_room(nr_bytes)
        deadline = time.monotonic() + PDU_DEADLINE_S
        read = self._first[:nr_bytes]
        del self._first[:nr_bytes]
        while len(read) < nr_bytes:
            chunk = self._recv_before(deadline, nr_bytes - len(read))
            if not chunk:
                return read
            read += chunk
        if is_header and read[0] == P_DATA_TF and int.from_bytes(read[2:], "big") < SHORTEST_DATA:
            self._break_off("a P-DATA-TF without a presentation data value")
        return read

    def end(self) -> None:
        """Abort the association, and close the connection."""
        with contextlib.suppress(OSError):
            self._connection.sendall(A_ABORT)
        self._connection.close()

    def _require_room(self, nr_bytes: int) -> None:
        association = self._association
        self._message_bytes += nr_bytes
        is_instance = association.is_receiving_instance
        limit = association.rooms.max_instance_bytes if is_instance else MAX_MESSAGE_BYTES
        if nr_bytes > MAX_PDU_BYTES or self._message_bytes > limit + MAX_PDU_BYTES:
            self._break_off("a PDU or a message is longer than this node takes")

    def _recv_before(self, deadline: float, nr_bytes: int) -> bytes:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            self._break_off("a PDU did not come in time")
        try:
            self._connection.settimeout(remaining)
            chunk = self._connection.recv(min(nr_bytes, 65536))
            self._connection.settimeout(SEND_DEADLINE_S)
        except TimeoutError:
            self._break_off("a PDU did not come in time")
        return chunk

    def _break_off(self, why: str) -> NoReturn:
        self.end()
        raise ConnectionAbortedError(why)
