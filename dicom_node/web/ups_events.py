"""UPS-RS: who is told of what, and the WebSocket by which it is told.

What a subscriber hears is read from the workitems themselves, so it does not matter which process changed
them. Nothing is kept for a subscriber who is not connected but the state as it is when it comes back.

Source: PS3.18 11.10 to 11.13, 8.10 (notifications), PS3.4 CC.2.3, CC.2.4.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from dicom_node.errors import BadRequest, NotFound
from dicom_node.web.qido import OTHER_PARAMETERS
from dicom_node.web.services import DICOM_WEB, WebServices, services_of, uid_in_path
from dicom_node.web.ups_match import matches, read_path
from dicom_node.web.ups_view import PUSH_SOP_CLASS, data_set, element, render_workitem
from storage.database import Transaction
from storage.jobs import JobState
from storage.workitems import (
    FILTERED,
    GLOBAL,
    REFUSALS,
    Attributes,
    Subscription,
    WorkitemView,
    find_workitem,
    newest_workitems,
    subscribe,
    subscriptions_of,
    suspend,
    unsubscribe,
)

AE_TITLE: Final = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")
LOOK_EVERY_S: Final = 0.25
MAX_LISTENERS: Final = 100  # open WebSockets of one process
MAX_WATCHED: Final = 1000  # workitems that a global subscription looks at, the newest
STATE_REPORT: Final = 1  # Event Type ID. Source: PS3.4 Table CC.2.4-1
CANCEL_REQUESTED: Final = 2
PROGRESS_REPORT: Final = 3
PROGRESS: Final = "00741002"
POLICY_VIOLATION: Final = 1008  # Source: RFC 6455 7.4.1
TRY_AGAIN_LATER: Final = 1013
OTHER_NAMES: Final = OTHER_PARAMETERS | {"deletionlock", "filter"}


def put_subscription(request: Request) -> Response:
    """Answer POST .../workitems/{workitem}/subscribers/{ae}[?deletionlock=true]."""
    uid, subscriber = uid_in_path(request, "workitem"), _subscriber(request.path_params["subscriber"])
    keys = {name: value for name, value in request.query_params.items() if name.lower() not in OTHER_NAMES}
    if uid == FILTERED and not all(read_path(name) for name in keys):
        raise BadRequest("the filter of a subscription names attributes only")
    has_lock = request.query_params.get("deletionlock", "").lower() == "true"
    with services_of(request).database.transaction() as tx:
        if uid not in (GLOBAL, FILTERED) and find_workitem(tx, uid) is None:
            raise NotFound(REFUSALS[0xC307])
        subscribe(tx, Subscription(uid, subscriber, has_lock, keys if uid == FILTERED else None, 0.0))
    scheme = "wss" if request.url.scheme == "https" else "ws"
    address = f"{scheme}://{request.url.netloc}{DICOM_WEB}/ws/subscribers/{subscriber}"
    return Response(None, 201, {"Content-Location": address})


def delete_subscription(request: Request) -> Response:
    """Answer DELETE .../workitems/{workitem}/subscribers/{ae}."""
    with services_of(request).database.transaction() as tx:
        unsubscribe(tx, *_existing(request, tx))
    return Response(None, 200)


def suspend_subscription(request: Request) -> Response:
    """Answer POST .../workitems/{global UID}/subscribers/{ae}/suspend."""
    if request.path_params["workitem"] not in (GLOBAL, FILTERED):
        raise BadRequest("only a global subscription is suspended")
    with services_of(request).database.transaction() as tx:
        suspend(tx, *_existing(request, tx))
    return Response(None, 200)


def _existing(request: Request, tx: Transaction) -> tuple[str, str]:
    uid, subscriber = uid_in_path(request, "workitem"), _subscriber(request.path_params["subscriber"])
    if not any(found.workitem_uid == uid for found in subscriptions_of(tx, subscriber)):
        raise NotFound("there is no such subscription")
    return uid, subscriber


def _subscriber(text: str) -> str:
    if AE_TITLE.fullmatch(text) is None:
        raise BadRequest("a subscriber is named by an AE title, 1 to 16 characters")
    return text


@dataclass
class Watch:
    """What one connection was told already: the events of each workitem, by their names."""

    subscriber: str
    told: dict[str, set[str]] = field(default_factory=dict)
    is_begun: bool = False
    message_id: int = 0

    def news(self, services: WebServices) -> list[Attributes]:
        """Look once, and give what is to be told now."""
        with services.database.reading() as tx:
            wanted = subscriptions_of(tx, self.subscriber)
            events = [event for view in _watched(tx, wanted) for event in self._news_of(tx, view, wanted)]
        self.is_begun = True
        return events

    def _news_of(
        self, tx: Transaction, view: WorkitemView, wanted: list[Subscription]
    ) -> Iterator[Attributes]:
        rendered = render_workitem(tx, view, is_listed=True)
        named = next((each for each in wanted if each.workitem_uid == view.workitem_uid), None)
        if named is None and not any(_covers(each, view, rendered) for each in wanted):
            return
        first_look = view.workitem_uid not in self.told
        told = self.told.setdefault(view.workitem_uid, set())
        for name, event in _events(view, rendered):
            if name in told:
                continue
            told.add(name)
            if first_look and not self._is_new_to(view, name, named):
                continue
            self.message_id = self.message_id % 65535 + 1
            yield self._report(view, event)

    def _is_new_to(self, view: WorkitemView, name: str, named: Subscription | None) -> bool:
        """Of what was before the connection, the present state is told, to those who named the workitem."""
        return name == f"state {view.state}" and (named is not None or self.is_begun)

    def _report(self, view: WorkitemView, event: Attributes) -> Attributes:
        """Source: PS3.18 8.10.5 (message), PS3.7 10.1.1 (N-EVENT-REPORT)."""
        return {
            "00000002": {"vr": "UI", "Value": [PUSH_SOP_CLASS]},
            "00000110": {"vr": "US", "Value": [self.message_id]},
            "00001000": {"vr": "UI", "Value": [view.workitem_uid]},
            **event,
        }


def _watched(tx: Transaction, wanted: list[Subscription]) -> Iterator[WorkitemView]:
    named = {each.workitem_uid for each in wanted} - {GLOBAL, FILTERED}
    if any(each.workitem_uid in (GLOBAL, FILTERED) for each in wanted):
        for view in newest_workitems(tx, state=None, patient_id=None, most=MAX_WATCHED):
            named.discard(view.workitem_uid)
            yield view
    for uid in sorted(named):
        found = find_workitem(tx, uid)
        if found is not None:
            yield found


def _covers(subscription: Subscription, view: WorkitemView, rendered: Attributes) -> bool:
    """Whether a global subscription is about this workitem."""
    if subscription.workitem_uid == GLOBAL:
        return True
    if subscription.workitem_uid != FILTERED:
        return subscription.workitem_uid == view.workitem_uid
    keys = {path: value for name, value in (subscription.filter or {}).items() if (path := read_path(name))}
    return matches(rendered, keys)


def _events(view: WorkitemView, rendered: Attributes) -> Iterator[tuple[str, Attributes]]:
    """Everything that has happened to a workitem, in its order, each with a name of its own."""
    yield f"state {JobState.SCHEDULED}", _state_report(JobState.SCHEDULED, rendered)
    if view.started_at is not None:
        yield f"state {JobState.IN_PROGRESS}", _state_report(JobState.IN_PROGRESS, rendered)
    for number, request in enumerate(view.cancel_requests):
        kept: Attributes = {
            tag: request[tag] for tag in ("00741238", "0074100C", "0074100A") if tag in request
        }
        yield f"cancel {number}", _event(CANCEL_REQUESTED, kept)
    progress = rendered.get(PROGRESS)
    if progress and view.state is JobState.IN_PROGRESS:
        yield (
            f"progress {json.dumps(progress, sort_keys=True)}",
            _event(PROGRESS_REPORT, {PROGRESS: progress}),
        )
    if view.state in (JobState.COMPLETED, JobState.CANCELED):
        yield f"state {view.state}", _state_report(view.state, rendered)


def _state_report(state: JobState, rendered: Attributes) -> Attributes:
    """Source: PS3.4 Table CC.2.4-1."""
    report = data_set(element("ProcedureStepState", str(state)))
    for tag in ("00404041", "00741238", "0074100E"):
        if tag in rendered:
            report[tag] = rendered[tag]
    if state is JobState.CANCELED:
        for item in rendered.get(PROGRESS, {}).get("Value") or []:
            report |= {tag: item[tag] for tag in ("00741238", "0074100E") if tag in item}
    return _event(STATE_REPORT, report)


def _event(kind: int, content: Attributes) -> Attributes:
    event: dict[str, Any] = {"00001002": {"vr": "US", "Value": [kind]}, **content}
    return event


class EventChannel:
    """Answers the WebSocket .../ws/subscribers/{ae}; counts who listens."""

    def __init__(self) -> None:
        self._listeners = 0

    async def answer(self, socket: WebSocket) -> None:
        """Tell one subscriber, until it goes."""
        subscriber = socket.path_params["subscriber"]
        if AE_TITLE.fullmatch(subscriber) is None or not _is_same_origin(socket):
            await socket.close(POLICY_VIOLATION)
            return
        if self._listeners >= MAX_LISTENERS:
            await socket.close(TRY_AGAIN_LATER)
            return
        self._listeners += 1
        try:
            await socket.accept()
            await _tell(socket, Watch(subscriber))
        finally:
            self._listeners -= 1


async def _tell(socket: WebSocket, watch: Watch) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_with_client, socket, tasks.cancel_scope)
        while True:
            for event in await run_in_threadpool(watch.news, services_of(socket)):
                await socket.send_text(json.dumps(event, ensure_ascii=False))
            await anyio.sleep(LOOK_EVERY_S)


async def _end_with_client(socket: WebSocket, scope: anyio.CancelScope) -> None:
    """Wait until the client goes; what it says is not listened to."""
    try:
        while True:
            await socket.receive()
    except (WebSocketDisconnect, RuntimeError):
        scope.cancel()


def _is_same_origin(socket: WebSocket) -> bool:
    """A page of another site may not listen with the rights of its reader. Source: RFC 6455 10.2."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host", "")
