"""TLS over a connected socket, of which one end is closed before the other.

`ssl.SSLSocket.unwrap` cannot be used where the other side's close is the only word that it has read
everything: OpenSSL's SSL_shutdown gives the same answer to a fatal alert as to a close_notify, and in TLS
1.3 a certificate that is missing or not believed is told by such an alert, after our own handshake was
done. Reading tells the two apart, so the close is sent first and then read for.
"""

import contextlib
import socket
import ssl
import time
from typing import Final

CHUNK: Final = 65536
END_S: Final = 30.0  # for everything that the other side still says before it closes


class TlsStream:
    """The client's side. OSError (which ssl.SSLError is) where something fails, as with a socket."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Shake hands on `plain`, whose timeout bounds every wait; `host` is whom to believe."""
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        while not self._has_shaken_hands():
            self._receive()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._tls.write(data)
        self._flush()

    def end(self) -> None:
        """Close our end, and wait for the other side to close its own; a bare FIN will do.

        It has read our end then, or its kernel would have sent a RST.
        """
        with contextlib.suppress(ssl.SSLWantReadError):  # nothing was received since the handshake
            self._tls.unwrap()
        self._flush()
        until = time.monotonic() + END_S
        while not self._is_closed():
            if time.monotonic() > until:
                raise TimeoutError("the other side goes on talking")
            if not self._receive():
                return

    def _has_shaken_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._flush()  # an alert, too: it says why we would not go on
        return True

    def _is_closed(self) -> bool:
        """Read what has come; raises ssl.SSLError for an alert."""
        try:
            while self._tls.read(CHUNK):
                pass
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            return True
        return True

    def _receive(self) -> bool:
        """Wait for bytes; False at the end."""
        data = self._plain.recv(CHUNK)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    def _flush(self) -> None:
        self._plain.sendall(self._outgoing.read())
