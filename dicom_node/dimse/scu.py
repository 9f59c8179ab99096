"""C-ECHO and C-STORE to a peer.

Each file goes out exactly as it is stored: the (SOP class, transfer syntax) pairs of the files, and no
others, are proposed. What the peer does not accept so is offered once more, uncompressed, and then goes out
as a lossless copy. An association holds at most 128 presentation contexts, so more make several.

Source: PS3.8 9.3.2.2 (presentation context ids are odd, 1 to 255), PS3.4 B.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import _config, build_context
from pynetdicom.association import Association

from dicom_node.answers import Answer, Kind, Verdict, meaning_of, of_status
from dicom_node.dimse.calling import (
    CONNECT_TIMEOUT_S,
    RESPONSE_TIMEOUT_S,
    Caller,
    Peer,
    Proposal,
    associated,
)
from dicom_node.dimse.transcode import PLAIN, Transcoder
from dicom_node.errors import AssociationRejected, NodeError, PeerError, PeerUnreachable
from dicom_node.header import MAX_META_BYTES, META_START, split_meta
from dicom_node.settings_network import TlsSettings

VERIFICATION: Final = "1.2.840.10008.1.1"
MAX_CONTEXTS: Final = 128
NO_CONTEXT_STATUS: Final = 0x0122
NO_CONTEXT: Final = "the peer does not accept this SOP class in this transfer syntax"


@dataclass(frozen=True)
class SendStatus:
    """What became of one file."""

    path: Path
    sop_instance_uid: str
    status: int | None  # DIMSE status; None when there was no answer
    detail: str
    end: Answer | None = None  # how the attempt ended, where no status says it

    @property
    def answer(self) -> Answer:
        """How the attempt ended."""
        if self.end is not None:
            return self.end
        return Answer(Kind.LOST) if self.status is None else of_status(self.status)

    @property
    def is_delivered(self) -> bool:
        """The peer has the instance."""
        return meaning_of(self.answer).verdict.is_stored

    @property
    def is_retryable(self) -> bool:
        """No answer, or one that may be another the next time."""
        return meaning_of(self.answer).verdict is Verdict.TRANSIENT


@dataclass(frozen=True)
class Outgoing:
    """A Part 10 file that is to be sent, and what has to be agreed upon for it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def pair(self) -> tuple[str, str]:
        """Abstract and transfer syntax."""
        return self.sop_class_uid, self.transfer_syntax_uid

    def ended(self, kind: Kind, detail: str, numbers: tuple[int, ...] = ()) -> SendStatus:
        """The status of a file that got no answer of its own."""
        status = NO_CONTEXT_STATUS if kind is Kind.NO_CONTEXT else None
        return SendStatus(self.path, self.sop_instance_uid, status, detail, Answer(kind, numbers))


@dataclass(frozen=True)
class Sending:
    """How to send: how long to wait for the answer to one C-STORE, where copies may be made, and our TLS."""

    response_timeout_s: float = RESPONSE_TIMEOUT_S
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    scratch: Path | None = None  # None = the system's folder for temporary files
    tls: TlsSettings = field(default_factory=TlsSettings)

    def caller(self, ae_title: str) -> Caller:
        """Us, to a peer."""
        return Caller(ae_title, self.tls, self.connect_timeout_s, self.response_timeout_s)


def send_instances(
    paths: Sequence[Path], peer: Peer, ae_title: str, sending: Sending | None = None
) -> list[SendStatus]:
    """Send Part 10 files by C-STORE; returns one status a file, in their order. A dead peer is a status."""
    _config.STORE_SEND_CHUNKED_DATASET = True  # files go out byte for byte, undecoded
    sending = sending or Sending()
    files = [outgoing(path) for path in paths]
    statuses = _send_batches(files, peer, ae_title, sending)
    refused = [file for file in files if statuses[file.path].answer.kind is Kind.NO_CONTEXT]
    if refused:
        statuses |= _send_copies(refused, peer, ae_title, sending)
    return [statuses[file.path] for file in files]


def echo(peer: Peer, caller: Caller) -> None:
    """Ask the peer for a C-ECHO.

    Raises
    ------
    PeerUnreachable, AssociationRejected, TlsUnusable
        With a sentence saying what to check.
    """
    with associated(peer, caller, Proposal([build_context(VERIFICATION)])) as association:
        if not association.is_established:
            raise AssociationRejected(f"{peer.ae_title} does not offer C-ECHO")
        answer = association.send_c_echo()
    if "Status" not in answer:
        raise PeerUnreachable(f"{peer.ae_title} did not answer the C-ECHO")
    if answer.Status != 0x0000:
        raise AssociationRejected(f"{peer.ae_title} answered the C-ECHO with 0x{answer.Status:04X}")


def outgoing(path: Path) -> Outgoing:
    """Read from the file what has to be agreed upon for it."""
    with path.open("rb") as file:
        meta, _end = split_meta(file.read(META_START + MAX_META_BYTES))
    return Outgoing(
        path,
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )


