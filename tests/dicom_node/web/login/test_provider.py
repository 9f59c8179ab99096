"""The OpenID provider: its keys are asked for when they are needed, in bounds, and its tokens give roles."""

import pytest
from joserfc.jwk import ECKey, RSAKey

from dicom_node.settings_web import OidcSettings, Role
from dicom_node.web.login.jwt_login import TokenReader, TokenRefused
from dicom_node.web.login.provider import (
    ASK_AGAIN_S,
    KEEP_S,
    KEEP_WITHOUT_PROVIDER_S,
    MAX_ANSWER_BYTES,
    Provider,
    ProviderUnreachable,
    fetcher,
)
from tests.dicom_node.web.login.conftest import bearer
from tests.dicom_node.web.login.provider_server import AUDIENCE, DISCOVERY, JWKS

STUDIES = "/dicom-web/studies"
WELL = (200, 204)


@pytest.fixture
def settings(provider):
    return OidcSettings(issuer=provider.issuer, audience=AUDIENCE)


@pytest.fixture
def reader(settings, clock):
    return TokenReader(settings, Provider(settings, clock=clock))


def test_the_keys_are_asked_for_once(reader, provider):
    for key in (provider.rsa, provider.curve, provider.rsa):
        assert reader.read(provider.token(Role.VIEWER, key=key)).roles == {Role.VIEWER}
    assert provider.asked == [DISCOVERY, JWKS]


def test_a_new_key_is_found_and_strangers_do_not_make_us_ask(reader, provider, clock):
    reader.read(provider.token(Role.VIEWER))
    new = ECKey.generate_key("P-256", {"kid": "ec-2"})
    provider.publish(new)
    for _ in range(5):
        with pytest.raises(TokenRefused, match="does not have"):
            reader.read(provider.token(Role.VIEWER, key=new))
    assert len(provider.asked) == 2
    clock.now += ASK_AGAIN_S
    assert reader.read(provider.token(Role.VIEWER, key=new)).roles == {Role.VIEWER}
    assert len(provider.asked) == 4
    with pytest.raises(TokenRefused):  # the old one is taken back
        reader.read(provider.token(Role.VIEWER))


def test_keys_outlive_the_provider_for_a_day(reader, provider, clock):
    token = provider.token(Role.VIEWER)
    reader.read(token)
    provider.answers.clear()
    clock.now += KEEP_S + 1
    assert reader.read(token).name == "Ärztin (u-1)"
    assert len(provider.asked) == 3
    clock.now += KEEP_WITHOUT_PROVIDER_S
    with pytest.raises(ProviderUnreachable):
        reader.read(token)


def test_without_the_provider_it_is_503_and_not_401(client, provider):
    provider.answers.clear()
    answer = client.get(STUDIES, headers=bearer(provider.token(Role.VIEWER)))
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.answer(JWKS, b" " * (MAX_ANSWER_BYTES + 1)),
        lambda p: p.answer(JWKS, b"not json"),
        lambda p: p.answer(JWKS, ["no", "object"]),
        lambda p: p.answer(JWKS, {"keys": "none"}),
        lambda p: p.answer(JWKS, {}, status=302, Location=f"{p.issuer}/elsewhere"),
        lambda p: p.answer(DISCOVERY, {"issuer": "https://evil.example", "jwks_uri": p.issuer + JWKS}),
        lambda p: p.answer(DISCOVERY, {"issuer": p.issuer, "jwks_uri": "http://evil.example/keys"}),
        lambda p: p.answer(DISCOVERY, {"issuer": p.issuer, "jwks_uri": "file:///etc/passwd"}),
    ],
)
def test_what_a_provider_must_not_answer(reader, provider, spoil):
    provider.answer("/elsewhere", {"keys": [provider.curve.as_dict(private=False)]})
    spoil(provider)
    with pytest.raises(ProviderUnreachable):
        reader.read(provider.token(Role.VIEWER))
    assert "/elsewhere" not in provider.asked


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_only_strong_public_keys_for_signatures_are_believed(reader, provider):
    weak = RSAKey.generate_key(1024, {"kid": "weak"})
    hidden = provider.curve.as_dict(private=False) | {"use": "enc"}
    secret = {"kty": "oct", "kid": "secret", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}
    provider.publish(weak, hidden, secret, {"kty": "EC", "kid": "broken"}, provider.rsa)
    assert reader.read(provider.token(Role.VIEWER, key=provider.rsa))
    for key in (weak, provider.curve):
        with pytest.raises(TokenRefused, match="does not have"):
            reader.read(provider.token(Role.VIEWER, key=key))


def test_a_token_without_a_key_id_is_read_where_there_is_one_key(reader, provider):
    provider.publish(provider.curve)
    assert reader.read(provider.token(Role.VIEWER, key_id=None))


@pytest.mark.parametrize(
    ("changes", "claims", "roles"),
    [
        ({}, {"roles": ["viewer", "operator", "cook"]}, {Role.VIEWER, Role.OPERATOR}),
        ({}, {"roles": "sender monitor"}, {Role.SENDER, Role.MONITOR}),
        ({}, {"roles": {"viewer": True}}, set()),
        ({}, {"roles": [["viewer"], 5]}, set()),
        ({}, {"roles": None}, set()),
        ({"roles_claim": "realm_access.roles"}, {"realm_access": {"roles": ["viewer"]}}, {Role.VIEWER}),
        ({"roles_claim": "https://x.example/roles"}, {"https://x.example/roles": ["viewer"]}, {Role.VIEWER}),
        (
            {"roles": ("radiology=viewer", "radiology=sender", "it=operator")},
            {"roles": ["radiology", "viewer"]},
            {Role.VIEWER, Role.SENDER},
        ),
    ],
)
def test_roles_come_from_the_claim(provider, settings, changes, claims, roles):
    chosen = settings.model_copy(update=changes)
    reader = TokenReader(chosen, Provider(chosen))
    assert reader.read(provider.token(**claims)).roles == roles


def test_whoever_has_no_role_may_nothing(client, provider):
    answer = client.get("/dicom-web/", headers=bearer(provider.token()))
    assert answer.status_code == 403
    assert "any role; Ärztin (u-1) has none" in answer.json()["error"]


def test_an_expired_token_locks_nobody_out(client, provider):
    for _ in range(40):
        assert client.get(STUDIES, headers=bearer(provider.token(Role.VIEWER, exp=1))).status_code == 401
    assert client.get(STUDIES, headers=bearer(provider.token(Role.VIEWER))).status_code in WELL


def test_an_answer_that_drips_is_given_up(provider, settings, monkeypatch):
    seconds = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("dicom_node.web.login.provider.time.monotonic", lambda: next(seconds))
    with pytest.raises(ValueError, match="too long"):
        fetcher(settings)(provider.issuer + JWKS)
