"""Accepts TCP/TLS, vets the A-ASSOCIATE-RQ before it costs anything, hands the association to the right room.

    vetting.py    one thread: accept, read the request, who may come in (admission.py)
    crew.py       hands it to one of several processes, when there are several
    door.py       a thread for each association: store_scp.py for C-ECHO and C-STORE, acceptor.py for others

An AE title is a name, not a credential: the listener binds to the loopback address by default.

Source: PS3.8 9.2 and 9.3.2 (A-ASSOCIATE-RQ), PS3.4 B.
"""

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from dicom_node.dimse.admission import Admission
from dicom_node.dimse.crew import Crew, take_connections
from dicom_node.dimse.dimse_command import Answer
from dicom_node.dimse.door import DRAIN_S, Door, DoorServices
from dicom_node.dimse.vetting import Vetted, VettingLoop, open_listening
from dicom_node.errors import TlsUnusable, UnexpectedFailure
from dicom_node.pressure import Pressure
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from dicom_node.tls import listening_context
from storage.database import Database

PR_SET_PDEATHSIG: Final = 1
END_S: Final = DRAIN_S + 5.0

logger = logging.getLogger(__name__)


class Listener:
    """A running DICOM listener in this process."""

    def __init__(self, door: Door, loop: VettingLoop, pressure: Pressure, address: tuple[str, int]) -> None:
        self.server_address = address
        self._door = door
        self._loop = loop
        self._pressure = pressure
        self._thread = threading.Thread(target=loop.run, name="listener", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Let C-STOREs under way end, and end the associations; new ones are told to come later."""
        self._pressure.drain()
        self._door.drain()
        self._loop.stop()
        self._thread.join()


def start_listener(settings: NodeSettings, receiver: Receiver, database: Database) -> Listener:
    """Listen as `settings` says, with every association in a thread of this process."""
    admission = Admission(settings, receiver.pressure)
    door = Door(settings, DoorServices(receiver, database, admission, guard))

    def hand_over(vetted: Vetted) -> bool:
        vetted.connection.setblocking(True)
        return door.open(vetted, admission.leave)

    loop = VettingLoop(admission, hand_over, settings.dimse.acse_timeout_s)
    listening = _listen(settings, loop)
    door.start()
    return Listener(door, loop, receiver.pressure, listening)


@dataclass(frozen=True)
class ProcessHooks:
    """What `run_listener` needs of whoever starts it."""

    open_receiver: Callable[[NodeSettings, Database], Receiver]
    pressure: Pressure  # of the vetting process
    begin: Callable[[int], None]  # called first in every receiving process, with its number: logging


def run_listener(
    settings: NodeSettings, database: Database, hooks: ProcessHooks, told_to_stop: threading.Event
) -> None:
    """Listen as `settings` says with several receiving processes, until `told_to_stop`.

    Call it in the main thread of a process that has no other.
    """
    pressure = hooks.pressure
    admission = Admission(settings, pressure)
    crew = Crew(partial(_receive, settings, database, hooks), admission.leave)
    loop = VettingLoop(admission, crew.hand_over, settings.dimse.acse_timeout_s)
    _listen(settings, loop)
    database.close()  # each process opens connections of its own
    crew.start(loop, settings.dimse.process_count)
    ending: list[float] = []

    def tick() -> None:
        if told_to_stop.is_set() and not ending:
            ending.append(time.monotonic())
            pressure.drain()
            crew.end()
        if ending and (crew.is_over or time.monotonic() - ending[0] > END_S):
            crew.kill()
            loop.stop()
        crew.tend()

    loop.run(tick)


def guard(answer: Callable[[], Answer]) -> Answer:
    """Boundary of the SCP: whatever happens inside, the peer gets a failure and the node goes on."""
    try:
        return answer()
    except Exception as error:
        logger.exception("C-STORE failed unexpectedly: %s", type(error).__name__)
        return Answer(UnexpectedFailure.dimse_status, UnexpectedFailure.advice)


def _listen(settings: NodeSettings, loop: VettingLoop) -> tuple[str, int]:
    """Open the ports; returns where the plain one, or the one with TLS, really is."""
    addresses = []
    if not settings.tls.is_required:
        listening = open_listening(settings.dimse.host, settings.dimse.port)
        loop.listen(listening)
        addresses.append(listening.getsockname()[:2])
    if listening_context(settings) is not None:
        listening = open_listening(settings.dimse.host, settings.tls.port)
        loop.listen(listening, is_tls=True)
        addresses.append(listening.getsockname()[:2])
    if not addresses:
        raise TlsUnusable("tls.is_required: no port can be opened")
    host, port = addresses[0]
    return str(host), int(port)


def _receive(
    settings: NodeSettings, database: Database, hooks: ProcessHooks, number: int, control: socket.socket
) -> None:
    """One receiving process, from its fork to its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    hooks.begin(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the vetting process, which ends the others
    signal.signal(signal.SIGTERM, lambda *_: control.shutdown(socket.SHUT_RD))
    receiver = hooks.open_receiver(settings, database)
    admission = Admission(settings, receiver.pressure)
    door = Door(settings, DoorServices(receiver, database, admission, guard))
    door.start()
    receiver.prepare()

    def leave(address: str) -> None:
        try:
            control.send(address.encode("ascii"))
        except OSError:
            return  # the vetting process has ended, and with it the counting

    def take(vetted: Vetted) -> None:
        vetted.connection.setblocking(True)
        if not door.open(vetted, leave):
            vetted.connection.close()
            leave(vetted.address[0])

    logger.info("receiving", extra={"pid": os.getpid(), "count": number})
    take_connections(control, take)
    receiver.pressure.drain()
    door.drain()
    receiver.close()
    database.close()
