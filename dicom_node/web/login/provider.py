"""The OpenID provider's public keys: found by discovery, kept for an hour, fetched again for an unknown one.

Source: OpenID Connect Discovery 1.0 4; RFC 7517; RFC 8725 (what may go wrong).
"""

import json
import logging
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

from dicom_node.settings_web import OidcSettings, is_private
from dicom_node.web.login.files import LoginUnusable

MAX_ANSWER_BYTES: Final = 512 * 1024
FETCH_S: Final = 5.0  # each of the two documents
KEEP_S: Final = 3600.0
KEEP_WITHOUT_PROVIDER_S: Final = 24 * 3600.0
ASK_AGAIN_S: Final = 30.0  # whatever key ids strangers make up
MAX_KEYS: Final = 50
MIN_RSA_BITS: Final = 2048

PublicKey = RSAKey | ECKey
Fetch = Callable[[str], bytes]
JsonObject = dict[str, Any]

logger = logging.getLogger(__name__)


class ProviderUnreachable(Exception):
    """The provider's keys cannot be had now; the message is one sentence."""


class UnknownKey(Exception):
    """The provider has no key of this id."""


class Provider:
    """Keys of one provider; may be shared by threads, of which one at a time asks the provider."""

    def __init__(
        self,
        settings: OidcSettings,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = settings.issuer or ""
        self._fetch = fetch or fetcher(settings)
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str, PublicKey] = {}
        self._fetched_at: float | None = None
        self._asked_at: float | None = None

    def key(self, key_id: str | None) -> PublicKey:
        """The key of an id; without one the only key, if there is only one.

        Raises
        ------
        UnknownKey
            If the provider has none of this id.
        ProviderUnreachable
            If nothing is known of its keys, or not for too long.
        """
        found = self._find(key_id)
        if found is None or self._age_s() >= KEEP_S:
            found = self._find_anew(key_id, is_urgent=found is None)
        if self._age_s() >= KEEP_WITHOUT_PROVIDER_S:
            raise ProviderUnreachable("the OpenID provider does not give its keys; try again later")
        if found is None:
            raise UnknownKey
        return found

    def _find_anew(self, key_id: str | None, *, is_urgent: bool) -> PublicKey | None:
        """Ask the provider, unless another thread does; who has a key meanwhile does not wait for that."""
        if self._lock.acquire(blocking=is_urgent):
            try:
                if self._find(key_id) is None or self._age_s() >= KEEP_S:
                    self._refresh()
            finally:
                self._lock.release()
        return self._find(key_id)

    def _find(self, key_id: str | None) -> PublicKey | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _age_s(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    def _refresh(self) -> None:
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at < ASK_AGAIN_S:
            return
        self._asked_at = now
        try:
            self._keys = self._ask()
            self._fetched_at = self._clock()
        except (OSError, ValueError, JoseError) as error:
            why = str(error) if isinstance(error, _BadAnswer) else type(error).__name__
            logger.warning("the OpenID provider gives no keys", extra={"reason": why})

    def _ask(self) -> Mapping[str, PublicKey]:
        about = _object(self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"))
        if about.get("issuer") != self._issuer:
            raise _BadAnswer("its configuration names another issuer than oidc.issuer")
        address = about.get("jwks_uri")
        if not isinstance(address, str) or not is_private(address):
            raise _BadAnswer("its jwks_uri is no https:// address")
        return public_keys(_object(self._fetch(address)))


class _BadAnswer(ValueError):
    """What the provider sent cannot be used; the message says why."""


def public_keys(document: JsonObject) -> dict[str, PublicKey]:
    """Keys of a JWK Set by their id: RSA and elliptic curve for signatures; others are left out."""
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise _BadAnswer("its jwks_uri gives no JWK Set")
    found: dict[str, PublicKey] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key = _imported(entry)
        if key is not None:
            key.ensure_kid()
            found[str(key.kid)] = key
    return found


def _imported(entry: JsonObject) -> PublicKey | None:
    """A public key that is strong enough; never a shared secret."""
    if entry.get("kty") not in {"RSA", "EC"}:
        return None
    try:
        key = JWKRegistry.import_key(entry)
    except (JoseError, ValueError):
        return None
    if isinstance(key, RSAKey):
        return key if key.public_key.key_size >= MIN_RSA_BITS else None
    return key if isinstance(key, ECKey) else None


def fetcher(settings: OidcSettings) -> Fetch:
    """A function that gets a document of the provider: in time, of a bounded size, without redirections.

    Raises
    ------
    LoginUnusable
        If oidc.trusted holds no certificates.
    """
    try:
        context = ssl.create_default_context(cafile=settings.trusted)
    except (OSError, ssl.SSLError) as error:
        raise LoginUnusable(f"oidc.trusted: {settings.trusted} holds no certificates in PEM.") from error
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Straight)

    def fetch(address: str) -> bytes:
        end, content = time.monotonic() + FETCH_S, b""
        with opener.open(address, timeout=FETCH_S) as answer:
            while chunk := answer.read1(65536):
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise _BadAnswer("its answer is too long")
                if time.monotonic() > end:
                    raise _BadAnswer("its answer takes too long")
        return content

    return fetch


class _Straight(urllib.request.HTTPRedirectHandler):
    """Goes where it was sent, and nowhere else."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Do not follow."""
        del arguments, options


def _object(content: bytes) -> JsonObject:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise _BadAnswer("its answer is no JSON object")
    return found
