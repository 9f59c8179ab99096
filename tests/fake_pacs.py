"""Destinations that misbehave on purpose: a PACS with a script and a ledger, a raw peer, a cutting proxy."""

import hashlib
import itertools
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt

LOCAL = "127.0.0.1"
BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@dataclass(frozen=True)
class Arrival:
    """One C-STORE that reached the PACS."""

    sop_instance_uid: str
    sha256: str  # of the data set as it was encoded
    transfer_syntax_uid: str
    status: int


@dataclass
class FakePacs:
    """Answers with `statuses` in turn, then with success; blocks while `is_hanging` is set."""

    port: int
    statuses: list[int] = field(default_factory=list)
    before: Callable[[evt.Event], object] = id
    arrivals: list[Arrival] = field(default_factory=list)
    associations: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, event: evt.Event) -> int:
        request: Any = event.request
        content = request.DataSet.getvalue()
        self.before(event)
        with self.lock:
            status = self.statuses.pop(0) if self.statuses else 0x0000
            digest = hashlib.sha256(content).hexdigest()
            syntax = str(event.context.transfer_syntax)
            self.arrivals.append(Arrival(str(request.AffectedSOPInstanceUID), digest, syntax, status))
        return status

    def count(self, event: evt.Event) -> None:
        del event
        with self.lock:
            self.associations += 1

    @property
    def kept(self) -> dict[str, set[str]]:
        """The digests under which each instance was taken; more than one means that a re-send differed."""
        digests: dict[str, set[str]] = {}
        for arrival in self.arrivals:
            digests.setdefault(arrival.sop_instance_uid, set()).add(arrival.sha256)
        return digests

    @property
    def times(self) -> Counter[str]:
        return Counter(arrival.sop_instance_uid for arrival in self.arrivals)


@contextmanager
def fake_pacs(
    port: int,
    statuses: Sequence[int] = (),
    *,
    classes: Sequence[str] | None = None,
    syntaxes: Sequence[str] = BOTH,
    before: Callable[[evt.Event], object] = id,
    handlers: Sequence[tuple[Any, ...]] = (),
    **options: Any,
) -> Iterator[FakePacs]:
    """A storage SCP at `port` while the block runs; `options` are attributes of its AE."""
    pacs = FakePacs(port, list(statuses), before)
    ae: Any = AE("PACS")
    for sop_class in classes or [context.abstract_syntax for context in AllStoragePresentationContexts]:
        ae.add_supported_context(sop_class, list(syntaxes))
    for name, value in options.pop("contexts", {}).items():
        ae.add_supported_context(name, value)
    for name, value in options.items():
        setattr(ae, name, value)
    events = [(evt.EVT_C_STORE, pacs.store), (evt.EVT_ESTABLISHED, pacs.count), *handlers]
    server = ae.start_server((LOCAL, port), block=False, evt_handlers=events)
    try:
        yield pacs
    finally:
        server.shutdown()


def rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ PDU. Source: PS3.8 9.3.4."""
    return struct.pack(">BBIBBBB", 3, 0, 4, 0, result, source, reason)


def abortion(source: int, reason: int) -> bytes:
    """An A-ABORT PDU. Source: PS3.8 9.3.8."""
    return struct.pack(">BBIBBBB", 7, 0, 4, 0, 0, source, reason)


@contextmanager
def raw_peer(port: int, answer: bytes | None) -> Iterator[None]:
    """Takes connections, reads one PDU and sends `answer`, then closes; None = never answers nor closes."""
    with socket.create_server((LOCAL, port)) as server:
        is_over = threading.Event()
        held: list[socket.socket] = []

        def serve() -> None:
            while not is_over.is_set():
                if not select.select([server], [], [], 0.05)[0]:
                    continue
                connection, _ = server.accept()
                if answer is None:
                    held.append(connection)
                    continue
                with connection, suppress(OSError):
                    connection.settimeout(10)
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            for connection in held:
                connection.close()


@dataclass(frozen=True)
class Cut:
    """What happens to one connection through the proxy."""

    after_sent: int | None = None  # bytes from client to server; None = never cut
    after_received: int | None = None  # bytes from server to client
    with_reset: bool = True
    at_once: bool = False


@contextmanager
def cutting_proxy(port: int, target: int, cuts: Iterator[Cut]) -> Iterator[None]:
    """A TCP proxy from `port` to `target`; connection after connection follows the next of `cuts`."""
    with socket.create_server((LOCAL, port)) as server:
        is_over = threading.Event()
        threads: list[threading.Thread] = []

        def serve() -> None:
            while not is_over.is_set():
                if select.select([server], [], [], 0.05)[0]:
                    connection, _ = server.accept()
                    thread = threading.Thread(target=_relay, args=(connection, target, next(cuts), is_over))
                    threads.append(thread)
                    thread.start()

        listening = threading.Thread(target=serve)
        listening.start()
        try:
            yield
        finally:
            is_over.set()
            listening.join()
            for thread in threads:
                thread.join()


def uncut() -> Iterator[Cut]:
    return itertools.repeat(Cut())


def _relay(client: socket.socket, target: int, cut: Cut, is_over: threading.Event) -> None:
    limits = {"sent": cut.after_sent, "received": cut.after_received}
    passed = {"sent": 0, "received": 0}
    with client, suppress(OSError):
        if cut.at_once:
            _reset(client)
            return
        with socket.create_connection((LOCAL, target)) as server:
            while not is_over.is_set():
                for ready in select.select([client, server], [], [], 0.05)[0]:
                    name, other = ("sent", server) if ready is client else ("received", client)
                    data = ready.recv(65536)
                    limit = limits[name]
                    if limit is not None and passed[name] + len(data) >= limit:
                        other.sendall(data[: limit - passed[name]])
                        if cut.with_reset:
                            _reset(client)
                        return
                    if not data:
                        return
                    other.sendall(data)
                    passed[name] += len(data)


def _reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
