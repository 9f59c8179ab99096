"""Starts listener, web server, workers and sweep as processes on one machine, and restarts what dies."""

import ctypes
import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dicom_node import readiness
from dicom_node.errors import TlsUnusable
from dicom_node.settings import NodeSettings
from dicom_node.stopped import Waker
from dicom_node.tls import web_context

logger = logging.getLogger(__name__)

# In this order they start; in the same order they are told to end: first what lets work in.
PROCESSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("scp", ("scp",)),
    ("web", ("web",)),
    ("sweep", ("sweep",)),
    ("worker-run", ("worker", "run")),
    ("worker-deliver", ("worker", "deliver")),
)
POLL_S = 0.1
FIRST_RESTART_S = 0.2
HEALTHY_AFTER_S = 30.0  # a process that ran for so long starts again at once
GRACE_S = 30.0  # between SIGTERM and SIGKILL
ORPHAN_S = GRACE_S + 5.0  # the same for a process whose supervisor died, which nobody else would kill
LOOK_S = 5.0  # between two looks whether it lives, and whether one was stopped
PR_SET_PDEATHSIG = 1


class CannotServe(Exception):
    """The node cannot start here; the message is one sentence."""


@dataclass
class Child:
    """One supervised process and when it may start again."""

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0  # monotonic seconds, as the next one
    start_after: float = 0.0
    failures: int = 0
    log: IO[bytes] | None = field(default=None, repr=False)


class Supervisor:
    """Holds the processes of one node; `run` blocks until `stop` or a signal."""

    def __init__(
        self, home: Path, commands: Mapping[str, tuple[str, ...]], longest_restart_s: float = 30.0
    ) -> None:
        self._home = home
        self._longest_restart_s = longest_restart_s
        self._is_stopping = threading.Event()
        self._children = [Child(name, command) for name, command in commands.items()]
        self._waker = Waker(os.getpid())
        self._looked_at = time.monotonic()

    def stop(self) -> None:
        """Let `run` end the processes and return."""
        self._is_stopping.set()

    def run(self) -> None:
        """Start everything and keep it running until `stop`."""
        try:
            while not self._is_stopping.wait(POLL_S):
                for child in self._children:
                    self._tend(child)
                self._wake()
        finally:
            self._end_all()

    def _wake(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._waker.look(now)

    def _tend(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_after:
                self._start(child)
            return
        exit_status = child.process.poll()
        if exit_status is None:
            return
        if now - child.started_at > HEALTHY_AFTER_S:
            child.failures = 0
        self._forget(child)
        self._put_off(child, "process ended, starting it again", exit_status=exit_status)

    def _put_off(self, child: Child, message: str, **told: object) -> None:
        """Start it later, and later each time."""
        child.failures += 1
        delay_s = min(FIRST_RESTART_S * 2.0 ** min(child.failures - 1, 16), self._longest_restart_s)
        child.start_after = time.monotonic() + delay_s
        logger.error(message, extra={"process_name": child.name, "delay_s": delay_s, **told})

    def _start(self, child: Child) -> None:
        try:
            (self._home / "logs").mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
            child.log = (self._home / "logs" / f"{child.name}.out").open("ab")
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=child.log,
                stderr=child.log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends them in order
            )
        except OSError as error:  # no room, memory or descriptors: the other processes go on meanwhile
            self._forget(child)
            self._put_off(child, "process cannot be started, trying again", reason=str(error.strerror))
            return
        child.started_at = time.monotonic()
        with suppress(OSError):  # on a full disk the node works on; the file is for people
            self._pid_file(child.name).write_text(f"{child.process.pid}\n", encoding="ascii")
        logger.info("process started", extra={"process_name": child.name, "pid": child.process.pid})

    def _forget(self, child: Child) -> None:
        with suppress(OSError):
            self._pid_file(child.name).unlink(missing_ok=True)
        child.process = None
        if child.log is not None:
            child.log.close()
            child.log = None

    def _pid_file(self, name: str) -> Path:
        return self._home / "run" / f"{name}.pid"

    def _end_all(self) -> None:
        running = [(child, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        for child, process in running:
            try:
                process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                logger.warning("process did not end, killing it", extra={"process_name": child.name})
                process.kill()
                process.wait()
            self._forget(child)


def serve(settings: NodeSettings, config: Path | None) -> None:
    """Run the whole node on this machine until SIGTERM or SIGINT."""
    readiness.report(settings.home, "models", "the worker is starting")  # which takes it back
    commands = node_commands(settings, config)
    supervisor = Supervisor(settings.home, commands, settings.serve.longest_restart_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()


@contextmanager
def only_node_of(home: Path) -> Iterator[None]:
    """Hold HOME/run/serve.lock; the kernel lets go of it however this process ends."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "serve.lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotServe(
                f"another node already runs on {home}; stop it, or give another --home."
            ) from error
        for stale in (*folder.glob("*.pid"), *folder.glob("readiness-*.json")):
            stale.unlink(missing_ok=True)
        pid_file = folder / "serve.pid"
        pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
        try:
            yield
        finally:
            pid_file.unlink(missing_ok=True)


def require_free_ports(settings: NodeSettings) -> None:
    """Raise CannotServe unless every port of the node can be listened on."""
    if not settings.tls.is_required:
        _require_free_port("dimse", settings.dimse.host, settings.dimse.port)
    if settings.tls.listen:
        _require_free_port("tls", settings.dimse.host, settings.tls.port)
    _require_free_port("http", settings.http.host, settings.http.port)


def require_certificate(settings: NodeSettings) -> None:
    """Raise CannotServe if HTTPS is wanted and cannot be had: it would be tried again and again."""
    if settings.http.tls:
        try:
            web_context(settings.tls)
        except TlsUnusable as error:
            raise CannotServe(str(error)) from error


def _require_free_port(section: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotServe(_port_sentence(section, host, port, error)) from error


def _port_sentence(section: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{section}.port: {host}:{port} is taken by another program; stop it, or set another port."
    return f"{section}.host: {host}:{port} cannot be listened on ({error.strerror})."


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel send us SIGTERM when the supervisor dies, so that no port stays taken.

    One that does not end then, the supervisor would kill; without a supervisor it kills itself.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=_end_as_orphan, args=(parent_pid,), name="orphan", daemon=True).start()


def _end_as_orphan(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(LOOK_S)
    time.sleep(ORPHAN_S)
    os.kill(os.getpid(), signal.SIGKILL)


def node_commands(settings: NodeSettings, config: Path | None) -> dict[str, tuple[str, ...]]:
    """The command line of every process of the node, by the name of its pid file."""
    given = ("--config", str(config.absolute())) if config is not None else ()
    common = ("--home", str(settings.home), *given, "--parent", str(os.getpid()))
    return {name: (sys.executable, "-m", "dicom_node", *words, *common) for name, words in PROCESSES}


def _environment() -> dict[str, str]:
    """Ours, with the folder of this very code first, wherever the node was started."""
    code = str(Path(__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{others}" if others else code}
