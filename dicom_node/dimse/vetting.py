"""Accepts connections and reads their A-ASSOCIATE-RQ, all in one thread, before one becomes an association.

A connection costs a file descriptor and the bytes it has sent, at most 128 KiB, until its request is whole:
health probes that connect and close, peers that never speak and peers that drip take no place and no thread.

Source: PS3.8 9.2 (states Sta2 and Sta13 of the acceptor), Table 9-10.
"""

import errno
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from dicom_node.dimse import pdu
from dicom_node.dimse.admission import LIMIT_EXCEEDED, Admission

READ_BYTES: Final = 16 * 1024
MAX_CONNECTIONS: Final = 512  # that have not sent their request yet; then the longest waiting one has to go
CLOSING_S: Final = 1.0  # Sta13: how long a refused peer may take to read why
ACCEPTS_AT_ONCE: Final = 64
PAUSE_S: Final = 0.1  # when the process has no descriptor left: trying again at once would spin
TICK_S: Final = 0.1
NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
BACKLOG: Final = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vetted:
    """A connection that is to become an association; its place is taken."""

    connection: socket.socket
    address: tuple[str, int]
    first: bytes  # what was read of it: the whole request; b"" with TLS
    is_tls: bool = False


class HandOver(Protocol):
    """Whoever serves associations."""

    def __call__(self, vetted: Vetted) -> bool:
        """Take the connection; False = it cannot be taken now. The connection is then ours to close."""
        ...


@dataclass
class _Waiting:
    """A connection whose request is not whole, or that is being closed."""

    connection: socket.socket
    address: tuple[str, int]
    deadline: float  # monotonic seconds
    received: bytearray = field(default_factory=bytearray)
    is_closing: bool = False


