"""Builds the app: routes, middleware, error -> HTTP status."""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import anyio
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.audit.web import Audited
from dicom_node.errors import BadRequest, IndexUnavailable, NodeError, NotFound, UnexpectedFailure
from dicom_node.header import MIB
from dicom_node.services import open_decoders, open_pressure, open_receiver
from dicom_node.settings import NodeSettings
from dicom_node.web import (
    ask,
    ask_page,
    bulk_data,
    capabilities,
    corrections,
    dead_letters,
    health,
    operations,
    operator_page,
    qido,
    rendered,
    stow,
    ups,
    ups_events,
    viewer,
    wado,
    wado_uri,
)
from dicom_node.web.frames import Layouts
from dicom_node.web.health import readiness_checks
from dicom_node.web.login import page as login_page
from dicom_node.web.login.answers import LOGIN_PAGE
from dicom_node.web.login.doorkeeper import Doorkeeper
from dicom_node.web.login.failures import Failures
from dicom_node.web.login.gate import Gate
from dicom_node.web.login.rights import guard
from dicom_node.web.metadata import MetadataCache
from dicom_node.web.own_site import OwnOriginOnly, OwnSiteOnly
from dicom_node.web.services import DICOM_WEB, WebServices, json_response
from storage.database import Database
from storage.errors import SearchRefused, StorageError
from storage.files import open_files

API: Final = "/api"
MAX_UPLOADS: Final = 16
MAX_ADDRESS_BYTES: Final = 16 * 1024
MAX_PIECE_BYTES: Final = 4 * MIB
SLOW_READER_S: Final = 60.0  # without room for the next piece of an answer
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"SAMEORIGIN"),
)
DATA_POLICY: Final = b"default-src 'none'; sandbox; frame-ancestors 'none'"
"""For everything that brings no policy of its own: data is shown by nobody's script."""

logger = logging.getLogger(__name__)


def build_app(settings: NodeSettings, database: Database, failures: Failures | None = None) -> Starlette:
    """Build the web server of one node; its processes share `failures`, of those who could not log in."""
    routes = all_routes(settings)
    open_addresses = guard(routes)
    is_open = settings.http.login == "none"
    doorkeeper = None if is_open else Doorkeeper(settings, failures or Failures())
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard), Middleware(Gate, doorkeeper, open_addresses)],
        exception_handlers={
            NodeError: _answer_node_error,
            StorageError: _answer_storage_error,
            SQLAlchemyError: _answer_storage_error,
            HTTPException: _answer_http_error,
        },
    )
    app.router.redirect_slashes = False
    files = open_files(settings.storage)
    app.state.services = WebServices(
        database=database,
        files=files,
        receiver=open_receiver(settings, database),
        settings=settings,
        readiness_checks=readiness_checks(settings, database, files),
        uploads=anyio.CapacityLimiter(MAX_UPLOADS),
        pressure=open_pressure(settings, database),
        decoders=open_decoders(settings),
        layouts=Layouts(),
        metadata=MetadataCache(settings.home / "cache" / "metadata", settings.http.metadata_cache_mb * MIB),
        doorkeeper=doorkeeper,
    )
    return app


def all_routes(settings: NodeSettings) -> Sequence[BaseRoute]:
    """Every address of the web server; each needs a row in login/rights.py."""
    return [
        Mount(
            DICOM_WEB,
            routes=dicom_web_routes(),
            middleware=[Middleware(Audited, settings, DICOM_WEB), Middleware(OwnOriginOnly)],
        ),
        Mount(
            API,
            routes=_operator_routes(),
            middleware=[Middleware(Audited, settings, API), Middleware(OwnSiteOnly, settings.http)],
        ),
        *_page_routes(),
        *_login_routes([Middleware(OwnSiteOnly, settings.http)]),
        Route("/{path:path}", viewer.show_viewer, methods=["GET"]),
    ]


def dicom_web_routes() -> Sequence[BaseRoute]:
    """Every address below /dicom-web; the conformance statement prints them."""
    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    instance = series + "/instances/{instance}"
    searches = [
        Route("/series", qido.search_for_series),
        Route("/instances", qido.search_for_instances),
        Route(study + "/series", qido.search_for_series),
        Route(study + "/instances", qido.search_for_instances),
        Route(series + "/instances", qido.search_for_instances),
    ]
    pictures = [
        Route(level + kind, endpoint)
        for level in (study, series, instance, instance + "/frames/{frames}")
        for kind, endpoint in (
            ("/rendered", rendered.retrieve_rendered),
            ("/thumbnail", rendered.retrieve_thumbnail),
        )
    ]
    return [
        Route(instance + "/frames/{frames}", wado.retrieve_frames),  # first: asked for most often
        Route("/studies", qido.search_for_studies, methods=["GET"]),
        Route("/studies", stow.store_instances, methods=["POST"]),
        Route(study, wado.retrieve_instances, methods=["GET"]),
        Route(study, stow.store_instances, methods=["POST"]),
        *searches,
        *(Route(level + "/metadata", wado.retrieve_metadata) for level in (study, series, instance)),
        Route(series, wado.retrieve_instances),
        Route(instance, wado.retrieve_instances),
        Route(instance + "/bulkdata/{path:path}", bulk_data.retrieve_bulk_data),
        *pictures,
        Route("/wado", wado_uri.retrieve_object),
        *_workitem_routes(),
        Route("/", capabilities.show_capabilities, methods=["GET", "OPTIONS"]),
        Route("/{path:path}", _nothing_here),
    ]


