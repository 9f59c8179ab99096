"""SEC-08: every route against every kind of credentials; the routes are those of the application itself."""

import hashlib
import hmac
import json
import re
import time

import anyio
import httpx
import pytest
from joserfc.jwk import ECKey
from joserfc.util import urlsafe_b64encode
from starlette.routing import Route

from dicom_node.settings_web import Role
from dicom_node.web.app import all_routes
from dicom_node.web.login import rights
from dicom_node.web.login.rights import RIGHTS, WEBSOCKET, RightsIncomplete, guard
from dicom_node.web.login.who import Login
from tests.dicom_node.web.login.conftest import bearer

IN_PATH = {
    "study": "1.2.3", "series": "1.2.4", "instance": "1.2.5", "frames": "1", "path:path": "nothing/here",
    "workitem": "2.25.9", "subscriber": "WATCHER", "job_id": "0" * 32, "delivery_id": "0" * 32,
}  # fmt: skip
HTTP = {key: right for key, right in RIGHTS.items() if not key.startswith(WEBSOCKET)}
CLOSED = {key: right for key, right in HTTP.items() if not right.is_open}
OPEN = {key: right for key, right in HTTP.items() if right.is_open}


def request_of(key):
    """Method and address that a row is about."""
    method, path = key.split(" ", 1)
    return method, re.sub(r"\{([a-z_:]+)\}", lambda found: IN_PATH[found[1]], path)


def statuses(app, rows, headers_for=lambda _key: {}):
    """Status and answer of one request for each row."""

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            return {
                key: await client.request(*request_of(key), headers={"accept": "*/*"} | headers_for(key))
                for key in rows
            }

    return anyio.run(ask)


def unlike(answers, *expected):
    return {key: answer.status_code for key, answer in answers.items() if answer.status_code not in expected}


def unsigned(provider, **header):
    """Head and claims of a token that says who everybody is."""
    parts = [json.dumps(each).encode() for each in ({"typ": "JWT", **header}, provider.claims(*Role))]
    return b".".join(urlsafe_b64encode(part) for part in parts)


def none_signed(provider):
    """A token whose header says that it needs no signature."""
    return unsigned(provider, alg="none", kid=provider.curve.kid).decode() + "."


def with_public_key_as_secret(provider):
    """What everybody can make if the kind of the key follows the header."""
    content = unsigned(provider, alg="HS256", kid=provider.rsa.kid)
    mark = hmac.new(provider.rsa.as_pem(private=False), content, hashlib.sha256).digest()
    return (content + b"." + urlsafe_b64encode(mark)).decode()


BAD = {
    "an unknown token": (lambda _: "sim4seg_" + "A" * 43, "not known"),
    "no token at all": (lambda _: "x.y.z", "not signed"),
    "expired": (lambda p: p.token(*Role, exp=int(time.time()) - 120), "expired"),
    "without an end": (lambda p: p.token(*Role, exp=None), "does not say its exp"),
    "not valid yet": (lambda p: p.token(*Role, nbf=int(time.time()) + 600), "not valid yet"),
    "alg none": (none_signed, "not signed"),
    "the public key as a secret": (with_public_key_as_secret, "not signed"),
    "another audience": (lambda p: p.token(*Role, aud="others"), "audience"),
    "without audience": (lambda p: p.token(*Role, aud=None), "does not say its aud"),
    "another issuer": (lambda p: p.token(*Role, iss="https://evil.example"), "issuer"),
    "an unknown key": (
        lambda p: p.token(*Role, key=ECKey.generate_key("P-256", {"kid": "strange"})),
        "does not have",
    ),
    "a stranger's key under a known id": (
        lambda p: p.token(*Role, key=ECKey.generate_key("P-256", {"kid": "ec-1"})),
        "not signed",
    ),
    "a log-out token": (lambda p: p.token(*Role, header={"typ": "logout+jwt"}), "kind"),
}


