"""Pulls studies and their priors from a peer: C-FIND, then C-MOVE to our listener, or C-GET on the spot.

Source: PS3.4 C.4.1.2 (C-FIND SCU), C.4.2.2 (C-MOVE SCU), C.4.3.2 (C-GET SCU).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, Final, cast

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import StoragePresentationContexts, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.announced import ExpectedUids
from dicom_node.audit.events import Node, Tally
from dicom_node.audit.trail import trail_of
from dicom_node.dimse.calling import Caller, Peer, Proposal, associated, caller_of
from dicom_node.dimse.matches import UTF_8
from dicom_node.dimse.query_model import STUDY_ROOT, Level
from dicom_node.dimse.store_scp import status
from dicom_node.dimse.transcode import PLAIN
from dicom_node.errors import AssociationRejected, NodeError, PeerUnreachable
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from storage.index import Origin

PENDING: Final = 0xFF00
PENDING_WARNING: Final = 0xFF01  # matches go on, though the peer does not support a key
SUCCESS: Final = 0x0000
SOME_FAILED: Final = 0xB000
MAX_STUDIES: Final = 1000  # answers to one of our queries; what comes after is not read
MAX_CLASSES: Final = 127  # one context is the C-GET's own
COMPRESSED: Final = (
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000,
    RLELossless, HTJ2KLossless,
)  # fmt: skip
"""Offered beside uncompressed; with all there are, the request would be longer than some peers take."""
REASONS: Final = {
    0xA701: "it is out of resources and cannot count the matches",
    0xA702: "it is out of resources, or could not store a single instance here",
    0xA801: "it does not know where we are: register our AE title, host and port there",
    0xA900: "it does not take such a request",
    0xFE00: "the retrieval was called off",
    0x0122: "it does not support this service",
    0x0124: "we may not do this there",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a retrieval is, as the peer counts its sub-operations."""

    status: int = PENDING
    remaining: int = 0
    completed: int = 0
    warning: int = 0
    failed: int = 0

    @property
    def is_whole(self) -> bool:
        """Every instance came, if perhaps with a warning."""
        return self.status in (SUCCESS, SOME_FAILED) and not self.failed


OnProgress = Callable[[Progress], None]


def find_studies(peer: Peer, caller: Caller, keys: Mapping[str, str]) -> list[Dataset]:
    """Ask `peer` for the studies that match `keys` (DICOM keyword -> value).

    Raises
    ------
    PeerUnreachable, AssociationRejected
        With a sentence; also when the answer is a failure.
    """
    asked = Dataset()
    asked.SpecificCharacterSet = UTF_8
    asked.QueryRetrieveLevel = str(Level.STUDY)
    for keyword, value in keys.items():
        setattr(asked, keyword, value)
    found: list[Dataset] = []
    with associated(peer, caller, Proposal([build_context(STUDY_ROOT.find)])) as association:
        _require(peer, association, "C-FIND")
        for answer, match in association.send_c_find(asked, STUDY_ROOT.find):
            code = _code(peer, answer, "C-FIND")
            if code not in (PENDING, PENDING_WARNING):
                _require_success(peer, code, "C-FIND")
            elif match is not None:
                found.append(match)
            if len(found) == MAX_STUDIES:
                association.abort()
                break
    return found


def priors_of(peer: Peer, caller: Caller, study_instance_uid: str) -> list[str]:
    """UIDs of the patient's other studies at `peer`, newest first.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        Also when the peer has no such study, or no Patient ID for it.
    """
    keys = {"StudyInstanceUID": study_instance_uid, "PatientID": ""}
    studies = find_studies(peer, caller, keys)
    patients = {str(study.get("PatientID") or "") for study in studies} - {""}
    if len(patients) != 1:
        raise AssociationRejected(f"{peer.ae_title} has no such study, or no Patient ID for it")
    wanted = {"PatientID": patients.pop(), "StudyInstanceUID": "", "StudyDate": "", "StudyTime": ""}
    others = find_studies(peer, caller, wanted)
    moment = {
        str(study.StudyInstanceUID): f"{study.get('StudyDate', '')}{study.get('StudyTime', '')}"
        for study in others
        if study.get("StudyInstanceUID")
    }
    moment.pop(study_instance_uid, None)
    return sorted(moment, key=lambda uid: moment[uid], reverse=True)


