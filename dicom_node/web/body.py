"""The body of an upload: read ahead while what came before is worked on, within bounds of time and memory."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from starlette.requests import ClientDisconnect

from dicom_node.errors import BodyTooSlow, NodeError, Unparseable
from dicom_node.header import MIB

SILENCE_S: Final = 30.0  # a body that brings nothing for so long is given up
MIN_BYTES_PER_S: Final = 1024  # on average, once it has taken so long
AHEAD_BYTES: Final = MIB  # that wait to be taken; then the sender waits


class Body:
    """Filled by the event loop (`read`), emptied by one thread (`chunks`).

    They meet at a queue: the loop wakes the thread only if that waits, the thread the loop only once there is
    room again.
    """

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # b"" = nothing follows
        self._came, self._taken = 0, 0  # bytes; each counted on one side only
        self._error: NodeError | None = None
        self._is_whole = False
        self._is_held = False  # the sender waits for room
        self._has_room = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def read(self) -> None:
        """Read until the body ends, or cannot be read any further."""
        pace = _Pace()
        try:
            while chunk := await self._next():
                self._came += len(chunk)
                self._waiting.put(chunk)
                pace.count(len(chunk))
                await self._room()
            self._is_whole = True
        except NodeError as error:
            self._error = error
        finally:
            self._waiting.put(b"")

    def chunks(self) -> Iterator[bytes]:
        """Give in a worker thread what came; raises BodyTooSlow, Unparseable."""
        while chunk := self._waiting.get():
            self._taken += len(chunk)
            if self._is_held and self._came - self._taken < AHEAD_BYTES:
                self._is_held = False
                self._loop.call_soon_threadsafe(self._has_room.set)
            yield chunk
        if not self._is_whole:
            raise self._error or Unparseable("the body cannot be read to its end")

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await anext(self._stream, b"")
        except TimeoutError as error:
            raise BodyTooSlow(f"nothing came for {SILENCE_S:.0f} seconds") from error
        except ClientDisconnect as error:
            raise Unparseable("the client broke off") from error

    async def _room(self) -> None:
        """Wait until less than AHEAD_BYTES wait."""
        while self._came - self._taken >= AHEAD_BYTES:
            self._has_room.clear()
            self._is_held = True
            if self._came - self._taken >= AHEAD_BYTES:  # not taken in this very moment
                await self._has_room.wait()


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
