"""HOME/login/users.json: users with the hash of their password, tokens of machines with theirs."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_node.errors import BadRequest
from dicom_node.settings_web import Role
from dicom_node.web.login.files import (
    LoginUnusable,
    Watched,
    changing,
    folder_of,
    read_private,
    write_private,
)
from dicom_node.web.login.passwords import Cost, PasswordHash, why_bad

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
TOKEN_PREFIX: Final = "sim4seg_"  # noqa: S105 - says whose it is, to people and to scanners for leaked ones
TOKEN_BYTES: Final = 32
DAY_S: Final = 86400.0
Roles = Annotated[frozenset[Role], Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=rf"^{NAME.pattern}$")
    roles: Roles
    created_at: float  # seconds since 1970


class User(_Record):
    """Somebody with a password."""

    password: PasswordHash

    @property
    def fingerprint(self) -> str:
        """Another one for another password; a session names it, and ends with it."""
        return hashlib.sha256(f"{self.created_at}{self.password.hash}".encode()).hexdigest()[:32]


class Token(_Record):
    """A machine with a secret of 256 random bits, which needs no slow hash."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires_at: float | None = None  # seconds since 1970


class Users(BaseModel):
    """Everybody whom this node knows by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: tuple[User, ...] = ()
    tokens: tuple[Token, ...] = ()

    def user(self, name: str) -> User | None:
        """The user of this name."""
        return next((user for user in self.users if user.name == name), None)

    def token(self, secret: str) -> Token | None:
        """Whose token this is, if its time is not over."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = None
        for token in self.tokens:  # all of them: how long it takes says nothing
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return None if found is None or _is_over(found) else found

    def names(self) -> set[str]:
        """Every name that is taken."""
        return {record.name for record in (*self.users, *self.tokens)}


class UsersFile:
    """The file, as it is whenever it is asked."""

    def __init__(self, home: Path) -> None:
        self.path = folder_of(home) / "users.json"
        self._watched = Watched(self.path, self._parsed, Users())

    def now(self) -> Users:
        """Users and tokens as they are now. Raises LoginUnusable."""
        return self._watched.now()

    def add_user(self, name: str, password: str, roles: Iterable[Role], cost: Cost | None = None) -> None:
        """Add a user. Raises BadRequest, LoginUnusable."""
        if (why_not := why_bad(password)) is not None:
            raise BadRequest(why_not)
        user = User(
            name=_free_form(name),
            roles=frozenset(roles),
            created_at=time.time(),
            password=PasswordHash.of(password, cost or Cost()),
        )
        self._change(lambda known: known.model_copy(update={"users": (*_without(known, name), user)}))

    def add_token(self, name: str, roles: Iterable[Role], days: float | None = None) -> str:
        """Add a token and give it: it is not kept, and cannot be shown again. Raises BadRequest."""
        secret = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        now = time.time()
        token = Token(
            name=_free_form(name),
            roles=frozenset(roles),
            created_at=now,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            expires_at=None if days is None else now + days * DAY_S,
        )

        def added(known: Users) -> Users:
            _without(known, name)
            return known.model_copy(update={"tokens": (*known.tokens, token)})

        self._change(added)
        return secret

    def remove(self, name: str) -> None:
        """Remove a user or a token; sessions of a user end with it. Raises BadRequest."""

        def removed(known: Users) -> Users:
            if name not in known.names():
                raise BadRequest(f"there is no user and no token named {name}: `dicom-node users list`")
            return Users(
                users=tuple(user for user in known.users if user.name != name),
                tokens=tuple(token for token in known.tokens if token.name != name),
            )

        self._change(removed)

    def _change(self, change: Callable[[Users], Users]) -> None:
        with changing(self.path.parent):
            try:
                known = self._parsed(read_private(self.path))
            except FileNotFoundError:
                known = Users()
            write_private(self.path, change(known).model_dump_json(indent=2).encode())

    def _parsed(self, content: bytes) -> Users:
        try:
            return Users.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise LoginUnusable(
                f"{self.path}: {where}: {first['msg']}; change it by `dicom-node users`."
            ) from error


def _free_form(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise BadRequest("a name has 1 to 64 letters, digits, '.', '_', '@' and '-', a letter or digit first")
    return name


def _without(known: Users, name: str) -> tuple[User, ...]:
    """The users there are, none of them of this name. Raises BadRequest."""
    if name in known.names():
        raise BadRequest(f"{name} is there already: `dicom-node users remove {name}` first")
    return known.users


def _is_over(token: Token) -> bool:
    return token.expires_at is not None and token.expires_at <= time.time()
