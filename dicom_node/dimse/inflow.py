"""The bytes of one association as they come in: P-DATA taken apart in place, within limits and deadlines.

One buffer per association; a piece of a PDV is handed out as a view into it, and goes to the file from there.
Works on a plain socket and on an ssl.SSLSocket: it only uses recv_into.

Source: PS3.8 9.3.5 (P-DATA-TF), Annex E (fragmentation of messages).
"""

import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from dicom_node.dimse.pdu import DATA_TF, HEADER, INVALID_PARAMETER, ProtocolError

BUFFER_BYTES: Final = 256 * 1024
MAX_OTHER_PDU_BYTES: Final = 128 * 1024  # of PDUs that carry no data
PDU_SLACK_BYTES: Final = 128  # some senders count their headers otherwise
MAX_EMPTY_FRAGMENTS: Final = 1000  # in a row: a message that goes nowhere
SLOWEST_BYTES_PER_S: Final = 16 * 1024  # of a message, once its patience is over
PATIENCE_S: Final = 60.0
_PDV: Final = struct.Struct(">IBB")


class PeerGone(Exception):
    """The connection ended, or nothing came for so long that it may as well have."""


class PeerSilent(PeerGone):
    """Nothing came in time; the connection still stands."""


@dataclass(frozen=True)
class InflowLimits:
    """How large and how slow a peer may be."""

    max_pdu: int  # bytes; 0 = any
    pdu_timeout_s: float
    idle_timeout_s: float  # between two messages


class Fragment(NamedTuple):
    """A piece of a message fragment."""

    context_id: int
    is_command: bool
    is_last: bool  # the message ends with this piece
    data: memoryview  # valid until the next call


class Inflow:
    """Reads one association; not shared."""

    def __init__(self, connection: socket.socket, limits: InflowLimits, first: bytes = b"") -> None:
        self._connection = connection
        self._limits = limits
        self._buffer = bytearray(max(BUFFER_BYTES, len(first)))
        self._view = memoryview(self._buffer)
        self._buffer[: len(first)] = first
        self._start, self._end = 0, len(first)
        self._pdu_left = 0
        self._pdv_left = 0
        self._context_id, self._control = 0, 0
        self._empty = 0
        self._message_began = 0.0  # monotonic seconds, as the next
        self._deadline = 0.0  # when what is waited for must have come
        self._message_bytes = 0
        self.is_idle = True  # nothing of a message has come
        set_timeout(connection, min(limits.pdu_timeout_s, limits.idle_timeout_s))

    def begin_message(self) -> None:
        """Wait for a new message from now on."""
        self.is_idle = True
        self._empty = self._message_bytes = 0
        self._deadline = time.monotonic() + self._limits.idle_timeout_s

    def fragment(self) -> Fragment | int:
        """Give the next piece of a message, or the type of a PDU that carries none (its body is skipped).

        Raises
        ------
        ProtocolError
            If lengths do not fit, or the peer is too slow about it.
        PeerGone
            If the connection ended.
        """
        while not self._pdv_left:
            if not self._pdu_left and (other := self._next_pdu()) is not None:
                return other
            self._next_pdv()
            if not self._pdv_left:
                return self._empty_fragment()
        if self._start == self._end:
            self._fill()
        take = min(self._end - self._start, self._pdv_left)
        piece = self._view[self._start : self._start + take]
        self._start += take
        self._pdv_left -= take
        return Fragment(
            self._context_id,
            bool(self._control & 1),
            self._control & 2 != 0 and not self._pdv_left,
            piece,
        )

    def drain_until(self, deadline: float) -> None:
        """Read and forget what still comes until the peer closes, or `deadline` (monotonic seconds)."""
        while (left := deadline - time.monotonic()) > 0:
            set_timeout(self._connection, max(left, 0.01))
            try:
                if not self._connection.recv_into(self._view):
                    return
            except OSError:
                return

    def _next_pdu(self) -> int | None:
        if not self.is_idle:
            self._deadline = time.monotonic() + self._limits.pdu_timeout_s
        self._need(HEADER.size)
        self._under_way()
        kind, length = HEADER.unpack_from(self._buffer, self._start)
        self._start += HEADER.size
        if kind != DATA_TF:
            self._skip(int(length))
            return int(kind)
        limit = self._limits.max_pdu
        if length < _PDV.size or (limit and length > limit + PDU_SLACK_BYTES):
            raise ProtocolError(f"a data PDU announces {length} bytes")
        self._deadline += length / SLOWEST_BYTES_PER_S
        self._pdu_left = length
        return None

    def _next_pdv(self) -> None:
        if self._pdu_left < _PDV.size:
            raise ProtocolError("a data PDU ends inside the head of a fragment")
        self._need(_PDV.size)
        length, self._context_id, self._control = _PDV.unpack_from(self._buffer, self._start)
        self._start += _PDV.size
        if not 2 <= length <= self._pdu_left - 4 or self._control > 3:
            raise ProtocolError("a fragment does not fit into its PDU")
        self._pdv_left = length - 2
        self._pdu_left -= length + 4

    def _empty_fragment(self) -> Fragment:
        self._empty += 1
        if self._empty > MAX_EMPTY_FRAGMENTS:
            raise ProtocolError("fragment after fragment brings nothing")
        return Fragment(self._context_id, bool(self._control & 1), bool(self._control & 2), self._view[:0])

    def _skip(self, length: int) -> None:
        if length > MAX_OTHER_PDU_BYTES:
            raise ProtocolError(f"a PDU without data announces {length} bytes", INVALID_PARAMETER)
        while length > 0:
            if self._start == self._end:
                self._fill()
            take = min(length, self._end - self._start)
            self._start += take
            length -= take

    def _need(self, count: int) -> None:
        while self._end - self._start < count:
            if self._start == self._end:
                self._start = self._end = 0
            elif len(self._buffer) - self._start < count:
                left = self._end - self._start
                self._buffer[:left] = self._buffer[self._start : self._end]
                self._start, self._end = 0, left
            self._receive()

    def _fill(self) -> None:
        self._start = self._end = 0
        self._receive()

    def _receive(self) -> None:
        try:
            count = self._connection.recv_into(self._view[self._end :])
        except (TimeoutError, BlockingIOError) as error:
            if time.monotonic() >= self._deadline:
                raise PeerSilent("nothing came in time") from error
            return
        except OSError as error:
            raise PeerGone("the connection broke") from error
        if not count:
            raise PeerGone("the peer closed the connection")
        self._end += count
        self._under_way()
        self._message_bytes += count
        self._check_pace()

    def _under_way(self) -> None:
        if self.is_idle:
            self.is_idle = False
            self._message_began = time.monotonic()
            self._deadline = self._message_began + self._limits.pdu_timeout_s

    def _check_pace(self) -> None:
        """A byte now and then keeps no place: neither in one PDU nor in an endless row of small ones."""
        now = time.monotonic()
        too_late = self._message_began + PATIENCE_S + self._message_bytes / SLOWEST_BYTES_PER_S
        if now > self._deadline or now > too_late:
            raise PeerSilent("the message came too slowly")


def set_timeout(connection: socket.socket, seconds: float) -> None:
    """Let receiving and sending give up after `seconds`; by the kernel where that is possible.

    Python's own timeout asks the kernel before every call whether there is something to read; TLS needs it.
    """
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(seconds)
        return
    connection.setblocking(True)
    whole = int(seconds)
    interval = struct.pack("@ll", whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
