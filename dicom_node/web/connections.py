"""One HTTP connection: bounded heads, and no connection that brings nothing for long.

uvicorn bounds neither the head of a request nor the time that it may take; an open connection costs a file
descriptor, and an endless header all memory.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_S: Final = 20.0  # from the opening of a connection, or the first byte of a request, to its body


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits on the head of each request."""

    _head_bytes = 0
    _is_in_head = True
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count, before the first byte."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head that is too long, whatever it consists of."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if not self._is_in_head:
            self._begin_head()

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body.

        uvicorn collects them in a bytearray, which copies each of them twice; bytes are handed on as such.
        """
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]
        super().on_body(body)

    def _begin_head(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._head_deadline = self.loop.call_later(HEAD_S, self._give_up)

    def _end_head(self) -> None:
        self._is_in_head = False
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
