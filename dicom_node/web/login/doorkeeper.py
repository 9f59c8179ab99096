"""Finds out who sends a request: by the header Authorization, otherwise by the cookie of a session."""

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from base64 import b64decode
from collections import OrderedDict
from typing import Final

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from dicom_node.settings import NodeSettings
from dicom_node.web.login.failures import MOST_OF_ACCOUNT, MOST_OF_ADDRESS, Failures
from dicom_node.web.login.files import LoginUnusable
from dicom_node.web.login.jwt_login import TokenReader, TokenRefused
from dicom_node.web.login.outcomes import UNKNOWN, LoginLog, Outcome
from dicom_node.web.login.passwords import MAX_BYTES, Cost, nobodys_hash
from dicom_node.web.login.provider import Provider, ProviderUnreachable
from dicom_node.web.login.sessions import Sessions
from dicom_node.web.login.users import TOKEN_PREFIX, User, Users, UsersFile
from dicom_node.web.login.who import Login

MAX_CHECKS: Final = 2  # of passwords at the same time, of one process: each takes a core and 32 MiB
MAX_WAITING: Final = 20
MAX_READERS: Final = 4  # of JWTs: each may wait for the provider
BUSY_S: Final = 5
OF_ONE_HAND: Final = 64  # bits of an IPv6 address
REMEMBERED: Final = 256
REMEMBER_S: Final = 3600.0  # a program sends its password with every request
WRONG: Final = "this name and password do not belong together here"