def test_without_credentials_only_the_open_addresses_answer(app):
    answers = statuses(app, HTTP)
    assert unlike({key: answers[key] for key in CLOSED}, 401) == {}
    assert unlike({key: answers[key] for key in OPEN}, 200, 400, 303) == {}
    for key in CLOSED:
        assert "Basic realm=" in answers[key].headers["www-authenticate"]
        assert set(answers[key].json()) == {"error", "advice"}


def test_nobody_is_told_which_addresses_there_are(app):
    others = [("PUT", "/dicom-web/studies"), ("DELETE", "/operator"), ("POST", "/nothing"), ("GET", "/..//")]

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
            return [(await client.request(*other)).status_code for other in others]

    assert set(anyio.run(ask)) == {401}


@pytest.mark.parametrize("kind", BAD)
def test_bad_credentials_open_nothing_and_are_told_why(app, provider, kind, failures, monkeypatch):
    monkeypatch.setattr(failures, "wait_s", lambda *_: 0.0)  # here nobody is locked out
    make, why = BAD[kind]
    token = make(provider)
    answers = statuses(app, HTTP, lambda _key: bearer(token))
    assert unlike({key: answers[key] for key in CLOSED}, 401) == {}
    assert unlike({key: answers[key] for key in OPEN}, 200, 400, 303) == {}
    for key in CLOSED:
        assert why in answers[key].json()["error"]
        assert 'error="invalid_token"' in answers[key].headers["www-authenticate"]
        assert token not in answers[key].text


def test_nobody_is_asked_for_a_key_that_would_not_be_believed(app, provider):
    for token in (none_signed(provider), with_public_key_as_secret(provider)):
        statuses(app, ["GET /metrics"], lambda _key, token=token: bearer(token))
    assert provider.asked == []


@pytest.mark.parametrize("key_name", ["rsa", "curve"])
def test_each_role_that_a_row_names_opens_its_route(app, provider, key_name):
    signing = getattr(provider, key_name)
    tokens = {role: provider.token(role, key=signing) for role in Role}
    for chosen in (min, max):  # of several roles each is enough
        answers = statuses(app, HTTP, lambda key, chosen=chosen: bearer(tokens[chosen(HTTP[key].roles)]))
        refused = {key: answer.text for key, answer in answers.items() if answer.status_code in (401, 403)}
        assert refused == {}
        assert [key for key, answer in answers.items() if answer.status_code >= 500] == []


def test_other_roles_do_not_and_the_missing_one_is_named(app, provider):
    def others(right):
        return [role for role in Role if not Login("", frozenset({role})).has_one_of(right.roles)]

    tokens = {key: provider.token(*others(right)) for key, right in CLOSED.items()}
    answers = statuses(app, CLOSED, lambda key: bearer(tokens[key]))
    assert unlike(answers, 403) == {}
    for key, right in CLOSED.items():
        assert f"needs the role {right}; Ärztin (u-1) has" in answers[key].json()["error"]


def test_without_a_log_in_everything_is_as_before(make_app):
    app = make_app({"http": {"allowed_hosts": ["node"]}})
    answers = statuses(app, HTTP)
    not_here = {key for key in HTTP if "/login" in key or "/logout" in key} - {"GET /login/style.css"}
    assert unlike({key: answers[key] for key in not_here}, 404) == {}
    assert {key for key, answer in answers.items() if answer.status_code in (401, 403, 429)} == set()


def test_a_route_without_a_row_starts_nothing(tmp_path, app):
    settings = app.state.services.settings
    routes = [*all_routes(settings), Route("/new", lambda _: None, methods=["POST"])]
    with pytest.raises(RightsIncomplete, match="POST /new"):
        guard(routes)
    guard(all_routes(settings))


def test_a_row_without_a_route_starts_nothing(app, monkeypatch):
    monkeypatch.setitem(rights.RIGHTS, "GET /gone", rights.VIEW)
    with pytest.raises(RightsIncomplete, match="GET /gone"):
        guard(all_routes(app.state.services.settings))


def test_only_these_addresses_are_open():
    assert sorted(OPEN) == [
        "GET /health/live", "GET /health/ready", "GET /login", "GET /login/style.css", "POST /login",
        "POST /logout",
    ]  # fmt: skip
