"""The C-STORE receive loop: PDV bytes straight to the incoming file; what speed and safety hang on.

One association, from the A-ASSOCIATE-AC to its end, in the thread that calls `StoringAssociation.run`. The
state machine is that of PS3.8 9.2 for an acceptor, with the states that a synchronous loop has: waiting for
data (Sta6), and waiting for the peer to close the connection (Sta13).

Source: PS3.4 B.2.3 (statuses), PS3.7 9.3.1 and 9.3.5, PS3.8 9.2 and 9.3.
"""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from dicom_node.announced import Announced
from dicom_node.audit.events import Tally
from dicom_node.dimse import pdu
from dicom_node.dimse.dimse_command import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    MAX_COMMAND_BYTES,
    MAX_COMMENT_CHARACTERS,
    MISTYPED_ARGUMENT,
    UNRECOGNISED_OPERATION,
    Answer,
    Command,
    encode_response,
    parse_command,
)
from dicom_node.dimse.inflow import Fragment, Inflow, InflowLimits, PeerGone, PeerSilent
from dicom_node.dimse.negotiation import VERIFICATION
from dicom_node.errors import (
    NodeError,
    NotAuthorised,
    SopClassNotSupported,
)
from dicom_node.intake import Intake
from dicom_node.receive import Receiver
from storage.index import Origin

SUCCESS: Final = 0x0000
LINGER_S: Final = 1.0  # Sta13: how long the peer may take to close the connection
REFUSED_BYTES: Final = 64 * 1024 * 1024  # of an instance that is refused anyway, read before we give up

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreServices:
    """What an association needs of its process."""

    receiver: Receiver
    guard: Callable[[Callable[[], Answer]], Answer]  # the boundary: whatever happens, there is an answer
    limits: InflowLimits
    may_store: bool = True


@dataclass(frozen=True)
class Accepted:
    """What was agreed: the request, the contexts by their id, and who we are."""

    request: pdu.AssociateRequest
    contexts: dict[int, tuple[str, str]]  # id -> abstract syntax, transfer syntax
    answer: bytes  # the A-ASSOCIATE-AC


