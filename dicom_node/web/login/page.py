"""The page where a person logs in, and where they log out; no script."""

from html import escape
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dicom_node.errors import BadRequest, BodyTooLarge, NotFound
from dicom_node.web.login.answers import LOGIN_PAGE, refused
from dicom_node.web.login.doorkeeper import Doorkeeper, Refused
from dicom_node.web.login.who import address_of, login_in
from dicom_node.web.services import FRESH, RESEARCH_USE, services_of

MAX_FORM_BYTES: Final = 8 * 1024
UNSTORED: Final = {"Cache-Control": "no-store"}
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)
FROM_ELSEWHERE: Final = frozenset({"cross-site", "same-site"})
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 22rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.3rem } label { display: block; margin: .8rem 0 .2rem; font-weight: 600 }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem }
button { font: inherit; margin-top: 1rem; padding: .4rem .9rem; cursor: pointer }
.notice { color: #57606a; font-size: .85rem } .bad { color: #a40e26 }
:focus-visible { outline: 3px solid #0969da; outline-offset: 2px }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } .notice { color: #9198a1 } .bad { color: #ff7b72 }
}
"""


def show_login(request: Request) -> Response:
    """Answer GET /login[?next=ADDRESS]: the form; to who is logged in, on to the address or the way out."""
    _doorkeeper(request)
    target = _own_address(request.query_params.get("next", ""))
    if request.headers.get("sec-fetch-site") in FROM_ELSEWHERE:
        return _again(target or LOGIN_PAGE)
    login = login_in(request.scope)
    if login is None:
        return _page(_form(target))
    if target:
        return RedirectResponse(target, 303, UNSTORED)
    return _page(_way_out(login.name, ", ".join(sorted(login.roles)), is_session=bool(login.session_id)))


def show_style(request: Request) -> Response:
    """Answer GET /login/style.css."""
    del request
    return Response(STYLE, 200, FRESH, "text/css; charset=utf-8")


async def log_in(request: Request) -> Response:
    """Answer POST /login: 303 with the session's cookie, or the form again."""
    doorkeeper = _doorkeeper(request)
    form = await _read_form(request)
    target = _own_address(form.get("next", ""))
    try:
        user = await doorkeeper.of_password(form.get("name", ""), form.get("password", ""), _address(request))
    except Refused as error:
        answer = refused({**request.scope, "method": "POST"}, str(error), error.status, error.wait_s)
        page = _page(_form(target, str(error)), answer.status_code)
        page.headers.update(
            {
                name: answer.headers[name]
                for name in ("WWW-Authenticate", "Retry-After")
                if name in answer.headers
            }
        )
        return page
    answer = RedirectResponse(target or "/", 303, UNSTORED)
    answer.headers["Set-Cookie"] = doorkeeper.sessions.begin(user)
    return answer


async def log_out(request: Request) -> Response:
    """Answer POST /logout: the session is over, and the browser forgets what it kept of us."""
    doorkeeper = _doorkeeper(request)
    await run_in_threadpool(doorkeeper.log_out, request.headers, _address(request))
    answer = RedirectResponse(LOGIN_PAGE, 303, UNSTORED)
    answer.headers["Set-Cookie"] = doorkeeper.sessions.clear()
    answer.headers["Clear-Site-Data"] = '"cache", "storage"'  # images of patients
    return answer


def _doorkeeper(request: Request) -> Doorkeeper:
    found = services_of(request).doorkeeper
    if found is None:
        raise NotFound("this node has no log-in")
    return found


def _address(request: Request) -> str:
    return address_of(request.scope)


async def _read_form(request: Request) -> dict[str, str]:
    if (
        request.headers.get("content-type", "").partition(";")[0].strip()
        != "application/x-www-form-urlencoded"
    ):
        raise BadRequest("a log-in comes as a form, application/x-www-form-urlencoded")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise BodyTooLarge(f"a log-in is at most {MAX_FORM_BYTES} bytes")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise BadRequest("the form cannot be read") from error
    return {name: values[0] for name, values in fields.items()}


def _own_address(text: str) -> str:
    """An address of this site that a person may be sent to; empty where it is none."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    is_path = text.startswith("/") and not text.startswith("//") and not parts.scheme and not parts.netloc
    is_plain = text.isascii() and text.isprintable() and "\\" not in text and " " not in text
    return text if is_path and is_plain else ""


def _again(address: str) -> Response:
    """Have the browser ask once more, from this page.

    A link on a page of another site comes without the cookie (SameSite=Strict), though there may be one.
    """
    page = f'<meta http-equiv="refresh" content="0;url={escape(address)}">'
    return _page(f'<p><a href="{escape(address)}">Go on</a></p>', head=page)


def _form(target: str, problem: str = "") -> str:
    told = f'<p class="bad" role="alert">{escape(problem[:1].upper() + problem[1:])}.</p>' if problem else ""
    return (
        f'{told}<form method="post" action="{LOGIN_PAGE}">'
        f'<input type="hidden" name="next" value="{escape(target)}">'
        '<label for="name">Name</label>'
        '<input id="name" name="name" autocomplete="username" required autofocus>'
        '<label for="password">Password</label>'
        '<input id="password" name="password" type="password" autocomplete="current-password" required>'
        '<button type="submit">Log in</button></form>'
    )


def _way_out(name: str, roles: str, *, is_session: bool) -> str:
    button = '<form method="post" action="/logout"><button>Log out</button></form>' if is_session else ""
    return f'<p>You are {escape(name)} ({escape(roles)}).</p><p><a href="/">Viewer</a></p>{button}'


def _page(body: str, status: int = 200, *, head: str = "") -> Response:
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}'
        '<title>Log in: SIM4SEG node</title><link rel="stylesheet" href="/login/style.css"></head>'
        f'<body><main><h1>SIM4SEG node</h1>{body}<p class="notice">{RESEARCH_USE}</p></main></body></html>'
    )
    return HTMLResponse(page, status, UNSTORED | {"Content-Security-Policy": PAGE_POLICY})
