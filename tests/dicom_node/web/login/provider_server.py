"""An OpenID provider on a real socket, with real keys, that gives the tokens a test asks for."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

AUDIENCE = "sim4seg"
JWKS = "/keys"
DISCOVERY = "/.well-known/openid-configuration"


@dataclass
class OpenIdProvider:
    """Its keys, and what it was asked."""

    issuer: str
    rsa: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "rsa-1"}))
    curve: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "ec-1"}))
    asked: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)

    def publish(self, *keys):
        """The JWK Set that is given from now on."""
        public = [key.as_dict(private=False) if not isinstance(key, dict) else key for key in keys]
        self.answer(JWKS, {"keys": public})

    def answer(self, path, document, status=200, **headers):
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answers[path] = (status, content, headers)

    def reset(self):
        """As at the beginning."""
        self.asked.clear()
        self.answer(DISCOVERY, {"issuer": self.issuer, "jwks_uri": self.issuer + JWKS})
        self.publish(self.rsa, self.curve)

    def claims(self, *roles, **changes):
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": AUDIENCE, "sub": "u-1", "preferred_username": "Ärztin",
            "iat": now - 5, "exp": now + 600, "roles": [str(role) for role in roles], **changes,
        }  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *roles, key=None, header=None, key_id="", **changes):
        """A token; claims that are None are left out, and a key id that is None."""
        key = key or self.curve
        alg = {"RSA": "RS256", "EC": "ES256"}[key.key_type]
        named = {} if key_id is None else {"kid": key_id or key.kid}
        fields = {"alg": alg, **named, **(header or {})}
        return jwt.encode(fields, self.claims(*roles, **changes), key, algorithms=[fields["alg"]])


@contextmanager
def running_provider() -> Iterator[OpenIdProvider]:
    provider = OpenIdProvider("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            provider.asked.append(self.path)
            status, content, headers = provider.answers.get(self.path, (404, b"", {}))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    provider.reset()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