class StoringAssociation:
    """Serves one association of C-ECHO and C-STORE."""

    def __init__(
        self, connection: socket.socket, accepted: Accepted, services: StoreServices, first: bytes = b""
    ) -> None:
        self._connection = connection
        self._accepted = accepted
        self._services = services
        self._inflow = Inflow(connection, services.limits, first)
        self._origin = Origin("DIMSE", accepted.request.calling_ae)
        self._is_draining = False
        self.tally = Tally()
        self.stored = 0
        self.refused = 0

    def run(self) -> str:
        """Accept, and serve until the association ends; returns how it ended."""
        try:
            self._connection.sendall(self._accepted.answer)
            return self._serve()
        except pdu.ProtocolError as error:
            logger.warning("association aborted", extra={"reason": str(error), **self._who()})
            self._abort(2, error.reason)
            return "ABORTED"
        except PeerSilent as error:
            logger.warning("association aborted", extra={"reason": str(error), **self._who()})
            self._abort(0, 0)
            return "SILENT"
        except (PeerGone, OSError):
            if self._is_draining:
                self._abort(0, 0)
            return "DRAINED" if self._is_draining else "LOST"

    def drain(self) -> None:
        """End after the message under way; may be called by another thread."""
        self._is_draining = True
        if self._inflow.is_idle:
            try:
                self._connection.shutdown(socket.SHUT_RD)  # wakes the thread that waits for a message
            except OSError:
                return

    def _serve(self) -> str:
        while not self._is_draining:
            self._inflow.begin_message()
            command = self._read_command()
            if isinstance(command, int):
                return self._end_by(command)
            self._answer(*command)
        self._abort(0, 0)
        return "DRAINED"

    def _end_by(self, kind: int) -> str:
        if kind == pdu.RELEASE_RQ:
            self._connection.sendall(pdu.encode_release_rp())
            self._linger()
            return "RELEASED"
        if kind == pdu.ABORT:
            return "ABORTED BY PEER"
        reason = pdu.UNEXPECTED_PDU if kind in pdu.PDU_TYPES else pdu.UNRECOGNISED_PDU
        raise pdu.ProtocolError(f"a PDU of type {kind:02X} came where none may stand", reason)

    def _read_command(self) -> tuple[int, Command] | int:
        """Give presentation context and command of the next message, or the PDU that came instead."""
        encoded, context_id = bytearray(), 0
        while True:
            piece = self._inflow.fragment()
            if isinstance(piece, int):
                return piece
            if not piece.is_command or (encoded and piece.context_id != context_id):
                raise pdu.ProtocolError("a data set came without its command", pdu.UNEXPECTED_PDU)
            context_id = piece.context_id
            if context_id not in self._accepted.contexts:
                raise pdu.ProtocolError("the presentation context was not accepted")
            encoded += piece.data
            if len(encoded) > MAX_COMMAND_BYTES:
                raise pdu.ProtocolError("the command set is too large")
            if piece.is_last:
                return context_id, parse_command(encoded)

    def _answer(self, context_id: int, command: Command) -> None:
        if command.command_field == C_CANCEL_RQ:
            return  # what it would cancel has been answered
        if command.command_field == C_STORE_RQ and command.has_data_set:
            answer = self._store(context_id, command)
        else:
            self._skip_data_set(context_id, command)
            answer = self._answer_without_data(context_id, command)
        encoded = encode_response(command, answer)
        max_pdu = self._accepted.request.user.max_pdu
        self._connection.sendall(pdu.encode_command_pdus(context_id, encoded, max_pdu))

    def _answer_without_data(self, context_id: int, command: Command) -> Answer:
        if command.command_field == C_STORE_RQ:
            return Answer(MISTYPED_ARGUMENT, "a C-STORE request has a data set")
        if command.command_field != C_ECHO_RQ:
            return Answer(UNRECOGNISED_OPERATION, "only C-ECHO and C-STORE on this association")
        if self._accepted.contexts[context_id][0] != VERIFICATION:
            return Answer(SopClassNotSupported.dimse_status, "C-ECHO needs a context of its own")
        return Answer(SUCCESS)

    def _store(self, context_id: int, command: Command) -> Answer:
        try:
            intake = self._begin(context_id, command)
        except NodeError as error:
            self._skip_data_set(context_id, command)
            return self._refusal(error)
        with intake:
            is_whole = False
            try:
                while not is_whole:
                    piece = self._data(context_id)
                    is_whole = piece.is_last
                    intake.write(piece.data)
            except NodeError as error:
                if not is_whole:
                    self._skip_data_set(context_id, command)
                return self._refusal(error)
            return self._services.guard(lambda: self._finish(intake))

    def _begin(self, context_id: int, command: Command) -> Intake:
        sop_class, syntax = self._accepted.contexts[context_id]
        if not self._services.may_store:
            raise NotAuthorised(f"{self._accepted.request.calling_ae} may not store here; see peers.may")
        if command.sop_class_uid != sop_class:
            raise SopClassNotSupported("the SOP class is not that of the presentation context")
        announced = Announced(sop_class, command.sop_instance_uid, syntax, self._origin)
        return self._services.receiver.begin(announced)

    def _finish(self, intake: Intake) -> Answer:
        try:
            self.tally.take(intake.finish())
        except NodeError as error:
            return self._refusal(error)
        self.stored += 1
        return Answer(SUCCESS)

    def _refusal(self, error: NodeError) -> Answer:
        self.refused += 1
        extra = {"status": f"0x{error.dimse_status:04X}", "reason": str(error), **self._who()}
        logger.warning("instance refused", extra=extra)
        return Answer(error.dimse_status, str(error))

    def _data(self, context_id: int) -> Fragment:
        piece = self._inflow.fragment()
        if isinstance(piece, int):
            if piece == pdu.ABORT:
                raise PeerGone("the peer aborted in the middle of a message")
            reason = pdu.UNEXPECTED_PDU if piece in pdu.PDU_TYPES else pdu.UNRECOGNISED_PDU
            raise pdu.ProtocolError("a message was broken off by another PDU", reason)
        if piece.is_command or piece.context_id != context_id:
            raise pdu.ProtocolError("a data set was broken off by another message", pdu.UNEXPECTED_PDU)
        return piece

    def _skip_data_set(self, context_id: int, command: Command) -> None:
        """Read the data set of a request that is refused: the answer may only follow its end."""
        left = REFUSED_BYTES + self._services.receiver.limits.max_instance_bytes
        while command.has_data_set:
            piece = self._data(context_id)
            left -= len(piece.data)
            if piece.is_last:
                return
            if left < 0:
                raise pdu.ProtocolError("a data set has no end")

    def _abort(self, source: int, reason: int) -> None:
        try:
            self._connection.sendall(pdu.encode_abort(source, reason))
        except OSError:
            return
        self._linger()

    def _linger(self) -> None:
        """Sta13: wait for the peer to close the connection, so that it has read what we sent last."""
        self._inflow.drain_until(time.monotonic() + LINGER_S)

    def _who(self) -> dict[str, str]:
        return {"calling_ae": self._accepted.request.calling_ae}


def status(code: int, comment: str = "") -> Dataset:
    """Build the status of a response, with a comment where there is something to say."""
    answer = Dataset()
    answer.Status = code
    if comment:
        answer.ErrorComment = comment[:MAX_COMMENT_CHARACTERS]
    return answer
