"""SEC-09: what would let everybody in, or nobody, starts nothing and says why in a line."""

import shutil

import pytest

from dicom_node.__main__ import EXIT_UNUSABLE, main
from dicom_node.settings import BadConfiguration, load_settings
from dicom_node.settings_web import Role
from dicom_node.web.login.way_in import findings, require_way_in
from tests.dicom_node.web.conftest import Client
from tests.dicom_node.web.login.conftest import PASSWORD, basic, bearer, cookie_of, form

STUDIES = "/dicom-web/studies"
WELL = (200, 204)


def config(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[http]\nhost = '0.0.0.0'", "everybody who reaches 0.0.0.0 would read and change everything"),
        ("[http]\nhost = '::'", "open_to_everyone"),
        ("[http]\nhost = 'node.hospital.example'", "open_to_everyone"),
        ("[http]\nlogin = 'required'", "nobody who could log in"),
        ("[http]\nlogin = 'maybe'", "http.login"),
        ("[oidc]\nissuer = 'https://login.example'", "audience is needed"),
        ("[oidc]\nissuer = 'http://login.example'\naudience = 'a'", "https://"),
        ("[oidc]\nroles = ['staff=cook']", "'cook' is no role"),
        (
            "[http]\nlogin = 'required'\n[oidc]\nissuer = 'https://l.org'\naudience = 'a'\ntrusted = '/x'",
            "oidc.trusted",
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "web"])
def test_it_does_not_start(tmp_path, capsys, migrated_database, free_port, command, text, sentence):
    port = f"\n[dimse]\nport = {free_port()}\n"
    home, path = tmp_path / "home", config(tmp_path, text + port)
    home.mkdir()
    shutil.copy(migrated_database, home / "node.sqlite")
    assert main([command, "--home", str(home), "--config", str(path)]) == EXIT_UNUSABLE
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[http]\nhost = 'localhost'",
        "[http]\nhost = '127.0.0.2'",
        "[http]\nhost = '::1'",
        "[http]\nhost = '0.0.0.0'\nopen_to_everyone = true",
        "[http]\nhost = '0.0.0.0'\nlogin = 'required'",
    ],
)
def test_what_is_local_or_meant_is_read(tmp_path, text):
    load_settings(tmp_path, config(tmp_path, text))


def test_users_alone_are_nobody_where_no_password_is_taken(tmp_path, known):
    known.add_user("alice", PASSWORD, [Role.VIEWER])
    plain = load_settings(tmp_path, config(tmp_path, "[http]\nhost = '0.0.0.0'\nlogin = 'required'"))
    with pytest.raises(BadConfiguration, match="not taken over plain HTTP"):
        require_way_in(plain)
    assert [is_well for is_well, _ in findings(plain)] == [False]
    known.add_token("pacs", [Role.SENDER])
    require_way_in(plain)
    assert list(findings(plain)) == [(True, "log-in required: 1 users, 1 tokens")]
    for path in (known.path, tmp_path / "login" / "session.key"):
        path.touch()
        path.chmod(0o644)
        with pytest.raises(BadConfiguration, match="chmod 600"):
            require_way_in(plain)
        path.chmod(0o600)


def test_over_plain_http_no_password_and_no_cookie_is_taken(make_app, known, sections):
    known.add_user("alice", PASSWORD, [Role.VIEWER])
    token = known.add_token("pacs", [Role.VIEWER])
    cookie = cookie_of(form(Client(make_app(sections)), "alice"))
    plain = Client(make_app({**sections, "http": sections["http"] | {"host": "0.0.0.0"}}))
    refused = plain.get(STUDIES, headers=basic("alice"))
    assert (refused.status_code, "plain HTTP" in refused.json()["error"]) == (403, True)
    page = form(plain, "alice")
    assert (page.status_code, "set-cookie" in page.headers) == (403, False)
    assert plain.get(STUDIES, headers=cookie).status_code == 401
    assert plain.get(STUDIES, headers=bearer(token)).status_code in WELL
    proxied = sections["http"] | {"host": "0.0.0.0", "behind_tls_proxy": True}
    behind = Client(make_app({**sections, "http": proxied}))
    assert behind.get(STUDIES, headers=basic("alice")).status_code in WELL
