"""Which role each route needs: one row a route and method. Without its row no application is built.

The conformance statement prints the table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from dicom_node.errors import NotAuthorised
from dicom_node.settings_web import Role
from dicom_node.web.login.answers import refused
from dicom_node.web.login.who import Login, login_in

WEBSOCKET: Final = "WEBSOCKET"


@dataclass(frozen=True)
class Right:
    """Who may use a route: one of these roles is enough; `is_open`: nobody is asked who they are."""

    roles: frozenset[Role]
    is_open: bool = False

    def __str__(self) -> str:
        if self.is_open:
            return "everybody"
        return "any role" if self.roles == frozenset(Role) else " or ".join(sorted(self.roles))


def _one_of(*roles: Role) -> Right:
    return Right(frozenset(roles))


ANYBODY: Final = Right(frozenset(Role), is_open=True)
ANY_ROLE: Final = _one_of(*Role)
VIEW: Final = _one_of(Role.VIEWER)
SEND: Final = _one_of(Role.SENDER)
VIEW_OR_SEND: Final = _one_of(Role.VIEWER, Role.SENDER)
OPERATE: Final = _one_of(Role.OPERATOR)
MONITOR: Final = _one_of(Role.MONITOR)

STUDY: Final = "/dicom-web/studies/{study}"
SERIES: Final = f"{STUDY}/series/{{series}}"
INSTANCE: Final = f"{SERIES}/instances/{{instance}}"
FRAMES: Final = f"{INSTANCE}/frames/{{frames}}"
WORKITEM: Final = "/dicom-web/workitems/{workitem}"
SUBSCRIBER: Final = f"{WORKITEM}/subscribers/{{subscriber}}"

RIGHTS: Final[dict[str, Right]] = {
    # PS3.18 studies
    "GET /dicom-web/studies": VIEW,
    "POST /dicom-web/studies": SEND,
    f"GET {STUDY}": VIEW,
    f"POST {STUDY}": SEND,
    "GET /dicom-web/series": VIEW,
    "GET /dicom-web/instances": VIEW,
    f"GET {STUDY}/series": VIEW,
    f"GET {STUDY}/instances": VIEW,
    f"GET {SERIES}/instances": VIEW,
    f"GET {SERIES}": VIEW,
    f"GET {INSTANCE}": VIEW,
    f"GET {FRAMES}": VIEW,
    f"GET {INSTANCE}/bulkdata/{{path:path}}": VIEW,
    **{f"GET {level}/metadata": VIEW for level in (STUDY, SERIES, INSTANCE)},
    **{f"GET {level}/rendered": VIEW for level in (STUDY, SERIES, INSTANCE, FRAMES)},
    **{f"GET {level}/thumbnail": VIEW for level in (STUDY, SERIES, INSTANCE, FRAMES)},
    "GET /dicom-web/wado": VIEW,
    # PS3.18 worklist: who sends work follows it
    "GET /dicom-web/workitems": VIEW_OR_SEND,
    "POST /dicom-web/workitems": SEND,
    f"GET {WORKITEM}": VIEW_OR_SEND,
    f"POST {WORKITEM}": SEND,
    f"PUT {WORKITEM}/state": SEND,
    f"POST {WORKITEM}/cancelrequest": OPERATE,
    f"POST {SUBSCRIBER}": VIEW_OR_SEND,
    f"DELETE {SUBSCRIBER}": VIEW_OR_SEND,
    f"POST {SUBSCRIBER}/suspend": VIEW_OR_SEND,
    f"{WEBSOCKET} /dicom-web/ws/subscribers/{{subscriber}}": VIEW_OR_SEND,
    "GET /dicom-web/": ANY_ROLE,
    "OPTIONS /dicom-web/": ANY_ROLE,
    "GET /dicom-web/{path:path}": ANY_ROLE,
    # the operator's
    "GET /api/studies": OPERATE,
    "GET /api/studies/{study}": OPERATE,
    "GET /api/jobs": OPERATE,
    "GET /api/jobs/{job_id}": OPERATE,
    "POST /api/jobs/{job_id}/requeue": OPERATE,
    "POST /api/deliveries/{delivery_id}/redeliver": OPERATE,
    "GET /api/dead-letters": OPERATE,
    "GET /api/corrections": OPERATE,
    "GET /api/{path:path}": ANY_ROLE,
    "GET /operator": OPERATE,
    "GET /operator/style.css": OPERATE,
    # questions, and the viewer
    "POST /api/ask": VIEW,
    "GET /api/ask/{job_id}": VIEW,
    "POST /api/ask/{job_id}/send": VIEW,
    "GET /ask": VIEW,
    "GET /ask/panel.js": VIEW,
    "GET /ask/viewer.js": VIEW,
    "GET /ask/style.css": VIEW,
    "GET /app-config.js": VIEW,
    "GET /{path:path}": VIEW,
    # those who cannot log in yet, and load balancers: /health/ready says no reason to them
    "GET /health/live": ANYBODY,
    "GET /health/ready": ANYBODY,
    "GET /metrics": MONITOR,
    "GET /login": ANYBODY,
    "POST /login": ANYBODY,
    "GET /login/style.css": ANYBODY,
    "POST /logout": ANYBODY,
}


class RightsIncomplete(Exception):
    """A route has no row, or a row no route: a mistake in the code, found before anything is answered."""


def guard(routes: Sequence[BaseRoute]) -> frozenset[str]:
    """Put a guard before each route; returns the addresses at which nobody is asked who they are.

    Raises
    ------
    RightsIncomplete
        If routes and rows are not the same.
    """
    found = {key: route for route, keys in _leaves(routes) for key in keys}
    if unequal := sorted(found.keys() ^ RIGHTS.keys()):
        raise RightsIncomplete(f"dicom_node/web/login/rights.py and the routes differ: {', '.join(unequal)}")
    for route, keys in _leaves(routes):
        route.app = _Guarded(route.app, {key.split(" ", 1)[0]: RIGHTS[key] for key in keys})
    # Only what stands there letter by letter: such an address is of no other route.
    return frozenset(key.split(" ", 1)[1] for key, right in RIGHTS.items() if right.is_open)


def _leaves(
    routes: Sequence[BaseRoute], prefix: str = ""
) -> Iterator[tuple[Route | WebSocketRoute, list[str]]]:
    """Every route, with its keys in the table."""
    for route in routes:
        if isinstance(route, Mount):
            yield from _leaves(route.routes, prefix + route.path)
        elif isinstance(route, WebSocketRoute):
            yield route, [f"{WEBSOCKET} {prefix}{route.path}"]
        elif isinstance(route, Route):
            methods = sorted((route.methods or {"any method"}) - {"HEAD"})
            yield route, [f"{method} {prefix}{route.path}" for method in methods]
        else:
            raise RightsIncomplete(f"a route of a kind that has no rights: {route!r}")


class _Guarded:
    """One route: lets through who has a role for this method."""

    def __init__(self, app: ASGIApp, rights: dict[str, Right]) -> None:
        self._app = app
        self._rights = rights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method", WEBSOCKET)
        right = self._rights["GET" if method == "HEAD" else method]
        login = login_in(scope)
        if right.is_open or (login is not None and login.has_one_of(right.roles)):
            await self._app(scope, receive, send)
        elif method == WEBSOCKET:
            await refused(scope, _missing(login, right), 403)(scope, receive, send)
        else:
            raise NotAuthorised(_missing(login, right))


def _missing(login: Login | None, right: Right) -> str:
    """The role that is missing, and what there is instead."""
    has = ", ".join(sorted(login.roles)) if login is not None else ""
    return f"this needs the role {right}; {login.name if login else 'nobody'} has {has or 'none'}"
