"""The middleware that finds out who sends a request, before anything else looks at it."""

import time
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.web.login.answers import refused
from dicom_node.web.login.doorkeeper import Doorkeeper, Refused
from dicom_node.web.login.who import EVERYBODY, KEY, address_of

LOOK_AGAIN_S: Final = 5.0
POLICY_VIOLATION: Final = 1008  # Source: RFC 6455 7.4.1


class Gate:
    """Writes who it is into the scope of each request; turns away who is nobody, but for open addresses."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper | None, open_addresses: frozenset[str]) -> None:
        self._app = app
        self._doorkeeper = doorkeeper
        self._open = open_addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 429 or 503, or let the request in."""
        if scope["type"] not in {"http", "websocket"} or self._doorkeeper is None:
            await self._app({**scope, KEY: EVERYBODY}, receive, send)
            return
        is_open = scope["path"] in self._open
        try:
            login = await self._doorkeeper.identify(Headers(scope=scope), address_of(scope))
            if login is None and not is_open:
                raise Refused("nobody is logged in")
        except Refused as error:
            if not is_open:
                await refused(scope, str(error), error.status, error.wait_s)(scope, receive, send)
                return
            login = None
        if scope["type"] == "websocket":
            send = _while_logged_in(self._doorkeeper, scope, send)
        await self._app({**scope, KEY: login}, receive, send)


def _while_logged_in(doorkeeper: Doorkeeper, scope: Scope, send: Send) -> Send:
    """A `send` that closes the connection when its login is over."""
    looked_at = time.monotonic()

    async def checked(message: Message) -> None:
        nonlocal looked_at
        if message["type"] == "websocket.send" and time.monotonic() - looked_at >= LOOK_AGAIN_S:
            looked_at = time.monotonic()
            try:
                is_over = await doorkeeper.identify(Headers(scope=scope), address_of(scope)) is None
            except Refused:
                is_over = True
            if is_over:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return
        await send(message)

    return checked
