"""What is told of HTTP requests: searches, reading, what operators do, and who is turned away.

A middleware around DICOMweb and the operator's API: it sees address, method and status, and no handler has
to know of it. STOW-RS tells for itself what it stored.
"""

import re
from collections.abc import Iterable
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.audit import codes, events
from dicom_node.audit.events import Node, Taken, Tally
from dicom_node.audit.query import address_of
from dicom_node.audit.trail import Trail, trail_of
from dicom_node.errors import NotAuthorised
from dicom_node.settings import NodeSettings
from dicom_node.web.login.who import login_in

SEARCHES: Final = re.compile(r"(/studies/[0-9.]+(/series/[0-9.]+)?)?/(studies|series|instances|workitems)")
STUDY: Final = re.compile(r"/studies/([0-9.]{1,64})(/.*)?")
WHOLE: Final = re.compile(r"(/series/[0-9.]{1,64})?")  # below a study: it, or a series of it, as files
CHANGES: Final = re.compile(r"/[a-z-]+(/[0-9a-f.]{1,64})?(/[a-z]+)?")
WORKITEMS: Final = "/workitems"
CHANGING: Final = frozenset({"POST", "PUT", "DELETE"})


class Audited:
    """Tells the trail what the requests below a mount did; `mount` is where, without a slash at its end."""

    def __init__(self, app: ASGIApp, settings: NodeSettings, mount: str) -> None:
        self._app = app
        self._settings = settings
        self._mount = mount

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; what it did is written before its answer begins, or after its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(trail_of(self._settings), Request(scope), self._mount)

        async def told_send(message: Message) -> None:
            visit.see(message)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                visit.end()

        try:
            await self._app(scope, receive, told_send)
        except NotAuthorised as error:
            visit.turned_away(str(error))
            raise
        finally:
            visit.break_off()


class _Visit:
    """One request."""

    def __init__(self, trail: Trail, request: Request, mount: str) -> None:
        self._trail = trail
        self._request = request
        self._mount = mount
        self._path = request.url.path.removeprefix(mount)
        self._reader = sender_of(request)
        self._underway: Tally | None = None  # a study or series on its way out

    def see(self, message: Message) -> None:
        """Tell what can be told before the answer begins."""
        if message["type"] == "http.response.start" and message["status"] < 300:
            if self._request.method in CHANGING:
                self._tell_change()
            elif self._request.method == "GET":
                self._tell_reading()

    def end(self) -> None:
        """Tell what went out whole."""
        if self._underway is not None:
            self._trail.sent(self._reader, self._underway, requestor=self._reader)
            self._underway = None

    def break_off(self) -> None:
        """Tell what did not; nothing where the answer had ended."""
        if self._underway is not None:
            self._trail.sent(self._reader, Tally(), failed=self._underway, requestor=self._reader)
            self._underway = None

    def turned_away(self, why: str) -> None:
        """Tell who was refused."""
        self._trail.refused(self._reader, f"{self._request.method} refused: {why}", codes.RESTRICTED_FUNCTION)

    def _tell_reading(self) -> None:
        if self._mount != "/dicom-web":
            return  # the operator's API has no patient attribute
        if SEARCHES.fullmatch(self._path):
            self._tell_search()
        elif (study := STUDY.fullmatch(self._path)) is not None:
            self._tell_study(study[1], study[2] or "")
        elif self._path == "/wado":
            self._trail.accessed(self._reader, str(self._request.query_params.get("studyUID", ""))[:64])

    def _tell_search(self) -> None:
        parameters = self._request.query_params.multi_items()
        path = self._mount + self._path
        query = address_of(path, parameters, is_whole=self._trail.tells_patients)
        self._trail.queried(self._reader, events.web_query(path, query))

    def _tell_study(self, study: str, rest: str) -> None:
        if WHOLE.fullmatch(rest):
            self._underway = Tally({study: {}})
        else:
            self._trail.accessed(self._reader, study)

    def _tell_change(self) -> None:
        is_stow = self._mount == "/dicom-web" and not self._path.startswith(WORKITEMS)
        if not is_stow and CHANGES.fullmatch(self._path):
            what = f"{self._request.method} {self._mount}{self._path}"
            self._trail.operated(self._reader.user or self._reader.address, self._reader.address, what)


def stowed(request: Request, settings: NodeSettings, stored: Iterable[Taken], refused: int) -> None:
    """Tell what a STOW-RS request brought."""
    tally = Tally()
    for instance in stored:
        tally.take(instance)
    trail_of(settings).received(sender_of(request), tally, refused)


def sender_of(request: Request) -> Node:
    """Who sent a request: from where, and the name of whoever logged in there."""
    login = login_in(request.scope)
    return Node("", request.client.host if request.client else "", "" if login is None else login.name)