class Refused(Exception):
    """Somebody who is not let in; the message is one sentence."""

    def __init__(self, why: str, status: int = 401, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.wait_s = wait_s  # before the next try


class Doorkeeper:
    """Knows everybody; belongs to one process, shares the failures with the others."""

    def __init__(self, settings: NodeSettings, failures: Failures) -> None:
        self.takes_passwords = settings.http.takes_passwords
        self.users = UsersFile(settings.home)
        self.sessions = Sessions(settings.home, settings.http)
        self.log = LoginLog(settings)
        self._failures = failures
        self._reader = (
            TokenReader(settings.oidc, Provider(settings.oidc)) if settings.oidc.issuer is not None else None
        )
        self._checks = anyio.CapacityLimiter(MAX_CHECKS)
        self._readers = anyio.CapacityLimiter(MAX_READERS)
        self._nobody = nobodys_hash(Cost())
        self._remembered = _Remembered()

    async def identify(self, headers: Headers, address: str) -> Login | None:
        """Who sends a request with these headers; None where they name nobody. Raises Refused."""
        given = headers.getlist("authorization")
        if not given:
            return self._of_session(headers)
        scheme, _, credentials = given[0].strip().partition(" ")
        if len(given) == 1 and scheme.lower() == "bearer":
            return await self._of_token(credentials.strip(), address)
        if len(given) == 1 and scheme.lower() == "basic":
            user = await self.of_password(*_name_and_password(credentials), address)
            return Login(user.name, user.roles)
        raise Refused("Authorization must be one of Basic and Bearer")

    async def of_password(self, name: str, password: str, address: str) -> User:
        """The user of a name and password. Raises Refused, with the same words whatever was wrong."""
        if not self.takes_passwords:
            raise Refused("no password is taken over plain HTTP: use HTTPS, or a token", 403)
        self._require_patience(name, address)
        user = self._known().user(name)
        if user is not None and self._remembered.has(user, password):
            self._failures.forget(_account(name))
            return user
        if self._checks.statistics().tasks_waiting >= MAX_WAITING:
            raise Refused("too many log-ins at the same time", 429, BUSY_S)
        is_right = await anyio.to_thread.run_sync(
            self._is_right, user, name, password, address, limiter=self._checks
        )
        if user is None or not is_right:
            self._count(name, address, UNKNOWN if user is None else user.name)
            raise Refused(WRONG)
        self._failures.forget(_account(name))
        self._remembered.add(user, password)
        self.log.on_login(Outcome.LOGGED_IN, user.name, address)
        return user

    def _known(self) -> Users:
        try:
            return self.users.now()
        except LoginUnusable as error:
            raise _cannot_tell() from error

    def _is_right(self, user: User | None, name: str, password: str, address: str) -> bool:
        self._require_patience(name, address)  # while this one waited, others may have failed
        if len(password.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            return False
        kept = self._nobody if user is None else user.password
        return kept.fits(password) and user is not None

    async def _of_token(self, secret: str, address: str) -> Login:
        if secret.startswith(TOKEN_PREFIX):
            token = self._known().token(secret)
            if token is not None:
                return Login(token.name, token.roles)
            raise self._bad_token("the token is not known here, or its time is over", address)
        if self._reader is None:
            raise self._bad_token("the token is not one of this node, and it has no OpenID provider", address)
        try:
            return await anyio.to_thread.run_sync(self._reader.read, secret, limiter=self._readers)
        except ProviderUnreachable as error:
            raise Refused(str(error), 503, BUSY_S) from error
        except TokenRefused as error:
            if error.is_genuine:  # not guessed
                self.log.on_login(Outcome.REFUSED, UNKNOWN, address)
                raise Refused(str(error)) from error
            raise self._bad_token(str(error), address) from error

    def _of_session(self, headers: Headers) -> Login | None:
        value = _cookie(headers, self.sessions.cookie)
        if value is None or not self.takes_passwords:
            return None
        try:
            session = self.sessions.read(value)
        except LoginUnusable as error:
            raise _cannot_tell() from error
        user = None if session is None else self._known().user(session.name)
        if session is None or user is None or not hmac.compare_digest(session.fingerprint, user.fingerprint):
            return None
        return Login(user.name, user.roles, session.session_id)

    def log_out(self, headers: Headers, address: str) -> None:
        """End the session of a request, if it has one."""
        value = _cookie(headers, self.sessions.cookie)
        session = None if value is None else self.sessions.read(value)
        if session is not None:
            self.sessions.end(session)
            self.log.on_login(Outcome.LOGGED_OUT, session.name, address)

    def _bad_token(self, why: str, address: str) -> Refused:
        """Count it, apart from passwords: a program whose token was removed locks no person out."""
        counted = f"tokens of {_place(address)}"
        wait_s = self._failures.wait_s(counted, MOST_OF_ADDRESS)
        if wait_s > 0:
            return _too_often(wait_s)
        self.log.on_login(Outcome.REFUSED, UNKNOWN, address)
        if self._failures.count(counted) == MOST_OF_ADDRESS:
            self.log.on_login(Outcome.LOCKED, UNKNOWN, address)
        return Refused(why)

    def _count(self, name: str, address: str, who: str) -> None:
        self.log.on_login(Outcome.REFUSED, who, address)
        counts = self._failures.count(_account(name)), self._failures.count(_place(address))
        if counts[0] == MOST_OF_ACCOUNT or counts[1] == MOST_OF_ADDRESS:
            self.log.on_login(Outcome.LOCKED, who, address)

    def _require_patience(self, name: str, address: str) -> None:
        wait_s = max(
            self._failures.wait_s(_account(name), MOST_OF_ACCOUNT),
            self._failures.wait_s(_place(address), MOST_OF_ADDRESS),
        )
        if wait_s > 0:
            raise _too_often(wait_s)


class _Remembered:
    """Passwords that were right a moment ago, under a key of this process: scrypt costs a quarter second."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._until = OrderedDict[bytes, float]()

    def has(self, user: User, password: str) -> bool:
        with self._lock:
            return self._until.get(self._digest(user, password), 0.0) > time.monotonic()

    def add(self, user: User, password: str) -> None:
        with self._lock:
            self._until[self._digest(user, password)] = time.monotonic() + REMEMBER_S
            while len(self._until) > REMEMBERED:
                self._until.popitem(last=False)

    def _digest(self, user: User, password: str) -> bytes:
        content = f"{user.name}\0{user.fingerprint}\0{password}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, content, hashlib.sha256).digest()


def _cannot_tell() -> Refused:
    """An operator reads why in /health/ready."""
    return Refused("the node cannot look up now who may log in", 503, BUSY_S)


def _too_often(wait_s: float) -> Refused:
    return Refused("too many log-ins failed: wait before the next", 429, wait_s)


def _name_and_password(credentials: str) -> tuple[str, str]:
    """Source: RFC 7617 2."""
    try:
        name, _, password = b64decode(credentials.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError as error:
        raise Refused("Authorization: Basic takes name:password in Base64") from error
    return name, password


def _cookie(headers: Headers, name: str) -> str | None:
    lines = (cookie_parser(line) for line in headers.getlist("cookie"))
    return next((cookies[name] for cookies in lines if name in cookies), None)


def _account(name: str) -> str:
    return f"account {name}"


def _place(address: str) -> str:
    """Of IPv6 the network: whoever has one address there has all."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return f"address {address}"
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is None:
        return f"address {ipaddress.ip_network((known, OF_ONE_HAND), strict=False)}"
    return f"address {address}"