def _batches(files: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Split `files` so that each batch needs at most 128 presentation contexts."""
    batch: list[Outgoing] = []
    pairs: set[tuple[str, str]] = set()
    for file in files:
        if file.pair not in pairs and len(pairs) == MAX_CONTEXTS:
            yield batch
            batch, pairs = [], set()
        batch.append(file)
        pairs.add(file.pair)
    if batch:
        yield batch


def _send_batches(
    files: Sequence[Outgoing], peer: Peer, ae_title: str, sending: Sending
) -> dict[Path, SendStatus]:
    return {
        status.path: status
        for batch in _batches(files)
        for status in _send_batch(batch, peer, ae_title, sending)
    }


def _send_batch(batch: Sequence[Outgoing], peer: Peer, ae_title: str, sending: Sending) -> list[SendStatus]:
    pairs = sorted({file.pair for file in batch})
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    try:
        with associated(peer, sending.caller(ae_title), Proposal(contexts)) as association:
            return list(send_all(association, batch))
    except PeerError as error:
        answer = error.answer or Answer(Kind.LOST)
        return [file.ended(answer.kind, str(error), answer.numbers) for file in batch]


def _send_copies(
    refused: Sequence[Outgoing], peer: Peer, ae_title: str, sending: Sending
) -> dict[Path, SendStatus]:
    """Send lossless copies of `refused` in an uncompressed transfer syntax that the peer accepts, if any."""
    offers = sorted({(file.sop_class_uid, syntax) for file in refused for syntax in PLAIN})
    statuses: dict[Path, SendStatus] = {}
    for start in range(0, len(offers), MAX_CONTEXTS):
        some = offers[start : start + MAX_CONTEXTS]
        try:
            contexts = [build_context(*offer) for offer in some]
            with associated(peer, sending.caller(ae_title), Proposal(contexts)) as association:
                accepted = _accepted(association)
        except PeerError as error:
            return _failed(refused, error) | statuses
        taken = {sop_class: syntax for sop_class, syntax in some if (sop_class, syntax) in accepted}
        files = [file for file in refused if file.sop_class_uid in taken]
        with tempfile.TemporaryDirectory(dir=sending.scratch, prefix="copies-") as folder:
            copies, failed = _copies(files, taken, Path(folder))
            sent = _send_batches(list(copies), peer, ae_title, sending) if copies else {}
        statuses |= failed
        statuses |= {
            source.path: replace(sent[copy.path], path=source.path) for copy, source in copies.items()
        }
    return {
        file.path: statuses.get(file.path, file.ended(Kind.NO_CONTEXT, _no_context(file))) for file in refused
    }


def _copies(
    files: Sequence[Outgoing], taken: dict[str, str], folder: Path
) -> tuple[dict[Outgoing, Outgoing], dict[Path, SendStatus]]:
    copies: dict[Outgoing, Outgoing] = {}
    failed: dict[Path, SendStatus] = {}
    with Transcoder(folder) as transcoder:
        for file in files:
            syntax = taken[file.sop_class_uid]
            try:
                path = transcoder.plain_copy(file.path, syntax)
            except NodeError as error:
                failed[file.path] = file.ended(Kind.NO_CONTEXT, f"{_no_context(file)}; no copy ({error})")
                continue
            copies[replace(file, path=path, transfer_syntax_uid=syntax)] = file
    return copies, failed


def _failed(files: Sequence[Outgoing], error: PeerError) -> dict[Path, SendStatus]:
    answer = error.answer or Answer(Kind.LOST)
    return {file.path: file.ended(answer.kind, str(error), answer.numbers) for file in files}


def _accepted(association: Association) -> set[tuple[str, str]]:
    return {(str(cx.abstract_syntax), str(cx.transfer_syntax[0])) for cx in association.accepted_contexts}


def _no_context(file: Outgoing) -> str:
    name = UID(file.sop_class_uid).name
    words = file.sop_class_uid if name == file.sop_class_uid else f"{name} ({file.sop_class_uid})"
    return f"{NO_CONTEXT}: {words}"


def send_all(
    association: Association, files: Sequence[Outgoing], *, originator: tuple[str, int] | None = None
) -> Iterator[SendStatus]:
    """Send one after the other; what comes after a lost association is not tried on it again.

    `originator` are AE title and message id of the C-MOVE that asked for it.
    """
    accepted = _accepted(association)
    for file in files:
        if file.pair not in accepted:
            yield file.ended(Kind.NO_CONTEXT, _no_context(file))
            continue
        if not association.is_established:
            yield file.ended(Kind.LOST, "the association was lost")
            continue
        status = _send(association, file, originator)
        if status.status is None:
            association.abort()  # pynetdicom may not have noticed, and would wait for an answer each time
        yield status


def _send(association: Association, file: Outgoing, originator: tuple[str, int] | None) -> SendStatus:
    title, message = originator or (None, None)
    started = time.monotonic()
    try:
        answer = association.send_c_store(file.path, originator_aet=title, originator_id=message)
    except (RuntimeError, ValueError, OSError) as error:
        return file.ended(Kind.LOST, f"sending failed ({type(error).__name__})")
    if "Status" in answer:
        return SendStatus(file.path, file.sop_instance_uid, int(answer.Status), _detail(answer))
    waited_s = time.monotonic() - started
    if waited_s >= (association.dimse_timeout or 0.0):
        return file.ended(Kind.RESPONSE_TIMEOUT, f"the peer did not answer within {waited_s:.0f} s")
    if association.is_aborted:
        return file.ended(Kind.ABORTED, "the peer aborted the association")
    return file.ended(Kind.LOST, "the connection broke")


def _detail(answer: Dataset) -> str:
    words = f"0x{answer.Status:04X}"
    return f"{words} {answer.ErrorComment}" if answer.get("ErrorComment") else words
