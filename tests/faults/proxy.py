"""A TCP proxy in front of a server, that can lose an answer or make everything slow."""

import select
import socket
import threading
import time
from contextlib import suppress
from typing import Self


class Proxy:
    """Passes bytes between clients and 127.0.0.1:`port`."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.delay_s = 0.0
        self._lose_answer_to = b""
        self.lost = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def lose_next_answer_to(self, request: bytes) -> None:
        """Break the connection once, between a request with these bytes and its answer."""
        self._lose_answer_to = request

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # Nobody may listen there now: then the client hears so.
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._upstream)) as server:
            is_losing = False
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if client in readable:
                    content = client.recv(1 << 16)
                    if not content:
                        return
                    if self._lose_answer_to and self._lose_answer_to in content:
                        self._lose_answer_to, is_losing = b"", True
                    time.sleep(self.delay_s)
                    server.sendall(content)
                if server in readable:
                    content = server.recv(1 << 16)
                    if is_losing:
                        self.lost += 1
                        return  # the server has done it; nobody hears of it
                    if not content:
                        return
                    client.sendall(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
