"""The C-FIND handler: one search for QIDO-RS and C-FIND, answered match by match.

Source: PS3.4 C.4.1 (C-FIND), statuses of C.4.1.1.4.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import cast

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.events import Event

from dicom_node.audit.dimse import caller, find_asked
from dicom_node.dimse.matches import Match, render
from dicom_node.dimse.query_model import Level, Request, read_request
from dicom_node.dimse.rights import require_right
from dicom_node.dimse.store_scp import status
from dicom_node.errors import BadIdentifier, IndexUnavailable, NodeError, TooManyMatches
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Right
from storage.database import Database, Transaction
from storage.errors import SearchRefused, StorageError
from storage.index import SearchQuery, search_instances, search_series, search_studies
from storage.patients import search_patients

PENDING, CANCELED = 0xFF00, 0xFE00

logger = logging.getLogger(__name__)


def answer_find(
    event: Event, settings: NodeSettings, database: Database
) -> Iterator[tuple[Dataset | int, Dataset | None]]:
    """Yield (status, identifier) for every match, and a failure where there is one to tell."""
    asker = caller(event.assoc)
    try:
        require_right(settings, asker, Right.QUERY)
        request = _request(event)
        find_asked(event, settings)
        matches = _search(database, _query(event, request, settings.dimse.max_matches), request.level)
    except NodeError as error:
        logger.warning(
            "query refused", extra={"status": f"0x{error.dimse_status:04X}", "peer": asker.ae_title}
        )
        yield status(error.dimse_status, str(error)), None
        return
    for match in matches[: settings.dimse.max_matches]:
        if event.is_cancelled:
            yield CANCELED, None
            return
        yield PENDING, render(match, request, settings.dimse.ae_title)
    if len(matches) > settings.dimse.max_matches:
        refusal = f"more than {settings.dimse.max_matches} matches; ask for less"
        yield status(TooManyMatches.dimse_status, refusal), None


def negotiated_options(event: Event) -> bytes:
    """What the requestor asked of the SOP class in its extended negotiation.

    Five bytes: relational, combined date and time, fuzzy, timezone, enhanced. Source: PS3.4 C.5.1.1.
    """
    asked = event.assoc.requestor.sop_class_extended
    sop_class = UID(str(cast("C_FIND", event.request).AffectedSOPClassUID))
    return bytes(asked.get(sop_class, b"")).ljust(5, b"\0")


def _request(event: Event) -> Request:
    primitive = cast("C_FIND", event.request)
    return read_request(
        primitive.Identifier, str(event.context.transfer_syntax), str(primitive.AffectedSOPClassUID)
    )


def _query(event: Event, request: Request, max_matches: int) -> SearchQuery:
    options = negotiated_options(event)
    return SearchQuery(
        request.filters,
        fuzzy=options[2] == 1,
        limit=max_matches + 1,
        is_datetime_combined=options[1] == 1,
    )


def _search(database: Database, query: SearchQuery, level: Level) -> Sequence[Match]:
    try:
        with database.reading() as tx:
            return _search_level(tx, query, level)
    except SearchRefused as error:
        raise BadIdentifier(str(error)) from error
    except StorageError as error:
        raise IndexUnavailable("the database cannot be used now") from error


def _search_level(tx: Transaction, query: SearchQuery, level: Level) -> Sequence[Match]:
    match level:
        case Level.PATIENT:
            return search_patients(tx, query)
        case Level.STUDY:
            return search_studies(tx, query)
        case Level.SERIES:
            return search_series(tx, query)
        case Level.IMAGE:
            return search_instances(tx, query)
