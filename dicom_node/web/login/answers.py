"""Answers to those who are not known: 401, 429, each with a sentence; people go to the page.

Source: RFC 9110 11.6.1, RFC 6750 3, RFC 6585 4.
"""

import math
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from dicom_node.web.services import DICOM_WEB, FRESH, json_response

LOGIN_PAGE: Final = "/login"
REALM: Final = "sim4seg-node"
HOW: Final = (
    "Log in at /login in a browser; programs send Authorization: Bearer TOKEN (dicom-node users token)."
)


def refused(scope: Scope, why: str, status: int = 401, wait_s: float = 0.0) -> Response:
    """Answer somebody who is not known, or whose word is not good."""
    headers = Headers(scope=scope)
    if status == 401 and _is_navigation(scope, headers):
        address = quote(scope["path"], safe="/:@") + _query(scope)
        return RedirectResponse(f"{LOGIN_PAGE}?next={quote(address, safe='')}", 303, FRESH)
    answer = json_response({"error": why, "advice": HOW}, status)
    if status == 401:
        answer.headers["WWW-Authenticate"] = _challenge(headers, why)
    if wait_s > 0:
        answer.headers["Retry-After"] = str(math.ceil(wait_s))
    return answer


def _challenge(headers: Headers, why: str) -> str:
    """A browser is not asked for Basic: over the viewer it would open a window of its own."""
    bearer = f'Bearer realm="{REALM}"'
    if "authorization" in headers:
        bearer += f', error="invalid_token", error_description="{why}"'
    return bearer if "sec-fetch-site" in headers else f'Basic realm="{REALM}", charset="UTF-8", {bearer}'


def _is_navigation(scope: Scope, headers: Headers) -> bool:
    """Whether a person's browser opens a page, rather than a script or a program asking."""
    return (
        scope["type"] == "http"
        and scope["method"] in {"GET", "HEAD"}
        and not scope["path"].startswith((f"{DICOM_WEB}/", "/api/"))
        and "authorization" not in headers
        and "text/html" in headers.get("accept", "")
        and headers.get("sec-fetch-mode", "navigate") == "navigate"
    )


def _query(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"?{query}" if query else ""
