"""The page and its cookie: where it leads, what it is, and when it ends."""

import time

import pytest

from dicom_node.audit.trail import spool_of
from dicom_node.settings_web import HttpSettings, Role
from dicom_node.web.login.files import LoginUnusable
from dicom_node.web.login.sessions import Sessions
from tests.dicom_node.web.conftest import Client
from tests.dicom_node.web.login.conftest import PASSWORD, bearer, cookie_of, form
from tests.dicom_node.web.ohif import upload

STUDIES = "/dicom-web/studies"
PAGE = {"accept": "text/html,application/xhtml+xml"}
NAVIGATION = PAGE | {"sec-fetch-mode": "navigate", "sec-fetch-site": "same-origin"}
WELL = (200, 204)


@pytest.fixture
def alice(known):
    known.add_user("alice", PASSWORD, [Role.VIEWER])


@pytest.fixture
def cookie(client, alice):
    return cookie_of(form(client, "alice"))


def test_a_browser_is_sent_to_the_page_and_back(client, alice):
    away = client.get("/viewer?StudyInstanceUIDs=1.2&a=b%26c", headers=NAVIGATION)
    assert away.status_code == 303
    page = client.get(away.headers["location"], headers=NAVIGATION)
    assert 'name="password"' in page.text
    assert 'value="/viewer?StudyInstanceUIDs=1.2&amp;a=b%26c"' in page.text
    assert page.headers["cache-control"] == "no-store"
    back = form(client, "alice", target="/viewer?StudyInstanceUIDs=1.2&a=b%26c")
    assert (back.status_code, back.headers["location"]) == (303, "/viewer?StudyInstanceUIDs=1.2&a=b%26c")
    assert client.get("/viewer", headers=NAVIGATION | cookie_of(back)).status_code == 200


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        (STUDIES, {"accept": "application/dicom+json", "sec-fetch-site": "same-origin"}),
        (STUDIES, PAGE),
        ("/api/jobs", PAGE),
        ("/app-config.js", {"accept": "*/*", "sec-fetch-mode": "no-cors", "sec-fetch-site": "same-origin"}),
        ("/viewer", PAGE | {"sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"}),
        ("/viewer", PAGE | bearer("sim4seg_guess")),
    ],
)
def test_what_a_script_fetches_is_401_and_opens_no_window_of_the_browser(client, address, headers):
    answer = client.get(address, headers=headers)
    assert answer.status_code == 401
    assert ("Basic" in answer.headers["www-authenticate"]) == ("sec-fetch-site" not in headers)


@pytest.mark.parametrize(
    ("http", "secure", "name"),
    [({}, False, "sim4seg-login-"), ({"behind_tls_proxy": True}, True, "__Host-sim4seg-login-")],
)
def test_the_cookie_is_for_nobody_else(make_app, alice, sections, http, secure, name):
    client = Client(make_app({**sections, "http": sections["http"] | http}))
    first, *flags = form(client, "alice").headers["set-cookie"].split("; ")
    assert first.startswith(name)
    assert set(flags) == {"Path=/", "Max-Age=36000", "HttpOnly", "SameSite=Strict"} | (
        {"Secure"} if secure else set()
    )


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example/",
        "///evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a\r\nb",
        "",
    ],
)
def test_the_page_leads_nowhere_else(client, alice, target):
    assert form(client, "alice", target=target).headers["location"] == "/"


def test_a_page_of_another_site_cannot_log_anybody_in(client, alice):
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert form(client, "alice", **headers).status_code == 403
    assert form(client, "alice", host="evil.example").status_code == 403


def test_a_session_does_not_help_a_page_of_another_site(client, known, cookie):
    known.remove("alice")
    known.add_user("alice", PASSWORD, [Role.SENDER, Role.OPERATOR])
    own = cookie_of(form(client, "alice"))
    evil = own | {"sec-fetch-site": "cross-site"}
    assert client.post(STUDIES, **_with(upload(b"x"), evil)).status_code == 403
    assert client.post(f"/api/jobs/{'0' * 32}/requeue", headers=evil).status_code == 403
    assert client.post(f"/api/jobs/{'0' * 32}/requeue", headers=own).status_code == 404


def test_a_link_from_another_site_finds_the_session(client, cookie):
    """The browser keeps a strict cookie back at first; asked again from our own page, it gives it."""
    elsewhere = NAVIGATION | {"sec-fetch-site": "cross-site"}
    away = client.get("/viewer?StudyInstanceUIDs=1.2", headers=elsewhere)
    page = client.get(away.headers["location"], headers=elsewhere)
    assert 'http-equiv="refresh" content="0;url=/viewer?StudyInstanceUIDs=1.2"' in page.text
    assert client.get("/viewer?StudyInstanceUIDs=1.2", headers=NAVIGATION | cookie).status_code == 200


