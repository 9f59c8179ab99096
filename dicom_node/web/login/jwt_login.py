"""What a token (JWT) of the OpenID provider must be, and which roles it gives.

The signature is one of the provider's keys, by an algorithm with a public key; "none" and shared secrets are
no signatures here. Issuer, audience, begin and end must fit.

Source: RFC 7519 4.1, RFC 8725 3, RFC 9068 4.
"""

from collections.abc import Iterator
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwk import GuestProtocol, Key
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from dicom_node.settings_web import OidcSettings, Role
from dicom_node.web.login.provider import Provider, UnknownKey
from dicom_node.web.login.who import Login

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
TYPES: Final = frozenset({None, "jwt", "at+jwt", "application/at+jwt"})  # not those that are no log-in
MAX_TOKEN_CHARACTERS: Final = 16 * 1024
CLOCK_S: Final = 60  # our clock and the provider's may differ
MAX_NAME_CHARACTERS: Final = 64
NAME_CLAIMS: Final = ("preferred_username", "email", "client_id", "azp")
REFUSED_CLAIMS: Final = {
    "iss": "the token is of another issuer",
    "aud": "the token is for another audience",
    "nbf": "the token is not valid yet",
    "iat": "the token is not valid yet",
}


class TokenRefused(Exception):
    """A token that is not good here; the message says why. `is_genuine`: the provider did sign it."""

    def __init__(self, why: str, *, is_genuine: bool = False) -> None:
        super().__init__(why)
        self.is_genuine = is_genuine


class TokenReader:
    """Reads tokens of one provider; may be shared by threads."""

    def __init__(self, settings: OidcSettings, provider: Provider) -> None:
        self._settings = settings
        self._provider = provider
        self._roles = settings.role_of
        self._registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._registry.max_header_length = 4096
        self._claims = JWTClaimsRegistry(
            leeway=CLOCK_S,
            iss={"essential": True, "value": settings.issuer or ""},
            aud={"essential": True, "value": settings.audience or ""},
            exp={"essential": True},
            sub={"essential": True},
        )

    def read(self, text: str) -> Login:
        """Who sends a token. Raises TokenRefused, ProviderUnreachable."""
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise TokenRefused("the token is too long")
        claims = self._signed_claims(text)
        try:
            self._claims.validate(claims)
        except ExpiredTokenError as error:
            raise TokenRefused("the token has expired", is_genuine=True) from error
        except InvalidClaimError as error:
            why = REFUSED_CLAIMS.get(error.claim, f"what the token says of {error.claim} cannot be meant")
            raise TokenRefused(why, is_genuine=True) from error
        except MissingClaimError as error:
            raise TokenRefused(f"the token does not say its {error.claim}", is_genuine=True) from error
        return Login(name_in(claims), frozenset(self._roles_in(claims)))

    def _signed_claims(self, text: str) -> dict[str, Any]:
        try:
            token = jwt.decode(text, self._key, registry=self._registry)
        except UnknownKey as error:
            raise TokenRefused("the token is signed with a key that the provider does not have") from error
        except (JoseError, ValueError, TypeError) as error:
            raise TokenRefused("the token is not signed as it must be") from error
        kind = token.header.get("typ")
        if (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
            raise TokenRefused("the token is of a kind that is no log-in", is_genuine=True)
        return token.claims

    def _key(self, token: GuestProtocol) -> Key:
        key_id = token.headers().get("kid")
        return self._provider.key(key_id if isinstance(key_id, str) else None)

    def _roles_in(self, claims: dict[str, Any]) -> Iterator[Role]:
        for value in _values(claims, self._settings.roles_claim):
            yield from self._roles.get(value, ())


def name_in(claims: dict[str, Any]) -> str:
    """What the provider calls somebody, and the subject, which nobody can give themselves."""
    subject, names = _printed(claims["sub"]), (_printed(claims.get(claim)) for claim in NAME_CLAIMS)
    name = next(filter(None, names), "")
    return f"{name} ({subject})" if name and name != subject else subject


def _printed(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_NAME_CHARACTERS]


def _values(claims: dict[str, Any], path: str) -> list[str]:
    """Values of a claim: a list, or words of a string; the claim of the whole name goes before one inside."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        return found.split()
    return [value for value in found if isinstance(value, str)] if isinstance(found, list) else []
