"""Syslog as an audit record repository takes it: RFC 5424 messages, over TLS (RFC 5425) or UDP (RFC 5426).

Over TLS a message is whole whatever its length. Syslog has no answers: what says that the repository has read
everything is the end of the connection, our close_notify and its own (RFC 5425 4.4), or its FIN.

Source: PS3.15 A.6 and A.7 (facility 10, severity 5, MSGID), RFC 5424 6, RFC 5425 4.3 (octet counting).
"""

import os
import re
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Protocol

from dicom_node.audit.record import Record
from dicom_node.audit.tls_stream import TlsStream
from dicom_node.audit.trail import host_name
from dicom_node.errors import TlsUnusable
from dicom_node.settings import NodeSettings
from dicom_node.tls import client_context

PRI: Final = 10 * 8 + 5  # security/authorization, notice
MSGID: Final = "DICOM+RFC3881"
APP_NAME: Final = "dicom-node"
BOM: Final = b"\xef\xbb\xbf"
TIMEOUT_S: Final = 10.0
MAX_DATAGRAM: Final = 65507  # octets of one UDP datagram over IPv4
NOT_PRINTABLE: Final = re.compile(r"[^!-~]")


class NotSent(Exception):
    """The repository has not got everything; the sentence says why."""


class Sender(Protocol):
    """Sends a batch of messages, or raises NotSent."""

    def __call__(self, messages: Sequence[bytes]) -> None:
        """Send them in order; returns when the repository has them, as far as that can be known."""


def message_of(record: Record) -> bytes:
    """The SYSLOG-MSG of a record."""
    host = NOT_PRINTABLE.sub("-", host_name())[:255] or "-"
    head = f"<{PRI}>1 {record.at} {host} {APP_NAME} {record.pid} {MSGID} - "
    return head.encode("ascii") + BOM + record.message.encode()


def framed(message: bytes) -> bytes:
    """The SYSLOG-FRAME of a message."""
    return b"%d %b" % (len(message), message)


def sender_of(settings: NodeSettings) -> Sender:
    """What the configuration wants; raises TlsUnusable. There is no way from TLS back to plain."""
    address = (settings.audit.syslog_host or "", settings.audit.port)
    if settings.audit.syslog == "udp":
        return UdpSender(address)
    return TlsSender(address, repository_context(settings))


def repository_context(settings: NodeSettings) -> ssl.SSLContext:
    """TLS towards the repository: whom we believe, and what we show.

    Raises
    ------
    TlsUnusable
        With the setting and what is wrong with it.
    """
    audit = settings.audit
    own = {"certificate": audit.certificate, "key": audit.key} if audit.certificate is not None else {}
    trusted = {"trusted": audit.trusted} if audit.trusted is not None else {}
    try:
        return client_context(settings.tls.model_copy(update={**own, **trusted}))
    except TlsUnusable as error:
        raise TlsUnusable(f"audit.syslog: {error}") from error


class TlsSender:
    """One connection for each batch: its end is the only word that everything was read."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self._address = address
        self._context = context

    def __call__(self, messages: Sequence[bytes]) -> None:
        """Send `messages` and wait until the repository has closed the connection after the last."""
        host = self._address[0]
        try:
            with socket.create_connection(self._address, timeout=TIMEOUT_S) as plain:
                stream = TlsStream(plain, self._context, host)
                stream.send(b"".join(map(framed, messages)))
                stream.end()
        except OSError as error:
            raise NotSent(f"{host}:{self._address[1]}: {_reason(error)}") from error


class UdpSender:
    """Datagrams; nobody says whether they arrive. What is longer than one is cut (RFC 5424 6.1)."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def __call__(self, messages: Sequence[bytes]) -> None:
        """Send each of `messages` once."""
        host, port = self._address
        try:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as outlet:
                for message in messages:
                    outlet.sendto(message[:MAX_DATAGRAM], target)
        except OSError as error:
            raise NotSent(f"{host}:{port}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """What went wrong, without the text of anybody else."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    return error.strerror or os.strerror(error.errno or 0) if error.errno else type(error).__name__
