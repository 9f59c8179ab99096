"""Storage Commitment as SCU: asks a peer whether it keeps our instances, and takes its answer in.

The peer answers on the association of the request, or on one that it opens with our listener, now or later.

Source: PS3.4 J.3.2 (N-ACTION), J.3.3 (N-EVENT-REPORT).
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import build_context, evt

from dicom_node.dimse.calling import Peer, Proposal, associated, caller_of
from dicom_node.dimse.commitment import (
    PROCESSING_FAILURE,
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT,
    WELL_KNOWN_INSTANCE,
    read_references,
    write_request,
)
from dicom_node.dimse.store_scp import status
from dicom_node.errors import AssociationRejected, PeerUnreachable
from dicom_node.settings import NodeSettings
from storage.commitment_ledger import (
    CommitmentOutcome,
    CommitmentState,
    Reference,
    commitment_outcome,
    forget_request,
    record_answer,
    record_request,
)
from storage.database import Database
from storage.errors import StorageError
from storage.records import VALUE_ERRORS

__all__ = [
    "CommitmentOutcome",
    "CommitmentState",
    "Reference",
    "answer_commitment_report",
    "commitment_outcome",
    "request_commitment",
]

SUCCESS: Final = 0x0000
INVALID_ARGUMENT: Final = 0x0115
SAME_ASSOCIATION_S: Final = 1.0  # so long the association stays open for an answer on it

logger = logging.getLogger(__name__)


def request_commitment(
    peer: Peer, references: Sequence[Reference], *, settings: NodeSettings, database: Database
) -> str:
    """Ask `peer` to commit to the instances; returns the Transaction UID that its answer will carry.

    The request is in the database before it goes out.

    Raises
    ------
    PeerUnreachable, AssociationRejected, TlsUnusable
        If the peer did not take the request.
    """
    transaction_uid = str(generate_uid(prefix=None))
    with database.transaction() as tx:
        record_request(tx, transaction_uid, peer.ae_title, references)
    is_answered = threading.Event()

    def take(event: evt.Event) -> tuple[Dataset, None]:
        answer = answer_commitment_report(event, database)
        is_answered.set()
        return answer

    proposal = Proposal([build_context(STORAGE_COMMITMENT)], handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    try:
        with associated(peer, caller_of(settings), proposal) as association:
            if not association.is_established:
                raise AssociationRejected(f"{peer.ae_title} does not offer Storage Commitment")
            answer, _ = association.send_n_action(
                write_request(transaction_uid, references),
                REQUEST_COMMITMENT,
                STORAGE_COMMITMENT,
                WELL_KNOWN_INSTANCE,
            )
            _require_success(peer, answer)
            is_answered.wait(SAME_ASSOCIATION_S)
    except AssociationRejected:
        with database.transaction() as tx:
            forget_request(tx, transaction_uid)
        raise
    return transaction_uid


def answer_commitment_report(event: evt.Event, database: Database) -> tuple[Dataset, None]:
    """Record what a peer reports; handler of EVT_N_EVENT_REPORT on either kind of association."""
    is_ours = event.assoc.is_requestor
    ae_title = str((event.assoc.acceptor if is_ours else event.assoc.requestor).ae_title).strip()
    try:
        information = event.event_information
        transaction_uid = str(information.TransactionUID)
        committed = read_references(information.get("ReferencedSOPSequence") or ())
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or PROCESSING_FAILURE)
            for item in information.get("FailedSOPSequence") or ()
        }
    except VALUE_ERRORS:
        return status(INVALID_ARGUMENT, "the event information cannot be read"), None
    try:
        with database.transaction() as tx:
            uids = [reference.sop_instance_uid for reference in committed]
            is_known = record_answer(tx, transaction_uid, ae_title, uids, failed)
    except StorageError:
        return status(PROCESSING_FAILURE, "the database cannot be used now; report it again"), None
    extra = {"peer": ae_title, "committed": len(committed), "failed": len(failed), "known": is_known}
    logger.info("storage commitment reported", extra=extra)
    if not is_known:
        return status(INVALID_ARGUMENT, "this AE was not asked under this Transaction UID"), None
    return status(SUCCESS), None


def _require_success(peer: Peer, answer: Dataset) -> None:
    if "Status" not in answer:
        raise PeerUnreachable(f"{peer.ae_title} did not answer the N-ACTION")
    if answer.Status != SUCCESS:
        raise AssociationRejected(f"{peer.ae_title} answered the N-ACTION with 0x{answer.Status:04X}")