def test_what_cannot_be_a_log_in_is_refused(client):
    assert client.post("/login", json={"name": "a"}).status_code == 400
    assert client.post("/login", data={"name": "x" * 9000}).status_code == 413
    assert form(client, "alice", "\x00").status_code == 401


def test_coming_and_going_are_in_the_audit_trail(client, cookie, app):
    client.post("/logout", headers=cookie)
    client.post("/logout", headers=cookie)  # no session any more: nobody to tell of
    told = [record.message for _, record in spool_of(app.state.services.settings).records()]
    kinds = [kind for message in told for kind in ("Login", "Logout") if f'originalText="{kind}"' in message]
    assert kinds == ["Login", "Logout"]
    assert 'UserID="alice"' in told[-1]


def test_logging_out_ends_the_session_wherever_its_cookie_is(client, cookie, make_app, sections):
    out = client.post("/logout", headers=cookie)
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert '"cache"' in out.headers["clear-site-data"]
    assert client.get(STUDIES, headers=cookie).status_code == 401
    assert Client(make_app(sections)).get(STUDIES, headers=cookie).status_code == 401
    other = cookie_of(form(client, "alice"))
    assert client.get(STUDIES, headers=other).status_code in WELL
    assert client.post("/logout", headers={"sec-fetch-site": "cross-site"} | other).status_code == 403


def test_a_session_survives_a_restart_and_not_another_key(client, cookie, make_app, sections, tmp_path):
    assert Client(make_app(sections)).get(STUDIES, headers=cookie).status_code in WELL
    (tmp_path / "login" / "session.key").unlink()
    assert Client(make_app(sections)).get(STUDIES, headers=cookie).status_code == 401


def test_a_session_ends_with_its_time(client, cookie, monkeypatch):
    later = time.time() + 10 * 3600 + 1
    monkeypatch.setattr("dicom_node.web.login.sessions.time.time", lambda: later)
    assert client.get(STUDIES, headers=cookie).status_code == 401


def test_a_session_ends_with_its_user_and_with_the_password(client, cookie, known):
    assert client.get(STUDIES, headers=cookie).status_code in WELL
    known.remove("alice")
    assert client.get(STUDIES, headers=cookie).status_code == 401
    known.add_user("alice", "another good password", [Role.VIEWER])
    assert client.get(STUDIES, headers=cookie).status_code == 401


def test_the_page_says_who_one_is_and_the_way_out(client, cookie, known):
    page = client.get("/login", headers=cookie).text
    assert "You are alice (viewer)" in page
    assert 'action="/logout"' in page
    assert client.get("/login?next=/operator", headers=cookie).headers["location"] == "/operator"
    known.add_user("op", PASSWORD, [Role.OPERATOR])
    shown = client.get("/operator", headers=cookie_of(form(client, "op")))
    assert '<a href="/login">Log out</a>' in shown.text


def test_what_an_operator_does_stands_under_their_name(client, known, app, database, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dicom_node.web.dead_letters.requeue_job", lambda _tx, job, by: asked.append(by) or job
    )
    known.add_user("op", PASSWORD, [Role.OPERATOR])
    client.post(f"/api/jobs/{'0' * 32}/requeue", headers=cookie_of(form(client, "op")))
    assert asked == ["web, op, 127.0.0.1"]


def test_a_changed_cookie_is_none_of_ours(tmp_path, alice, known):
    sessions = Sessions(tmp_path, HttpSettings(login="required"))
    cookie = sessions.begin(known.now().user("alice")).partition("=")[2].partition(";")[0]
    assert sessions.read(cookie).name == "alice"
    content, _, signature = cookie.rpartition(".")
    for changed in (f"{content}A.{signature}", f"{content}.{signature[:-1]}", "", ".", content, "é.é"):
        assert sessions.read(changed) is None


def test_a_key_that_others_can_read_is_no_key(tmp_path):
    Sessions(tmp_path, HttpSettings())
    path = tmp_path / "login" / "session.key"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    path.chmod(0o640)
    with pytest.raises(LoginUnusable, match="chmod 600"):
        Sessions(tmp_path, HttpSettings())


def _with(options, headers):
    return options | {"headers": options["headers"] | headers}