def _workitem_routes() -> Sequence[BaseRoute]:
    workitem = "/workitems/{workitem}"
    subscriber = workitem + "/subscribers/{subscriber}"
    return [
        Route("/workitems", ups.search, methods=["GET"]),
        Route("/workitems", ups.create, methods=["POST"]),
        Route(workitem, ups.retrieve, methods=["GET"]),
        Route(workitem, ups.update, methods=["POST"]),
        Route(workitem + "/state", ups.put_state, methods=["PUT"]),
        Route(workitem + "/cancelrequest", ups.request_cancellation, methods=["POST"]),
        Route(subscriber, ups_events.put_subscription, methods=["POST"]),
        Route(subscriber, ups_events.delete_subscription, methods=["DELETE"]),
        Route(subscriber + "/suspend", ups_events.suspend_subscription, methods=["POST"]),
        WebSocketRoute("/ws/subscribers/{subscriber}", ups_events.EventChannel().answer),
    ]


def _operator_routes() -> Sequence[BaseRoute]:
    return [
        Route("/studies", operations.list_studies),
        Route("/studies/{study}", operations.show_study),
        Route("/jobs", operations.list_jobs),
        Route("/jobs/{job_id}", operations.show_job),
        Route("/jobs/{job_id}/requeue", dead_letters.requeue, methods=["POST"]),
        Route("/deliveries/{delivery_id}/redeliver", dead_letters.redeliver, methods=["POST"]),
        Route("/dead-letters", dead_letters.list_dead_letters),
        Route("/corrections", corrections.show_corrections),
        Route("/ask", ask.ask_question, methods=["POST"]),
        Route("/ask/{job_id}", ask.show_answer),
        Route("/ask/{job_id}/send", ask.send_answer, methods=["POST"]),
        Route("/{path:path}", _nothing_here),
    ]


def _page_routes() -> Sequence[BaseRoute]:
    return [
        Route("/health/live", health.live),
        Route("/health/ready", health.ready),
        Route("/metrics", health.metrics),
        Route("/operator", operator_page.show_operator_page),
        Route("/operator/style.css", operator_page.show_style),
        Route("/ask", ask_page.show_panel),
        Route("/ask/panel.js", ask_page.show_panel_script),
        Route("/ask/viewer.js", ask_page.show_viewer_script),
        Route("/ask/style.css", ask_page.show_panel_style),
        Route("/app-config.js", viewer.app_config),
    ]


def _login_routes(own_site: Sequence[Middleware]) -> Sequence[BaseRoute]:
    return [
        Route(LOGIN_PAGE, login_page.show_login, methods=["GET"]),
        Route(LOGIN_PAGE, login_page.log_in, methods=["POST"], middleware=own_site),
        Route("/login/style.css", login_page.show_style),
        Route("/logout", login_page.log_out, methods=["POST"], middleware=own_site),
    ]


def _nothing_here(request: Request) -> Response:
    del request
    raise NotFound("there is nothing at this address")


async def _answer_node_error(request: Request, error: Exception) -> Response:
    del request
    return _error_response(error if isinstance(error, NodeError) else UnexpectedFailure())


async def _answer_storage_error(request: Request, error: Exception) -> Response:
    del request
    if isinstance(error, SearchRefused):
        return _error_response(BadRequest(str(error)))
    logger.error("the database or the disk failed: %s", type(error).__name__)
    return _error_response(IndexUnavailable("the disk or the database cannot be used now"))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework itself: a method that is not allowed here."""
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    response = json_response({"error": "this method is not offered here", "advice": "See Allow."}, status)
    response.headers.update(headers)
    return response


def _error_response(error: NodeError) -> Response:
    response = json_response({"error": str(error), "advice": error.advice}, error.http_status)
    if error.is_retryable:
        response.headers["Retry-After"] = "30"
    return response


class _ReaderTooSlow(Exception):
    """A client left no room for the next piece of its answer; the connection is closed."""


class _Guard:
    """Boundary of the web server: long addresses refused, headers on every answer, no failure shown."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def guarded_send(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                _add_security_headers(message)
            await _send_in_time(message, send)

        try:
            if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_ADDRESS_BYTES:
                raise BadRequest("the address is too long")
            await self._app(scope, receive, guarded_send)
        except NodeError as error:
            await _error_response(error)(scope, receive, guarded_send)
        except _ReaderTooSlow:
            logger.warning("a client did not read its answer and was cut off")
            raise
        except Exception as error:
            logger.exception("request failed unexpectedly: %s", type(error).__name__)
            if is_started:
                raise  # the answer has begun: the connection must break, not look whole
            failure = UnexpectedFailure("the node failed over this request")
            await _error_response(failure)(scope, receive, guarded_send)


async def _send_in_time(message: Message, send: Send) -> None:
    """Send a message; raises _ReaderTooSlow when the client makes no room for it."""
    if not message.get("body"):
        await send(message)
        return
    for piece in _pieces(message):
        try:
            with anyio.fail_after(SLOW_READER_S):
                await send(piece)
        except TimeoutError as error:
            raise _ReaderTooSlow from error


def _pieces(message: Message) -> Iterator[Message]:
    """A large body in pieces: whoever reads slowly is waited for before the next, and not for ever."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or len(body) <= MAX_PIECE_BYTES:
        yield message
        return
    view = memoryview(body)
    for start in range(0, len(body), MAX_PIECE_BYTES):
        is_last = start + MAX_PIECE_BYTES >= len(body)
        piece = bytes(view[start : start + MAX_PIECE_BYTES])
        yield {**message, "body": piece, "more_body": message.get("more_body", False) if is_last else True}


def _add_security_headers(message: Message) -> None:
    headers = message.setdefault("headers", [])
    names = {name.lower() for name, _value in headers}
    headers.extend(pair for pair in SECURITY_HEADERS if pair[0] not in names)
    if b"content-security-policy" not in names:
        headers.append((b"content-security-policy", DATA_POLICY))
