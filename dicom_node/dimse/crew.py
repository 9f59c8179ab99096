"""Several processes receive at one port: the vetting process hands each vetted connection to one of them.

The processes are forked before this one has threads. A connection travels as a file descriptor beside the
bytes already read; a process tells when an association is over, so that places are counted in one place. A
process that dies gives its places back and is started again.

Source: unix(7), SCM_RIGHTS.
"""

import json
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Never

from dicom_node.dimse.vetting import Vetted, VettingLoop

MAX_MESSAGE_BYTES: Final = 192 * 1024  # an A-ASSOCIATE-RQ, and what came right behind it
RESTART_S: Final = 0.5

logger = logging.getLogger(__name__)


@dataclass
class _Member:
    """One receiving process."""

    number: int
    pid: int
    control: socket.socket
    open_from: Counter[str] = field(default_factory=Counter)  # associations, by address

    @property
    def load(self) -> int:
        return self.open_from.total()


class Crew:
    """The receiving processes, as the vetting process sees them."""

    def __init__(self, serve: Callable[[int, socket.socket], None], leave: Callable[[str], None]) -> None:
        self._serve = serve
        self._leave = leave
        self._members: dict[socket.socket, _Member] = {}
        self._missing: list[tuple[float, int]] = []  # when to start which process again
        self._is_ending = False

    @property
    def is_over(self) -> bool:
        """Whether every process has ended."""
        return not self._members

    def start(self, loop: VettingLoop, count: int) -> None:
        """Fork `count` processes that serve what `loop` hands over; call it while this one has one thread."""
        self._loop = loop
        for number in range(count):
            self._fork(number)

    def hand_over(self, vetted: Vetted) -> bool:
        """Give the connection to the process with the fewest associations."""
        if not self._members:
            return False
        member = min(self._members.values(), key=lambda each: each.load)
        head = json.dumps({"address": vetted.address, "is_tls": vetted.is_tls}).encode() + b"\n"
        try:
            socket.send_fds(member.control, [head + vetted.first], [vetted.connection.fileno()])
        except OSError:
            logger.exception("a receiving process takes no connection", extra={"pid": member.pid})
            return False
        member.open_from[vetted.address[0]] += 1
        vetted.connection.close()
        return True

    def tend(self) -> None:
        """Start again what died; call it now and then."""
        now = time.monotonic()
        due = [number for at, number in self._missing if at <= now]
        self._missing = [(at, number) for at, number in self._missing if at > now]
        for number in due:
            self._fork(number)

    def end(self) -> None:
        """Tell every process to let its associations end, and to end."""
        self._is_ending = True
        self._missing.clear()
        for member in self._members.values():
            # Not by a signal: one that was forked a moment ago would take it as this process does.
            with suppress(OSError):
                member.control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End every process that is still there."""
        self._is_ending = True
        for member in self._members.values():
            os.kill(member.pid, signal.SIGKILL)

    def _fork(self, number: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            for control in self._members:
                control.close()
            self._loop.close_inherited()
            self._live(number, theirs)
        theirs.close()
        ours.setblocking(False)
        self._members[ours] = _Member(number, pid, ours)
        self._loop.watch(ours, self._hear)

    def _live(self, number: int, control: socket.socket) -> Never:
        """In the forked process: its whole life."""
        status = 1
        try:
            self._serve(number, control)
            status = 0
        except BaseException:
            logger.exception("a receiving process broke")
            raise
        finally:
            logging.shutdown()
            os._exit(status)

    def _hear(self, control: socket.socket) -> None:
        member = self._members[control]
        try:
            message = control.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._bury(member)
            return
        address = message.decode("ascii")
        member.open_from[address] -= 1
        self._leave(address)

    def _bury(self, member: _Member) -> None:
        self._loop.unwatch(member.control)
        del self._members[member.control]
        member.control.close()
        _pid, status = os.waitpid(member.pid, 0)
        for address, count in member.open_from.items():
            for _ in range(count):
                self._leave(address)
        if not self._is_ending:
            extra = {"pid": member.pid, "exit_status": os.waitstatus_to_exitcode(status)}
            logger.error("a receiving process ended, starting it again", extra=extra)
            self._missing.append((time.monotonic() + RESTART_S, member.number))


def take_connections(control: socket.socket, take: Callable[[Vetted], None]) -> None:
    """In a receiving process: take connections until the vetting process closes its end."""
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(control, MAX_MESSAGE_BYTES, 4)
        if not message:
            return
        head, _newline, first = message.partition(b"\n")
        told = json.loads(head)
        connection = socket.socket(fileno=descriptors[0])
        take(Vetted(connection, tuple(told["address"]), first, told["is_tls"]))
