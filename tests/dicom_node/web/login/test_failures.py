"""SEC-13: who fails too often waits; of an unknown name nothing can be learnt."""

import os

import pytest

from dicom_node.audit.trail import spool_of
from dicom_node.settings_web import Role
from dicom_node.web.login.doorkeeper import _place
from dicom_node.web.login.failures import MOST_OF_ACCOUNT, MOST_OF_ADDRESS, WINDOW_S, Failures
from dicom_node.web.login.passwords import Cost
from tests.dicom_node.web.login.conftest import PASSWORD, basic, bearer, form

STUDIES = "/dicom-web/studies"


@pytest.fixture
def alice(known):
    known.add_user("alice", PASSWORD, [Role.VIEWER])
    known.add_user("bob", PASSWORD, [Role.VIEWER])


def test_an_account_is_locked_for_a_while_for_the_right_password_too(client, alice, clock):
    for _ in range(MOST_OF_ACCOUNT):
        assert client.get(STUDIES, headers=basic("alice", "wrong password")).status_code == 401
    locked = client.get(STUDIES, headers=basic("alice"))
    assert locked.status_code == 429
    assert int(locked.headers["retry-after"]) == WINDOW_S
    assert form(client, "alice").status_code == 429
    assert client.get(STUDIES, headers=basic("bob")).status_code != 429
    clock.now += WINDOW_S
    assert client.get(STUDIES, headers=basic("alice")).status_code in (200, 204)


def test_a_lock_holds_for_a_password_that_was_right_a_moment_ago(client, alice):
    """Otherwise who guesses would learn from its answer which guess was right."""
    assert client.get(STUDIES, headers=basic("alice")).status_code in (200, 204)
    for _ in range(MOST_OF_ACCOUNT):
        client.get(STUDIES, headers=basic("alice", "wrong password"))
    assert client.get(STUDIES, headers=basic("alice")).status_code == 429


def test_an_address_is_locked_whatever_names_it_tries(client, alice, known):
    token = known.add_token("pacs", [Role.VIEWER])
    for number in range(MOST_OF_ADDRESS):
        assert client.get(STUDIES, headers=basic(f"name{number}")).status_code == 401
    assert client.get(STUDIES, headers=basic("alice")).status_code == 429
    assert client.get(STUDIES, headers=bearer(token)).status_code in (200, 204)  # who is known goes on


def test_guessed_tokens_are_locked_and_lock_no_person_out(client, alice, known, provider):
    token = known.add_token("pacs", [Role.VIEWER])
    for guess in ("sim4seg_guess", "a.b.c") * (MOST_OF_ADDRESS // 2):
        assert client.get(STUDIES, headers=bearer(guess)).status_code == 401
    for guess in ("sim4seg_guess", "a.b.c"):
        answer = client.get(STUDIES, headers=bearer(guess))
        assert (answer.status_code, "retry-after" in answer.headers) == (429, True)
    for well in (basic("alice"), bearer(token), bearer(provider.token(Role.VIEWER))):
        assert client.get(STUDIES, headers=well).status_code in (200, 204)


def test_a_success_forgets_the_failures_of_the_account(client, alice):
    for _ in range(2):
        for _ in range(MOST_OF_ACCOUNT - 1):
            assert client.get(STUDIES, headers=basic("alice", "wrong password")).status_code == 401
        assert client.get(STUDIES, headers=basic("alice")).status_code in (200, 204)


def test_an_unknown_name_and_a_wrong_password_look_the_same(client, alice, monkeypatch):
    checked = []
    real = type(client._app.state.services.doorkeeper._nobody).fits
    monkeypatch.setattr(
        "dicom_node.web.login.passwords.PasswordHash.fits",
        lambda self, password: checked.append(self) or real(self, password),
    )
    answers = [client.get(STUDIES, headers=basic(name, "wrong password")) for name in ("alice", "nobody")]
    assert len(checked) == 2  # the same work for both
    first, second = answers
    assert (first.status_code, first.content, first.headers) == (401, second.content, second.headers)
    pages = [form(client, name, "wrong password") for name in ("alice", "nobody")]
    assert pages[0].content == pages[1].content


def test_the_trail_and_the_log_know_and_name_no_stranger(client, alice, app, caplog):
    caplog.set_level("INFO")
    client.get(STUDIES, headers=basic("alice"))
    for _ in range(MOST_OF_ACCOUNT):
        client.get(STUDIES, headers=basic("my secret password", "x"))
    told = "".join(record.message for _, record in spool_of(app.state.services.settings).records())
    assert told.count("User Authentication") >= 2
    assert 'UserID="alice"' in told
    assert "Security Alert" in told
    assert "too many failures" in told
    assert "my secret" not in told + caplog.text
    assert {record.user for record in caplog.records if hasattr(record, "user")} == {"alice", "unknown"}


def test_the_table_has_one_size_and_keeps_who_fails_most(clock):
    table = Failures(clock)
    for _ in range(MOST_OF_ACCOUNT):
        table.count("account target")
    for number in range(12_000):
        table.count(f"account {number}")
    assert table.wait_s("account target", MOST_OF_ACCOUNT) > 0
    assert len(table._table) == 1024 * 8 * 32
    table.close()


def test_processes_count_together(clock):
    table = Failures(clock)
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            for _ in range(2000):
                table.count("address 10.0.0.1")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert table.count("address 10.0.0.1") == 6001
    table.close()


def test_the_runbook_has_the_numbers(repository):
    words = f"After {MOST_OF_ACCOUNT} for an account or {MOST_OF_ADDRESS} from an address within 15 minutes"
    text = (repository / "deploy" / "README.md").read_text(encoding="utf-8")
    assert words in text
    assert WINDOW_S == 15 * 60
    assert f"scrypt (n {Cost().n}, r {Cost().r}, p {Cost().p})" in text


def test_who_has_a_network_has_one_address():
    assert _place("2001:db8::1") == _place("2001:db8::ffff:1")
    assert _place("2001:db8::1") != _place("2001:db8:0:1::1")
    assert _place("10.0.0.1") != _place("10.0.0.2")