def move_study(
    peer: Peer, study_instance_uid: str, settings: NodeSettings, on_progress: OnProgress
) -> Progress:
    """Have `peer` send a study to our listener, which must be running and known there.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        With a sentence saying what to check.
    """
    with associated(peer, caller_of(settings), Proposal([build_context(STUDY_ROOT.move)])) as association:
        _require(peer, association, "C-MOVE")
        answers = association.send_c_move(
            _study(study_instance_uid), settings.dimse.ae_title, STUDY_ROOT.move
        )
        return _follow(peer, (answer for answer, _ in answers), "C-MOVE", on_progress)


def get_study(
    peer: Peer,
    study_instance_uid: str,
    settings: NodeSettings,
    receiver: Receiver,
    on_progress: OnProgress,
) -> Progress:
    """Take a study from `peer` on our own association; no listener and no registration is needed.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        With a sentence saying what to check.
    """
    classes = [str(context.abstract_syntax) for context in StoragePresentationContexts[:MAX_CLASSES]]
    syntaxes = [*PLAIN, *COMPRESSED]
    contexts = [build_context(STUDY_ROOT.get), *(build_context(uid, syntaxes) for uid in classes)]
    tally = Tally()
    handlers = [(evt.EVT_C_STORE, _take, [receiver, peer.ae_title, tally])]
    try:
        with associated(peer, caller_of(settings), Proposal(contexts, classes, handlers)) as association:
            _require(peer, association, "C-GET")
            answers = association.send_c_get(_study(study_instance_uid), STUDY_ROOT.get)
            return _follow(peer, (answer for answer, _ in answers), "C-GET", on_progress)
    finally:
        trail_of(settings).fetched(Node(peer.ae_title, peer.host), tally)


def _study(study_instance_uid: str) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = str(Level.STUDY)
    asked.StudyInstanceUID = study_instance_uid
    return asked


def _follow(peer: Peer, answers: Iterator[Dataset], service: str, on_progress: OnProgress) -> Progress:
    progress = Progress()
    for answer in answers:
        code = _code(peer, answer, service)
        progress = _progress(answer, progress)
        if code in (PENDING, PENDING_WARNING):
            if progress.remaining:
                on_progress(progress)
        elif code not in (SUCCESS, SOME_FAILED):
            _require_success(peer, code, service)
    logger.info(
        "retrieved",
        extra={"peer": peer.ae_title, "completed": progress.completed, "failed": progress.failed},
    )
    return progress


def _progress(answer: Dataset, before: Progress) -> Progress:
    def count(name: str, otherwise: int) -> int:
        value = answer.get(f"NumberOf{name}Suboperations")
        return otherwise if value is None else int(value)

    is_pending = int(answer.Status) in (PENDING, PENDING_WARNING)
    return replace(
        before,
        status=int(answer.Status),
        remaining=count("Remaining", before.remaining) if is_pending else 0,
        completed=count("Completed", before.completed),
        warning=count("Warning", before.warning),
        failed=count("Failed", before.failed),
    )


def _take(event: evt.Event, receiver: Receiver, peer_ae: str, tally: Tally) -> Dataset:
    """Receive one instance of a C-GET; handler of EVT_C_STORE."""
    request = cast("C_STORE", event.request)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(str(request.AffectedSOPClassUID))
    meta.MediaStorageSOPInstanceUID = UID(str(request.AffectedSOPInstanceUID))
    meta.TransferSyntaxUID = UID(str(event.context.transfer_syntax))
    expected = ExpectedUids(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
    data_set = cast("BinaryIO", request.DataSet)
    data_set.seek(0)
    try:
        tally.take(receiver.receive_data_set(data_set, meta, Origin("DIMSE", peer_ae), expected))
    except NodeError as error:
        logger.warning("instance refused", extra={"status": f"0x{error.dimse_status:04X}", "peer": peer_ae})
        return status(error.dimse_status, str(error))
    return status(SUCCESS)


def _require(peer: Peer, association: Association, service: str) -> None:
    uid = {"C-FIND": STUDY_ROOT.find, "C-MOVE": STUDY_ROOT.move, "C-GET": STUDY_ROOT.get}[service]
    accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
    if not association.is_established or uid not in accepted:
        raise AssociationRejected(f"{peer.ae_title} does not offer {service} (Study Root)")


def _code(peer: Peer, answer: Dataset, service: str) -> int:
    if "Status" not in answer:
        raise PeerUnreachable(f"{peer.ae_title} broke off the {service}, or did not answer in time")
    return int(answer.Status)


def _require_success(peer: Peer, code: int, service: str) -> None:
    if code != SUCCESS:
        reason = REASONS.get(code, "see its log")
        raise AssociationRejected(f"{peer.ae_title} answered the {service} with 0x{code:04X}: {reason}")
