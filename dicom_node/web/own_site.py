"""Who may have a browser change something: our own pages, under a name of ours.

A browser may be led to send a POST by any page that it shows, and a page of another site may give its own
name our address (DNS rebinding). So what changes something must come from our own origin, and the Host that
it was sent to must be a plain address or a name of the configuration.
"""

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dicom_node.errors import NotAuthorised
from dicom_node.settings_web import HttpSettings

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
OUR_OWN: Final = frozenset({"same-origin", "none"})  # values of Sec-Fetch-Site; none: typed by a person


class OwnSiteOnly:
    """Middleware that lets through what changes nothing, and changes that come from our own pages."""

    def __init__(self, app: ASGIApp, http: HttpSettings) -> None:
        self._app = app
        self._names = frozenset({"localhost", http.host.lower(), *map(str.lower, http.allowed_hosts)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or raise NotAuthorised."""
        if scope["type"] == "http" and scope["method"] not in SAFE:
            headers = Headers(scope=scope)
            require_own_name(headers, self._names)
            require_own_origin(headers)
        await self._app(scope, receive, send)


class OwnOriginOnly:
    """Middleware for DICOMweb: under any name, as its clients are programs; not for other sites' pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or raise NotAuthorised."""
        if scope["type"] == "http" and scope["method"] not in SAFE:
            require_own_origin(Headers(scope=scope))
        await self._app(scope, receive, send)


def require_own_name(headers: Headers, names: frozenset[str]) -> None:
    """Raise NotAuthorised where the Host is a name that is not ours; nobody else can own a plain address."""
    try:
        name = (urlsplit(f"//{headers.get('host', '')}").hostname or "").rstrip(".")
    except ValueError:
        name = ""
    if name not in names and not _is_address(name):
        raise NotAuthorised("the node is not known by the name in Host: add it to http.allowed_hosts")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def require_own_origin(headers: Headers) -> None:
    """Raise NotAuthorised for what a page of somebody else had a browser send; programs send neither header.

    Source: W3C Fetch Metadata, Sec-Fetch-Site; RFC 6454 7.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_own = site is None or site in OUR_OWN
    if is_own and site is None and origin is not None:
        host = headers.get("host", "")
        is_own = bool(host) and origin.partition("://")[2] == host
    if not is_own:
        raise NotAuthorised("the request comes from a page of another site")
