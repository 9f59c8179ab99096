"""Users and tokens: made by the command, kept as hashes, believed at once and while they are there."""

import io
import json
import time

import pytest

from dicom_node.__main__ import EXIT_FAILED, EXIT_UNUSABLE, main
from dicom_node.settings_web import Role
from dicom_node.web.login.passwords import Cost, PasswordHash
from dicom_node.web.login.users import DAY_S, UsersFile
from tests.dicom_node.web.login.conftest import PASSWORD, basic, bearer

STUDIES = "/dicom-web/studies"
WELL = (200, 204)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`dicom-node users`, with what is typed; gives its status and what it said."""

    def run(*words, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        status = main(["users", *words, "--home", str(tmp_path)])
        said = capsys.readouterr()
        return status, (said.out or said.err).strip()

    return run


def test_a_user_comes_in_and_goes(command, client, tmp_path):
    assert command("add", "alice", "--role", "viewer", typed=f"{PASSWORD}\n") == (0, "alice may log in")
    path = tmp_path / "login" / "users.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert PASSWORD not in path.read_text()
    assert client.get(STUDIES, headers=basic("alice")).status_code in WELL
    assert client.get(STUDIES, headers=basic("alice")).status_code in WELL  # remembered
    assert client.get(STUDIES, headers=basic("alice", PASSWORD + " ")).status_code == 401
    assert command("remove", "alice")[0] == 0
    assert client.get(STUDIES, headers=basic("alice")).status_code == 401


def test_a_token_is_shown_once_and_kept_as_a_hash(command, client, tmp_path):
    status, token = command("token", "scanner", "--role", "sender", "--role", "monitor")
    assert (status, token[:8], len(token)) == (0, "sim4seg_", 51)
    assert token[8:] not in (tmp_path / "login" / "users.json").read_text()
    assert client.get("/metrics", headers=bearer(token)).status_code == 200
    assert client.get(STUDIES, headers=bearer(token)).status_code == 403
    listed = command("list")[1]
    assert "scanner" in listed
    assert "monitor,sender" in listed
    assert token[8:] not in listed
    for role in Role:
        assert command("token", f"for-{role}", "--role", role)[0] == 0
    command("remove", "scanner")
    assert client.get("/metrics", headers=bearer(token)).status_code == 401


def test_a_token_ends_with_its_days(known, client, monkeypatch):
    token = known.add_token("visitor", [Role.VIEWER], days=2)
    assert client.get(STUDIES, headers=bearer(token)).status_code in WELL
    later = time.time() + 2 * DAY_S
    monkeypatch.setattr("dicom_node.web.login.users.time.time", lambda: later)
    assert client.get(STUDIES, headers=bearer(token)).status_code == 401


@pytest.mark.parametrize(
    ("words", "typed", "sentence"),
    [
        (["add", "bob", "--role", "viewer"], "short\n", "at least 12 characters"),
        (["add", "bob", "--role", "viewer"], "", "at least 12 characters"),
        (["add", "bob"], f"{PASSWORD}\n", "at least one --role"),
        (["add", "b b", "--role", "viewer"], f"{PASSWORD}\n", "1 to 64 letters"),
        (["add", "alice", "--role", "viewer"], f"{PASSWORD}\n", "there already"),
        (["token", "alice", "--role", "viewer"], "", "there already"),
        (["token", "new", "--role", "viewer", "--days", "0"], "", "more than 0"),
        (["remove", "nobody"], "", "no user and no token named nobody"),
        (["remove"], "", "give a name"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(command, known, words, typed, sentence):
    known.add_user("alice", PASSWORD, [Role.VIEWER])
    before = known.path.read_bytes()
    status, said = command(*words, typed=typed)
    assert status == EXIT_FAILED
    assert sentence in said
    assert known.path.read_bytes() == before


def test_a_password_is_no_argument(command):
    with pytest.raises(SystemExit):
        command("add", "alice", PASSWORD, "--role", "viewer")


def test_a_file_that_others_can_use_closes_the_door(command, known, client):
    token = known.add_token("pacs", [Role.MONITOR])
    assert client.get("/metrics", headers=bearer(token)).status_code == 200
    for mode in (0o640, 0o606):
        known.path.chmod(mode)
        assert client.get("/metrics", headers=bearer(token)).status_code == 503
        assert client.get("/health/ready").status_code == 503
        status, said = command("list")
        assert status == EXIT_UNUSABLE
        assert "chmod 600" in said
    known.path.chmod(0o600)
    assert client.get("/metrics", headers=bearer(token)).status_code == 200
    known.path.write_text("{}x")
    assert client.get("/metrics", headers=bearer(token)).status_code == 503
    assert "users.json" in command("list")[1]


def test_readiness_says_its_reasons_to_monitors_only(client, known, tmp_path):
    token = known.add_token("zabbix", [Role.MONITOR])
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "readiness-models.json").write_text(
        json.dumps({"process": "models", "problem": "no model in /srv/secret"})
    )
    stranger, monitor = client.get("/health/ready"), client.get("/health/ready", headers=bearer(token))
    assert stranger.status_code == monitor.status_code == 503
    assert stranger.json() == {"status": "not ready"}
    assert "no model in /srv/secret" in monitor.json()["problems"]


def test_hashes_differ_and_carry_their_parameters():
    cost = Cost(n=16, r=1, p=1)
    first, second = PasswordHash.of("ä" * 12, cost), PasswordHash.of("ä" * 12, cost)
    assert first.hash != second.hash
    assert first.fits("a\N{COMBINING DIAERESIS}" * 12), "the same letters, typed on another keyboard"
    assert not first.fits("a" * 12)
    assert not first.model_copy(update={"n": 32}).fits("ä" * 12)
    assert (Cost().n, Cost().r, Cost().p) == (2**15, 8, 3)
    assert PasswordHash.of("a real password", Cost()).fits("a real password")


def test_two_who_add_at_once_are_both_there(tmp_path):
    one, other = UsersFile(tmp_path), UsersFile(tmp_path)
    one.add_token("one", [Role.VIEWER])
    other.add_token("other", [Role.VIEWER])
    assert one.now().names() == other.now().names() == {"one", "other"}
