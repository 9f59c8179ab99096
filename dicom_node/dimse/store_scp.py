"""The C-STORE handler: translates a request into a call of the one door, and its answer into a status.

Source: PS3.4 B.2.3 (statuses), PS3.7 9.1.1.
"""

import logging
from typing import BinaryIO, Final, cast

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicom_node.errors import NodeError, Unparseable
from dicom_node.receive import ExpectedUids, Receiver
from storage.index import Origin

MAX_COMMENT_CHARACTERS: Final = 64  # Source: PS3.7 Annex C: Error Comment (0000,0902) is LO
SUCCESS: Final = 0x0000

logger = logging.getLogger(__name__)


def answer_store(event: Event, receiver: Receiver) -> Dataset:
    """Receive the instance of a C-STORE request; returns the status to answer with."""
    try:
        _receive(event, receiver)
    except NodeError as error:
        logger.warning(
            "instance refused",
            extra={"status": f"0x{error.dimse_status:04X}", "reason": str(error), "peer": _calling_ae(event)},
        )
        return status(error.dimse_status, str(error))
    return status(SUCCESS)


def status(code: int, comment: str = "") -> Dataset:
    """Build the status of a response, with a comment where there is something to say."""
    answer = Dataset()
    answer.Status = code
    if comment:
        answer.ErrorComment = comment[:MAX_COMMENT_CHARACTERS]
    return answer


def _receive(event: Event, receiver: Receiver) -> None:
    request = cast("C_STORE", event.request)
    if request.DataSet is None:
        raise Unparseable("the C-STORE request has no data set")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(str(request.AffectedSOPClassUID))
    meta.MediaStorageSOPInstanceUID = UID(str(request.AffectedSOPInstanceUID))
    meta.TransferSyntaxUID = UID(str(event.context.transfer_syntax))
    expected = ExpectedUids(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
    data_set = cast("BinaryIO", request.DataSet)
    data_set.seek(0)
    receiver.receive_data_set(data_set, meta, Origin("DIMSE", _calling_ae(event)), expected)


def _calling_ae(event: Event) -> str:
    return str(event.assoc.requestor.ae_title).strip()
