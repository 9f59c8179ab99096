"""The body of an upload: read ahead while what came before is worked on, within bounds of time and memory."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

import anyio
from starlette.requests import ClientDisconnect

from dicom_node.errors import BodyTooSlow, NodeError, Unparseable
from dicom_node.header import MIB

SILENCE_S: Final = 30.0  # a body that brings nothing for so long is given up
MIN_BYTES_PER_S: Final = 1024  # on average, once it has taken so long
AHEAD_BYTES: Final = MIB  # that wait to be taken; then the sender waits


class Body:
    """Filled by the event loop (`read`), emptied by one thread (`chunks`)."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._waiting: list[bytes] = []
        self._size = 0
        self._error: NodeError | None = None
        self._is_whole = False
        self._is_over = False
        self._changed = anyio.Event()

    async def read(self) -> None:
        """Read until the body ends, or cannot be read any further."""
        pace = _Pace()
        try:
            while chunk := await self._next():
                self._waiting.append(chunk)
                self._size += len(chunk)
                self._tell()
                pace.count(len(chunk))
                while self._size >= AHEAD_BYTES:
                    await self._changed.wait()
            self._is_whole = True
        except NodeError as error:
            self._error = error
        finally:
            self._is_over = True
            self._tell()

    def chunks(self) -> Iterator[bytes]:
        """Give in a worker thread what came, as much at once as there is; raises BodyTooSlow, Unparseable."""
        while chunk := anyio.from_thread.run(self._take):
            yield chunk

    async def _next(self) -> bytes:
        try:
            with anyio.fail_after(SILENCE_S):
                return await anext(self._stream, b"")
        except TimeoutError as error:
            raise BodyTooSlow(f"nothing came for {SILENCE_S:.0f} seconds") from error
        except ClientDisconnect as error:
            raise Unparseable("the client broke off") from error

    async def _take(self) -> bytes:
        while not self._waiting and not self._is_over:
            await self._changed.wait()
        taken, self._waiting, self._size = b"".join(self._waiting), [], 0
        if not taken and not self._is_whole:
            raise self._error or Unparseable("the body cannot be read to its end")
        self._tell()
        return taken

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class _Pace:
    """How quickly a body comes; one that drips holds a thread and a file."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._total = 0

    def count(self, size: int) -> None:
        """Note some bytes; raises BodyTooSlow."""
        self._total += size
        seconds = time.monotonic() - self._started
        if seconds > SILENCE_S and self._total < seconds * MIN_BYTES_PER_S:
            raise BodyTooSlow(f"the body comes with less than {MIN_BYTES_PER_S} bytes a second")
