"""C-ECHO and C-STORE to a peer.

Each file goes out exactly as it is stored: the (SOP class, transfer syntax) pairs of the files, and no
others, are proposed. An association holds at most 128 presentation contexts, so more make several.

Source: PS3.8 9.3.2.2 (presentation context ids are odd, 1 to 255), PS3.4 B.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydicom import Dataset
from pynetdicom import AE, _config, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from dicom_node.errors import AssociationRejected, PeerError, PeerUnreachable
from dicom_node.header import MAX_META_BYTES, META_START, split_meta
from dicom_node.receive import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

VERIFICATION: Final = "1.2.840.10008.1.1"
MAX_CONTEXTS: Final = 128
MAX_PDU: Final = 131072
CONNECT_TIMEOUT_S: Final = 10.0
RESPONSE_TIMEOUT_S: Final = 60.0  # a PACS may take long over a big instance, but not for ever
NO_CONTEXT_STATUS: Final = 0x0122
NO_CONTEXT: Final = "the peer does not accept this SOP class in this transfer syntax"


class Peer(Protocol):
    """A remote AE; the sections `peers` and `destinations` of the configuration are such."""

    @property
    def ae_title(self) -> str:
        """Its AE title."""

    @property
    def host(self) -> str:
        """Its host name or address."""

    @property
    def port(self) -> int:
        """Its TCP port."""


@dataclass(frozen=True)
class SendStatus:
    """What became of one file."""

    path: Path
    sop_instance_uid: str
    status: int | None  # DIMSE status; None when there was no answer
    detail: str

    @property
    def is_delivered(self) -> bool:
        """Success, or a warning with which the peer kept the instance (0xBxxx)."""
        return self.status is not None and (self.status == 0x0000 or self.status >> 12 == 0xB)

    @property
    def is_retryable(self) -> bool:
        """No answer, or the peer is out of resources (0xA7xx)."""
        return self.status is None or self.status >> 8 == 0xA7


@dataclass(frozen=True)
class _Outgoing:
    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid


def send_instances(paths: Sequence[Path], peer: Peer, ae_title: str) -> list[SendStatus]:
    """Send Part 10 files by C-STORE; returns one status a file, in their order. A dead peer is a status."""
    _config.STORE_SEND_CHUNKED_DATASET = True  # files go out byte for byte, undecoded
    files = [_outgoing(path) for path in paths]
    statuses: dict[Path, SendStatus] = {}
    for batch in _batches(files):
        statuses |= {status.path: status for status in _send_batch(batch, peer, ae_title)}
    return [statuses[file.path] for file in files]


def echo(peer: Peer, ae_title: str) -> None:
    """Ask the peer for a C-ECHO.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        With a sentence saying what to check.
    """
    with _associated(peer, ae_title, [build_context(VERIFICATION)]) as association:
        if not association.is_established:
            raise AssociationRejected(f"{peer.ae_title} does not offer C-ECHO")
        answer = association.send_c_echo()
    if "Status" not in answer:
        raise PeerUnreachable(f"{peer.ae_title} did not answer the C-ECHO")
    if answer.Status != 0x0000:
        raise AssociationRejected(f"{peer.ae_title} answered the C-ECHO with 0x{answer.Status:04X}")


def _outgoing(path: Path) -> _Outgoing:
    with path.open("rb") as file:
        meta, _end = split_meta(file.read(META_START + MAX_META_BYTES))
    return _Outgoing(
        path,
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )


def _batches(files: Sequence[_Outgoing]) -> Iterator[list[_Outgoing]]:
    """Split `files` so that each batch needs at most 128 presentation contexts."""
    batch: list[_Outgoing] = []
    pairs: set[tuple[str, str]] = set()
    for file in files:
        if file.pair not in pairs and len(pairs) == MAX_CONTEXTS:
            yield batch
            batch, pairs = [], set()
        batch.append(file)
        pairs.add(file.pair)
    if batch:
        yield batch


def _send_batch(batch: Sequence[_Outgoing], peer: Peer, ae_title: str) -> list[SendStatus]:
    pairs = sorted({file.pair for file in batch})
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    try:
        with _associated(peer, ae_title, contexts) as association:
            return list(_send_all(association, batch))
    except PeerError as error:
        return [SendStatus(file.path, file.sop_instance_uid, None, str(error)) for file in batch]


def _send_all(association: Association, batch: Sequence[_Outgoing]) -> Iterator[SendStatus]:
    """Send one after the other; what comes after a lost association is not tried on it again."""
    accepted = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in association.accepted_contexts}
    for file in batch:
        if file.pair not in accepted:
            yield SendStatus(file.path, file.sop_instance_uid, NO_CONTEXT_STATUS, NO_CONTEXT)
            continue
        if not association.is_established:
            yield SendStatus(file.path, file.sop_instance_uid, None, "the association was lost")
            continue
        status = _send(association, file)
        if status.status is None:
            association.abort()  # pynetdicom may not have noticed, and would wait for an answer each time
        yield status


def _send(association: Association, file: _Outgoing) -> SendStatus:
    try:
        answer = association.send_c_store(file.path)
    except (RuntimeError, ValueError, OSError) as error:
        return SendStatus(file.path, file.sop_instance_uid, None, f"sending failed ({type(error).__name__})")
    if "Status" not in answer:
        return SendStatus(file.path, file.sop_instance_uid, None, "the peer did not answer")
    return SendStatus(file.path, file.sop_instance_uid, int(answer.Status), _detail(answer))


def _detail(answer: Dataset) -> str:
    words = f"0x{answer.Status:04X}"
    return f"{words} {answer.ErrorComment}" if answer.get("ErrorComment") else words


@contextmanager
def _associated(peer: Peer, ae_title: str, contexts: list[PresentationContext]) -> Iterator[Association]:
    """Hold an association with `peer`; it is released at the end.

    When the peer accepts none of the contexts, pynetdicom has ended it already.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        If there is none to be had.
    """
    ae = _our_ae(ae_title)
    association = ae.associate(
        peer.host, peer.port, contexts=contexts, ae_title=peer.ae_title, max_pdu=MAX_PDU
    )
    if association.is_rejected:
        raise AssociationRejected(f"{peer.ae_title} refused the association; is {ae_title} registered there?")
    if not association.is_established and not association.rejected_contexts:
        ae.close_socket()
        raise PeerUnreachable(f"no association with {peer.ae_title} at {peer.host}:{peer.port}")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


class _SendingAE(AE):
    """An AE that can close its socket: pynetdicom forgets that of a refused connection unclosed."""

    _opened: socket.socket | None = None

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        created = super()._create_socket(*arguments)
        self._opened = created.socket
        return created

    def close_socket(self) -> None:
        """Close it, if there is one."""
        if self._opened is not None:
            self._opened.close()


def _our_ae(ae_title: str) -> _SendingAE:
    ae = _SendingAE(ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = CONNECT_TIMEOUT_S
    ae.dimse_timeout = RESPONSE_TIMEOUT_S
    ae.network_timeout = RESPONSE_TIMEOUT_S
    return ae
