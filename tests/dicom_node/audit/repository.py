"""An audit record repository: a TLS server that reads RFC 5425 frames, and may behave badly."""

import socket
import ssl
import struct
import threading


class Repository:
    """Listens at a port while `open`; keeps every message, and says when one more came."""

    def __init__(self, port, pair, trusted=None, **behaviour):
        self.port = port
        self.messages = []
        self.behaviour = behaviour
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        if trusted is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(trusted)
        self._listening = None
        self._thread = None

    def open(self):
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)

    def __enter__(self):
        return self.open()

    def __exit__(self, *_):
        self.close()

    def _run(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            try:
                self._serve(connection)
            except OSError:
                connection.close()

    def _serve(self, plain):
        with self._context.wrap_socket(plain, server_side=True) as connection:
            if self.behaviour.pop("breaks_off", False):
                connection.recv(10)
                # RST instead of FIN, though much was taken by the kernel
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            self.messages += frames(read_all(connection))
            if not self.behaviour.get("is_curt"):
                connection.unwrap()


def read_all(connection):
    content = b""
    while chunk := connection.recv(65536):
        content += chunk
    return content


def frames(content):
    """SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG, one behind the other, nothing between."""
    found = []
    while content:
        length, _, rest = content.partition(b" ")
        found.append(rest[: int(length)])
        assert len(found[-1]) == int(length)
        content = rest[int(length) :]
    return found
