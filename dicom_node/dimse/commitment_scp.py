"""Storage Commitment as SCP: checks that instances are here as they were received, and reports it, durably.

An instance is committed when its file still has the digest that it was stored with. The report is owed from
the moment that the N-ACTION is answered: it is in the database, and tried again until it arrives. It goes out
on a new association with the configured peer; to an AE that is no peer, on the association of its request.

Source: PS3.4 J.3.2 and J.3.3, Table J.3-3 (failure reasons); PS3.7 10.1.4 (N-ACTION statuses).
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, cast

from pydicom import Dataset
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION

from dicom_node.audit.dimse import caller
from dicom_node.backoff import backoff_s
from dicom_node.dimse.calling import Proposal, associated, caller_of
from dicom_node.dimse.commitment import (
    ALL_COMMITTED,
    CLASS_CONFLICT,
    DUPLICATE_TRANSACTION,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    REQUEST_COMMITMENT,
    SOME_FAILED,
    STORAGE_COMMITMENT,
    WELL_KNOWN_INSTANCE,
    read_references,
    write_report,
)
from dicom_node.dimse.rights import peer_of, require_right
from dicom_node.dimse.store_scp import status
from dicom_node.errors import NotAuthorised, PeerError
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Right
from dicom_node.steady import steadily
from storage.commitment_ledger import (
    ClaimedReport,
    Reference,
    ReportState,
    claim_report,
    due_reports,
    extend_report,
    finish_report,
    queue_report,
    retry_report_later,
)
from storage.database import Database
from storage.errors import InstanceMissing, StorageError
from storage.files import FileStore
from storage.index import find_instance
from storage.records import VALUE_ERRORS
from storage.soundness import digest_of

SUCCESS: Final = 0x0000
NO_SUCH_ACTION: Final = 0x0123
INVALID_ARGUMENT: Final = 0x0115
MAX_REFERENCES: Final = 50_000
POLL_S: Final = 2.0
LEASE_S: Final = 120.0

logger = logging.getLogger(__name__)


def answer_commitment_request(
    event: evt.Event, settings: NodeSettings, database: Database, reporter: "CommitmentReporter"
) -> tuple[Dataset, None]:
    """Take a request in, and owe its report; handler of EVT_N_ACTION."""
    requestor = caller(event.assoc)
    try:
        require_right(settings, requestor, Right.COMMIT)
        transaction_uid, references = _read(event)
        with database.transaction() as tx:
            queue_report(tx, transaction_uid, requestor.ae_title, references)
    except NotAuthorised as refusal:
        return status(refusal.dimse_status, str(refusal)), None
    except _Refused as refusal:
        return status(refusal.code, str(refusal)), None
    except StorageError:
        return status(PROCESSING_FAILURE, "the database cannot be used now; ask again"), None
    reporter.expect(transaction_uid, event.assoc)
    return status(SUCCESS), None


def failure_reason(reference: Reference, database: Database, files: FileStore) -> int | None:
    """Why the instance is not committed; None when it is here, bit by bit as it was stored."""
    try:
        with database.reading() as tx:
            row = find_instance(tx, reference.sop_instance_uid)
        if row is None:
            return NO_SUCH_INSTANCE
        if row.sop_class_uid != reference.sop_class_uid:
            return CLASS_CONFLICT
        is_sound = digest_of(files, row.path) == row.sha256
    except InstanceMissing:
        return NO_SUCH_INSTANCE
    except (OSError, StorageError):
        return PROCESSING_FAILURE
    return None if is_sound else PROCESSING_FAILURE


class CommitmentReporter:
    """Sends the reports that are owed, from a thread of its own; several processes may have one."""

    def __init__(self, settings: NodeSettings, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._database = database
        self._files = files
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._open: dict[str, Association] = {}
        self._is_waking = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitment-reports", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the report at hand."""
        self._is_stopping.set()
        self._is_waking.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look for reports now."""
        self._is_waking.set()

    def expect(self, transaction_uid: str, association: Association) -> None:
        """Remember the association of a request, in case the report has to go out on it."""
        self._open = {uid: known for uid, known in self._open.items() if known.is_established}
        self._open[transaction_uid] = association

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._is_waking.wait(POLL_S)
            self._is_waking.clear()
            steadily(self._report_all, otherwise=None, what="a pass over the commitment reports")

    def _report_all(self) -> None:
        with self._database.reading() as tx:
            due = due_reports(tx)
        for report_id in due:
            if self._is_stopping.is_set():
                return
            with self._database.transaction() as tx:
                claimed = claim_report(tx, report_id, self._worker, LEASE_S)
            if claimed is not None:
                report = partial(self._report, claimed)
                steadily(report, otherwise=None, what="a commitment report", peer=claimed.ae_title)

    def _report(self, claimed: ClaimedReport) -> None:
        failed = self._failed(claimed)
        if failed is None:
            return
        information = write_report(claimed.transaction_uid, claimed.references, failed)
        answer = self._send(claimed, information, SOME_FAILED if failed else ALL_COMMITTED)
        settings = self._settings.delivery
        with self._database.transaction() as tx:
            if answer == "":
                finish_report(tx, claimed, ReportState.REPORTED, f"0x{SUCCESS:04X}")
            elif claimed.age_s > settings.max_age_s:
                finish_report(tx, claimed, ReportState.FAILED, answer)
            else:
                delay_s = backoff_s(claimed.attempt, settings.first_retry_s, settings.max_retry_s)
                retry_report_later(tx, claimed, answer, delay_s)
        logger.log(
            logging.WARNING if answer else logging.INFO,
            "storage commitment report",
            extra={
                "peer": claimed.ae_title,
                "instances": len(claimed.references),
                "failed": len(failed),
                "attempt": claimed.attempt,
                "reason": answer,
            },
        )

    def _failed(self, claimed: ClaimedReport) -> Mapping[Reference, int] | None:
        """Check every instance; None when the lease was lost on the way."""
        if claimed.is_duplicate:
            return dict.fromkeys(claimed.references, DUPLICATE_TRANSACTION)
        failed: dict[Reference, int] = {}
        extended_at = time.monotonic()
        for reference in claimed.references:
            if time.monotonic() - extended_at > LEASE_S / 4:
                extended_at = time.monotonic()
                with self._database.transaction() as tx:
                    if not extend_report(tx, claimed, LEASE_S):
                        return None
            reason = failure_reason(reference, self._database, self._files)
            if reason is not None:
                failed[reference] = reason
        return failed

    def _send(self, claimed: ClaimedReport, information: Dataset, event_type: int) -> str:
        """Send the report; returns "" when it arrived, otherwise why it did not."""
        peer = peer_of(self._settings, claimed.ae_title)
        if peer is None:
            association = self._open.get(claimed.transaction_uid)
            if association is None or not association.is_established:
                return "the AE is not among the peers, and its association is closed"
            return _report_on(association, information, event_type)
        context = build_context(STORAGE_COMMITMENT)
        proposal = Proposal([context], scp_of=(STORAGE_COMMITMENT,))
        try:
            with associated(peer, caller_of(self._settings), proposal) as association:
                return _report_on(association, information, event_type)
        except PeerError as error:
            return str(error)


def waker(reporter: CommitmentReporter) -> Callable[[evt.Event], None]:
    """Make the handler of EVT_DIMSE_SENT that wakes the reporter once an N-ACTION is answered."""

    def wake(event: evt.Event) -> None:
        if type(event.message).__name__ == "N_ACTION_RSP":
            reporter.wake()

    return wake


class _Refused(Exception):
    """An N-ACTION that is not taken."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _read(event: evt.Event) -> tuple[str, list[Reference]]:
    request = cast("N_ACTION", event.request)
    if request.RequestedSOPInstanceUID != WELL_KNOWN_INSTANCE:
        raise _Refused(NO_SUCH_INSTANCE, "not the well-known SOP Instance of Storage Commitment")
    if request.ActionTypeID != REQUEST_COMMITMENT:
        raise _Refused(NO_SUCH_ACTION, "the only action is 1, request storage commitment")
    try:
        information = event.action_information
        transaction_uid = str(information.TransactionUID)
        references = read_references(information.ReferencedSOPSequence)
    except VALUE_ERRORS as error:
        raise _Refused(INVALID_ARGUMENT, "the action information cannot be read") from error
    if not 0 < len(transaction_uid) <= 64 or not references or len(references) > MAX_REFERENCES:
        raise _Refused(INVALID_ARGUMENT, f"it needs a Transaction UID and 1 to {MAX_REFERENCES} references")
    return transaction_uid, references


def _report_on(association: Association, information: Dataset, event_type: int) -> str:
    if not association.is_established:
        return "the peer does not take Storage Commitment reports"
    try:
        answer, _ = association.send_n_event_report(
            information, event_type, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE
        )
    except (RuntimeError, ValueError) as error:
        return f"the report could not be sent ({type(error).__name__})"
    if "Status" not in answer:
        return "no answer to the report"
    return "" if answer.Status == SUCCESS else f"0x{answer.Status:04X}"
