"""The processes of the web server: one socket, several that answer on it, each with a core to itself.

They are forked before any thread or event loop exists. One that ends is started again; all end with the
first.
"""

import ctypes
import gc
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.applications import Starlette

from dicom_node.settings import NodeSettings
from dicom_node.settings_web import HttpSettings
from dicom_node.tls import web_context
from dicom_node.web.app import build_app
from dicom_node.web.connections import BoundedConnection
from dicom_node.web.login.failures import Failures
from dicom_node.web.login.way_in import require_way_in
from storage.database import Database

BACKLOG: Final = 2048
MAX_REQUESTS: Final = 1000  # at the same time, of one process; more get 503
SLOW_READER_MS: Final = 60_000  # a client that takes nothing for so long is cut off
KEEP_ALIVE_S: Final = 15
GRACE_S: Final = 5
RESTART_PAUSE_S: Final = 1.0
PR_SET_PDEATHSIG: Final = 1
MAX_EVENT_BYTES: Final = 4096  # of what a subscriber says; nobody listens to it

logger = logging.getLogger(__name__)

OpenDatabase = Callable[[str], Database]


def serve_web(settings: NodeSettings, open_database: OpenDatabase) -> None:
    """Answer HTTP or HTTPS until SIGTERM or SIGINT; `open_database` is called with each process's name.

    Raises
    ------
    TlsUnusable
        If HTTPS is wanted and cannot be had; nothing is answered without it.
    LoginUnusable
        If a log-in is required, and nobody could log in.
    """
    require_way_in(settings)
    tls = web_context(settings.tls) if settings.http.tls else None
    listening = listening_socket(settings.http.host, settings.http.port)
    if settings.http.processes == 1:
        _answer(settings, open_database("web"), listening, tls, Failures())
        return
    _Family(settings, open_database, listening, tls).run()


def listening_socket(host: str, port: int) -> socket.socket:
    """Listen; whoever stops reading an answer is cut off by the kernel."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SLOW_READER_MS)
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return listening


def server_of(app: Starlette, tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    """The server of one process, with its limits; HTTPS where `tls` is given."""
    http: HttpSettings = app.state.services.settings.http
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedConnection,
        ws="websockets-sansio",
        ws_max_size=MAX_EVENT_BYTES,
        lifespan="off",
        access_log=False,  # query strings name patients
        log_config=None,
        server_header=False,
        proxy_headers=http.behind_tls_proxy,  # otherwise anybody on this machine says who they are
        forwarded_allow_ips=[str(network) for network in http.proxies],
        limit_concurrency=MAX_REQUESTS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    config.load()
    config.ssl = tls  # ours is stricter than what uvicorn makes of file names
    return uvicorn.Server(config)


def _answer(
    settings: NodeSettings,
    database: Database,
    listening: socket.socket,
    tls: ssl.SSLContext | None,
    failures: Failures,
) -> None:
    app = build_app(settings, database, failures)
    app.state.services.receiver.prepare(is_journaling=False)
    # What is there now stays: looked through again and again by the garbage collector, it costs 0.1 s a time.
    gc.collect()
    gc.freeze()
    try:
        server_of(app, tls).run(sockets=[listening])
    finally:
        app.state.services.close()
        database.close()


class _Family:
    """The first process, which only watches, and those that answer."""

    def __init__(
        self,
        settings: NodeSettings,
        open_database: OpenDatabase,
        listening: socket.socket,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._open_database = open_database
        self._listening = listening
        self._names: dict[int, str] = {}  # by process id
        self._is_stopping = False
        self._failures = Failures()  # shared by all

    def run(self) -> None:
        """Start all, and start again what ends, until told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for position in range(self._settings.http.processes):
            self._start(f"web-{position + 1}")
        while self._names:
            ended, status = os.wait()
            name = self._names.pop(ended, "")
            if name and not self._is_stopping:
                logger.error("web process ended", extra={"process_name": name, "status": status})
                time.sleep(RESTART_PAUSE_S)
                if not self._is_stopping:
                    self._start(name)

    def _start(self, name: str) -> None:
        parent = os.getpid()
        child = os.fork()
        if child:
            self._names[child] = name
            return
        status = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == parent:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                database = self._open_database(name)
                _answer(self._settings, database, self._listening, self._tls, self._failures)
                status = 0
        finally:
            logging.shutdown()
            os._exit(status)

    def _stop(self, *_: object) -> None:
        self._is_stopping = True
        for child in list(self._names):
            os.kill(child, signal.SIGTERM)
