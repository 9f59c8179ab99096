"""Sessions of browsers: a signed cookie that names its user; nothing else is kept but those that were ended.

A session ends by time, by log-out, when its user is removed or gets another password, and with the key.
"""

import hashlib
import hmac
import json
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from dicom_node.settings_web import HttpSettings
from dicom_node.web.login.files import (
    LoginUnusable,
    Watched,
    changing,
    folder_of,
    read_private,
    write_private,
)
from dicom_node.web.login.users import User

KEY_FILE: Final = "session.key"
KEY_BYTES: Final = 32
HOUR_S: Final = 3600
MAX_COOKIE_CHARACTERS: Final = 1024
COOKIE: Final = "sim4seg-login"
HOST_PREFIX: Final = "__Host-"  # only by HTTPS, for this host alone. Source: RFC 6265bis 4.1.3.2

Ended = dict[str, float]


class Session(NamedTuple):
    """What a cookie says."""

    session_id: str
    name: str
    fingerprint: str  # of the user
    expires_at: float  # seconds since 1970


class Sessions:
    """Makes, reads and ends sessions; every process of the node does so with the same key."""

    def __init__(self, home: Path, http: HttpSettings) -> None:
        self._folder = folder_of(home)
        self._key = _key_in(self._folder)
        self._ended = Watched[Ended](self._folder / "ended.json", _read_ended, {})
        mark = hashlib.sha256(self._key).hexdigest()[:8]  # nodes at other ports of this machine have theirs
        self.cookie = f"{HOST_PREFIX if http.has_https else ''}{COOKIE}-{mark}"
        self._length_s = http.session_hours * HOUR_S
        self._is_secure = http.has_https

    def begin(self, user: User) -> str:
        """Value of Set-Cookie for a new session."""
        session = Session(
            secrets.token_hex(16), user.name, user.fingerprint, round(time.time() + self._length_s)
        )
        content = urlsafe_b64encode(json.dumps(session).encode())
        return self._set(f"{content.decode('ascii')}.{self._signature(content)}", int(self._length_s))

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None where it is over, or none of ours. Raises LoginUnusable."""
        content, _, signature = cookie.rpartition(".")
        expected = self._signature(content.encode())
        if len(cookie) > MAX_COOKIE_CHARACTERS or not hmac.compare_digest(
            signature.encode(), expected.encode()
        ):
            return None
        session = Session(*json.loads(urlsafe_b64decode(content)))
        is_over = session.expires_at <= time.time() or session.session_id in self._ended.now()
        return None if is_over else session

    def end(self, session: Session) -> None:
        """End a session, wherever its cookie was copied to."""
        path = self._ended.path
        with changing(self._folder):
            try:
                known = _read_ended(read_private(path))
            except FileNotFoundError:
                known = {}
            now = time.time()
            kept = {name: until for name, until in known.items() if until > now}
            write_private(path, json.dumps(kept | {session.session_id: session.expires_at}).encode())

    def clear(self) -> str:
        """Value of Set-Cookie that takes the cookie away."""
        return self._set("", 0)

    def _set(self, value: str, max_age_s: int) -> str:
        secure = "; Secure" if self._is_secure else ""
        return f"{self.cookie}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"

    def _signature(self, content: bytes) -> str:
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


def require_private_key(home: Path) -> None:
    """Raise LoginUnusable if the key is there, and others can use it."""
    with suppress(FileNotFoundError):
        read_private(folder_of(home) / KEY_FILE)


def _key_in(folder: Path) -> bytes:
    """The key of this home, made at the first start."""
    path = folder / KEY_FILE
    with changing(folder):
        try:
            key = read_private(path)
        except FileNotFoundError:
            key = secrets.token_bytes(KEY_BYTES)
            write_private(path, key)
    if len(key) != KEY_BYTES:
        raise LoginUnusable(f"{path}: is no key; remove it, and everybody logs in again.")
    return key


def _read_ended(content: bytes) -> Ended:
    """Ids of ended sessions, each until when its cookie would have been good."""
    try:
        return {str(name): float(until) for name, until in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LoginUnusable("ended.json in the folder of the log-in cannot be read; remove it.") from error
