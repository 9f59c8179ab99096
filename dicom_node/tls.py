"""TLS for DICOM and HTTPS after BCP 195: TLS 1.2 or 1.3, forward secrecy, authenticated encryption.

There is no way back to plain: what cannot be used is said in a sentence, and nothing is opened or sent.

Source: PS3.15 B.12 (BCP 195, RFC 8996 and 9325, TLS profile), RFC 9325 4.2.
"""

import logging
import os
import ssl
import stat
from pathlib import Path
from typing import Any, Final

from dicom_node import readiness
from dicom_node.errors import TlsUnusable
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import TlsSettings

OLDEST: Final = ssl.TLSVersion.TLSv1_2
CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
)  # fmt: skip
"""Suites of TLS 1.2; those of TLS 1.3 are all of this strength. Source: RFC 9325 4.2."""

logger = logging.getLogger(__name__)


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """What the listener needs: our certificate, and whose certificates callers must show.

    Raises
    ------
    TlsUnusable
        With the setting and what is wrong with it.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, settings)
    if settings.client_certificate == "required":
        context.verify_mode = ssl.CERT_REQUIRED
        _load_trusted(context, settings)
    return context


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """What a call to a peer needs: whom we trust, and our certificate if there is one; host names count.

    Raises
    ------
    TlsUnusable
        With the setting and what is wrong with it.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_trusted(context, settings)
    if settings.certificate is not None:
        _load_own(context, settings)
    return context


def web_context(settings: TlsSettings) -> ssl.SSLContext:
    """What the web server needs: our certificate; a browser shows none.

    Raises
    ------
    TlsUnusable
        With the setting and what is wrong with it.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, settings)
    return context


def listening_context(settings: NodeSettings) -> ssl.SSLContext | None:
    """`server_context` where the configuration wants one; what is wrong with it goes to /health/ready."""
    if not settings.tls.listen:
        return None
    try:
        context = server_context(settings.tls)
    except TlsUnusable as error:
        readiness.report(settings.home, "tls", str(error))
        logger.warning("there is no port with TLS", extra={"reason": str(error)})
        return None
    readiness.report(settings.home, "tls", None)
    return context


def may_call_itself(connection: ssl.SSLSocket, calling_ae: str, settings: TlsSettings) -> bool:
    """Whether the peer's certificate names its calling AE title, where the settings ask for that."""
    if not settings.binds_ae_title:
        return True
    return calling_ae.strip() in _names(connection.getpeercert() or {})


def _names(certificate: dict[str, Any]) -> set[str]:
    """Common names and DNS names of a certificate that was verified."""
    subject = {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
    return subject | {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}


def _context(protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = OLDEST
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION
    return context


def _load_own(context: ssl.SSLContext, settings: TlsSettings) -> None:
    certificate = _readable(settings.certificate, "tls.certificate")
    key = _readable(settings.key, "tls.key")
    if stat.S_IMODE(key.stat().st_mode) & stat.S_IRWXO:
        raise TlsUnusable(f"tls.key: everybody can read {key}; take the rights of others away (chmod o=)")
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise TlsUnusable(f"tls.certificate, tls.key: no pair of PEM files ({_reason(error)})") from error


def _load_trusted(context: ssl.SSLContext, settings: TlsSettings) -> None:
    trusted = _readable(settings.trusted, "tls.trusted")
    try:
        context.load_verify_locations(trusted)
    except (OSError, ssl.SSLError) as error:
        raise TlsUnusable(f"tls.trusted: no certificates in PEM ({_reason(error)})") from error


def _readable(path: Path | None, name: str) -> Path:
    if path is None:
        raise TlsUnusable(f"{name}: is not set")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise TlsUnusable(f"{name}: {path} is not there or cannot be read")
    return path


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
