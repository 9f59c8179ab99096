"""Passwords: kept as scrypt, compared in constant time; an unknown user costs as long as a wrong password.

Source: RFC 7914; NIST SP 800-63B 3.1.1.
"""

import hashlib
import hmac
import secrets
import unicodedata
from base64 import b64decode, b64encode
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

MIN_CHARACTERS: Final = 12
MAX_BYTES: Final = 1024
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
Base64 = Annotated[str, Field(min_length=16, max_length=128, pattern=r"^[A-Za-z0-9+/]+=*$")]


class Cost(BaseModel):
    """Parameters of scrypt: memory is 128 * n * r bytes, time grows with n * r * p."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=2**15, ge=2, le=2**20)
    r: int = Field(default=8, ge=1, le=32)
    p: int = Field(default=3, ge=1, le=16)


class PasswordHash(Cost):
    """What is kept of a password."""

    salt: Base64
    hash: Base64

    @classmethod
    def of(cls, password: str, cost: Cost) -> Self:
        """Hash a new password."""
        salt = secrets.token_bytes(SALT_BYTES)
        digest = _scrypt(password, salt, cost)
        return cls(
            **cost.model_dump(), salt=b64encode(salt).decode("ascii"), hash=b64encode(digest).decode("ascii")
        )

    def fits(self, password: str) -> bool:
        """Whether this is the password; takes the time of scrypt."""
        return hmac.compare_digest(_scrypt(password, b64decode(self.salt), self), b64decode(self.hash))


def why_bad(password: str) -> str | None:
    """What speaks against a new password, in a sentence; None = nothing."""
    if len(password) < MIN_CHARACTERS:
        return f"a password has at least {MIN_CHARACTERS} characters: a sentence is easy to remember"
    if len(password.encode()) > MAX_BYTES:
        return f"a password has at most {MAX_BYTES} bytes"
    if not password.isprintable():
        return "a password has no control characters"
    return None


def nobodys_hash(cost: Cost) -> PasswordHash:
    """A hash that no password fits, compared where there is no such user."""
    salt, digest = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(HASH_BYTES)
    return PasswordHash(
        **cost.model_dump(), salt=b64encode(salt).decode("ascii"), hash=b64encode(digest).decode("ascii")
    )


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    known = unicodedata.normalize("NFC", password).encode()  # the same letters on every keyboard
    memory = 128 * cost.r * (cost.n + cost.p + 2)
    return hashlib.scrypt(
        known, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory + 2**20, dklen=HASH_BYTES
    )
