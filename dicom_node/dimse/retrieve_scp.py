"""C-MOVE and C-GET: instances go out byte for byte as stored, converted only where the peer needs it.

pynetdicom's own handlers would decode and encode every data set again; so the exchange is spoken here, on
its association. C-MOVE calls configured peers only.

Source: PS3.4 C.4.2 (C-MOVE), C.4.3 (C-GET): statuses, counts, Failed SOP Instance UID List.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Final

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext

from dicom_node.audit.dimse import caller, retrieval_began
from dicom_node.dimse.dimse_command import MAX_COMMENT_CHARACTERS
from dicom_node.dimse.query_model import read_request, retrieval_query
from dicom_node.dimse.rights import peer_of, require_right
from dicom_node.dimse.suboperations import Outcome, Suboperations
from dicom_node.errors import BadIdentifier, DestinationUnknown, IndexUnavailable, NodeError
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Right
from storage.database import Database
from storage.errors import SearchRefused, StorageError
from storage.files import FileStore
from storage.index import search_instances
from storage.search import InstanceMatch
from storage.tables import Instance

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
CANCELED: Final = 0xFE00
SOME_FAILED: Final = 0xB000
ALL_FAILED: Final = 0xA702
PAGE: Final = 5000
MAX_SUBOPERATIONS: Final = 65535  # counts are US
LONGEST_LIST: Final = 60000  # characters of the Failed SOP Instance UID List; explicit VR UI holds 65534

logger = logging.getLogger(__name__)
RetrieveRequest = C_MOVE | C_GET


@dataclass
class Counts:
    """How far the sub-operations are."""

    remaining: int
    completed: int = 0
    warning: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one finished sub-operation."""
        self.remaining -= 1
        if outcome.status == SUCCESS:
            self.completed += 1
        elif outcome.status is not None and outcome.status >> 12 == 0xB:
            self.warning += 1
        else:
            self.failed += 1
            self.failed_uids.append(outcome.sop_instance_uid)

    @property
    def final_status(self) -> int:
        """The status of the last response."""
        if not self.failed and not self.warning:
            return SUCCESS
        return SOME_FAILED if self.completed or self.warning else ALL_FAILED


class Retrieval:
    """Answers C-MOVE and C-GET requests of one process."""

    def __init__(self, settings: NodeSettings, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._database = database
        self._files = files

    def serve(self, association: Association, request: RetrieveRequest, context: PresentationContext) -> None:
        """Carry out one request: pending responses after each sub-operation, then the final one."""
        exchange = _Exchange(association, request, context)
        try:
            instances = self._instances(association, request, exchange.syntax)
            suboperations = self._suboperations(association, request)
        except NodeError as error:
            code = f"0x{error.dimse_status:04X}"
            logger.warning("retrieval refused", extra={"status": code, "peer": caller(association).ae_title})
            exchange.answer(error.dimse_status, comment=str(error))
            return
        counts = Counts(len(instances))
        tell_end = retrieval_began(self._settings, association, request, instances)
        with suboperations:
            is_canceled = _carry_out(exchange, suboperations.send(instances), counts)
        tell_end(counts.failed_uids, counts.remaining)
        exchange.answer(CANCELED if is_canceled else counts.final_status, counts)

    def _suboperations(self, association: Association, request: RetrieveRequest) -> Suboperations:
        if isinstance(request, C_GET):
            return Suboperations(self._settings, self._files, association=association)
        destination = peer_of(self._settings, str(request.MoveDestination))
        if destination is None:
            raise DestinationUnknown("the move destination is not among the peers")
        originator = (caller(association).ae_title, int(request.MessageID or 1))
        return Suboperations(self._settings, self._files, peer=destination, originator=originator)

    def _instances(
        self, association: Association, request: RetrieveRequest, syntax: str
    ) -> Sequence[Instance]:
        require_right(self._settings, caller(association), Right.RETRIEVE)
        asked = read_request(request.Identifier, syntax, str(request.AffectedSOPClassUID))
        query = retrieval_query(asked, PAGE)
        found: list[InstanceMatch] = []
        try:
            with self._database.reading() as tx:
                while len(page := search_instances(tx, replace(query, offset=len(found)))) == PAGE:
                    found += page
                found += page
        except SearchRefused as error:
            raise BadIdentifier(str(error)) from error
        except StorageError as error:
            raise IndexUnavailable("the database cannot be used now") from error
        if len(found) > MAX_SUBOPERATIONS:
            raise BadIdentifier(f"{len(found)} instances; at most {MAX_SUBOPERATIONS} go in one request")
        return [match.instance for match in found]


class _Exchange:
    """The responses to one request."""

    def __init__(
        self, association: Association, request: RetrieveRequest, context: PresentationContext
    ) -> None:
        self._association = association
        self._request = request
        self._context_id = int(context.context_id or 0)
        self.syntax = str(context.transfer_syntax[0])

    @property
    def is_canceled(self) -> bool:
        """Whether the peer sent a C-CANCEL for this request."""
        return self._request.MessageID in self._association.dimse.cancel_req

    @property
    def is_over(self) -> bool:
        """Whether the association is gone."""
        association = self._association  # whose own loop, which would notice, is held up by us
        return (
            not association.is_established or association.acse.is_aborted() or not association.dul.is_alive()
        )

    def answer(self, status: int, counts: Counts | None = None, comment: str = "") -> None:
        """Send one response."""
        response = type(self._request)()
        response.MessageIDBeingRespondedTo = self._request.MessageID
        response.AffectedSOPClassUID = self._request.AffectedSOPClassUID
        response.Status = status
        if comment:
            response.ErrorComment = comment[:MAX_COMMENT_CHARACTERS]  # type: ignore[assignment]
        if counts is not None:
            self._count(response, counts)
        if not self.is_over:
            self._association.dimse.send_msg(response, self._context_id)

    def _count(self, response: RetrieveRequest, counts: Counts) -> None:
        response.NumberOfCompletedSuboperations = counts.completed
        response.NumberOfFailedSuboperations = counts.failed
        response.NumberOfWarningSuboperations = counts.warning
        if response.Status in (PENDING, CANCELED):
            response.NumberOfRemainingSuboperations = counts.remaining
        if response.Status in (SOME_FAILED, ALL_FAILED, CANCELED):
            response.Identifier = self._failed_list(counts.failed_uids)

    def _failed_list(self, uids: Sequence[str]) -> BytesIO:
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = list(_fitting(uids))
        syntax = UID(self.syntax)
        return BytesIO(encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian) or b"")


def _fitting(uids: Sequence[str]) -> Iterator[str]:
    """As many UIDs as an element with a 16-bit length holds."""
    length = 0
    for uid in uids:
        length += len(uid) + 1
        if length > LONGEST_LIST:
            return
        yield uid


def _carry_out(exchange: _Exchange, outcomes: Iterator[Outcome], counts: Counts) -> bool:
    """Tell each outcome to the peer; returns whether the peer called the rest off."""
    while counts.remaining:
        if exchange.is_canceled:
            return True
        if exchange.is_over:
            return False
        counts.add(next(outcomes))
        if counts.remaining:
            exchange.answer(PENDING, counts)
    return False