class VettingLoop:
    """One thread for all connections that are no association yet."""

    def __init__(self, admission: Admission, hand_over: HandOver, timeout_s: float) -> None:
        self._admission = admission
        self._hand_over = hand_over
        self._timeout_s = timeout_s
        self._selector = selectors.DefaultSelector()
        self._listening: dict[socket.socket, bool] = {}  # -> is it TLS
        self._resume_at = 0.0
        self._waiting: dict[socket.socket, _Waiting] = {}
        self._of_address = Counter[str]()
        self._is_stopping = threading.Event()

    def listen(self, listening: socket.socket, *, is_tls: bool = False) -> None:
        """Accept at this socket from now on."""
        listening.setblocking(False)
        self._listening[listening] = is_tls
        self._selector.register(listening, selectors.EVENT_READ, self._accept)

    def watch(self, connection: socket.socket, on_readable: Callable[[socket.socket], None]) -> None:
        """Call `on_readable` in this thread whenever there is something to read at `connection`."""
        self._selector.register(connection, selectors.EVENT_READ, on_readable)

    def unwatch(self, connection: socket.socket) -> None:
        """Stop that."""
        self._selector.unregister(connection)

    def close_inherited(self) -> None:
        """In a forked process: let go of what is the other's, without a word to any peer."""
        for connection in (*self._listening, *self._waiting):
            connection.close()
        self._selector.close()

    def stop(self) -> None:
        """Let `run` return soon; may be called by any thread."""
        self._is_stopping.set()

    def run(self, on_tick: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`; calls `on_tick` several times a second."""
        try:
            while not self._is_stopping.is_set():
                for key, _events in self._selector.select(TICK_S):
                    key.data(key.fileobj)
                self._expire()
                self._resume()
                on_tick()
        finally:
            for waiting in list(self._waiting.values()):
                self._forget(waiting)
            for listening in self._listening:
                listening.close()
            self._selector.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTOR:
                    self._pause()
                    return
                continue  # the peer was gone before we came
            self._welcome(connection, address[:2], is_tls=self._listening[listening])

    def _welcome(self, connection: socket.socket, address: tuple[str, int], *, is_tls: bool) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_tls:
            self._enter(Vetted(connection, address, b"", is_tls=True))
            return
        if len(self._waiting) >= MAX_CONNECTIONS:
            self._evict()
        waiting = _Waiting(connection, address, time.monotonic() + self._timeout_s)
        self._waiting[connection] = waiting
        self._of_address[address[0]] += 1
        self._selector.register(connection, selectors.EVENT_READ, self._read)

    def _read(self, connection: socket.socket) -> None:
        waiting = self._waiting.get(connection)
        if waiting is None:
            return
        try:
            received = connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._forget(waiting)
        elif not waiting.is_closing:
            waiting.received += received
            self._look(waiting)

    def _look(self, waiting: _Waiting) -> None:
        received = waiting.received
        if len(received) < pdu.HEADER.size:
            return
        if received[0] == pdu.ABORT:
            self._forget(waiting)  # AA-2
            return
        try:
            length = pdu.request_length(received)
            if len(received) < length:
                return
            request = pdu.parse_associate_rq(received[:length])
        except pdu.ProtocolError as error:
            logger.info("connection refused", extra={"reason": str(error), "peer": waiting.address[0]})
            self._refuse(waiting, pdu.encode_abort(2, error.reason))
            return
        self._decide(waiting, request)

    def _decide(self, waiting: _Waiting, request: pdu.AssociateRequest) -> None:
        rejection = self._admission.refuse(request, waiting.address[0])
        if rejection is not None:
            extra = {"calling_ae": request.calling_ae, "peer": waiting.address[0]}
            numbers = f"{rejection.result}/{rejection.source}/{rejection.reason}"
            logger.warning("association rejected %s", numbers, extra=extra)
            self._refuse(waiting, pdu.encode_associate_rj(rejection))
            return
        rejection = self._admission.enter(waiting.address[0])
        if rejection is not None:
            self._refuse(waiting, pdu.encode_associate_rj(rejection))
            return
        self._release(waiting)
        vetted = Vetted(waiting.connection, waiting.address, bytes(waiting.received))
        if not self._hand_over(vetted):
            self._admission.leave(waiting.address[0])
            self._take_back(waiting, pdu.encode_associate_rj(LIMIT_EXCEEDED))

    def _enter(self, vetted: Vetted) -> None:
        """With TLS nothing can be read yet: places are counted, the rest is for whoever serves it."""
        if self._admission.enter(vetted.address[0]) is not None:
            vetted.connection.close()
        elif not self._hand_over(vetted):
            self._admission.leave(vetted.address[0])
            vetted.connection.close()

    def _refuse(self, waiting: _Waiting, answer: bytes) -> None:
        """Say why, and wait a moment for the peer to close: closing at once could take the answer back."""
        try:
            waiting.connection.send(answer)
            waiting.connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(waiting)
            return
        waiting.is_closing = True
        waiting.received.clear()
        waiting.deadline = time.monotonic() + CLOSING_S
        self._waiting[waiting.connection] = self._waiting.pop(waiting.connection)

    def _take_back(self, waiting: _Waiting, answer: bytes) -> None:
        self._waiting[waiting.connection] = waiting
        self._of_address[waiting.address[0]] += 1
        self._selector.register(waiting.connection, selectors.EVENT_READ, self._read)
        self._refuse(waiting, answer)

    def _release(self, waiting: _Waiting) -> None:
        self._selector.unregister(waiting.connection)
        del self._waiting[waiting.connection]
        host = waiting.address[0]
        self._of_address[host] -= 1
        if not self._of_address[host]:
            del self._of_address[host]

    def _forget(self, waiting: _Waiting) -> None:
        self._release(waiting)
        waiting.connection.close()

    def _evict(self) -> None:
        """Close the connection that has waited longest, of the address that has most of them."""
        host = max(self._of_address, key=lambda address: self._of_address[address])
        self._forget(next(each for each in self._waiting.values() if each.address[0] == host))

    def _expire(self) -> None:
        now = time.monotonic()
        for waiting in [each for each in self._waiting.values() if each.deadline <= now]:
            self._forget(waiting)

    def _pause(self) -> None:
        """No descriptor is left: stop accepting for a moment, and make room."""
        logger.error("no file descriptor is left: new connections wait; raise the limit (ulimit -n)")
        for listening in self._listening:
            self._selector.unregister(listening)
        self._resume_at = time.monotonic() + PAUSE_S
        if self._waiting:
            self._evict()

    def _resume(self) -> None:
        if self._resume_at and time.monotonic() >= self._resume_at:
            self._resume_at = 0.0
            for listening in self._listening:
                self._selector.register(listening, selectors.EVENT_READ, self._accept)


def open_listening(host: str, port: int) -> socket.socket:
    """Listen at `host`:`port`; raises OSError when that is taken."""
    found: Sequence[tuple[int, ...]] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]
    listening = socket.socket(found[0][0], socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
