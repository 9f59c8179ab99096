"""Words that both sides of Storage Commitment share: UIDs, statuses, reading and writing its data sets.

Source: PS3.4 J.3 (Storage Commitment Push Model), PS3.3 C.14 (Storage Commitment Module).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pydicom import Dataset

from storage.commitment_ledger import Reference
from storage.records import VALUE_ERRORS

STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
WELL_KNOWN_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT: Final = 1  # Action Type ID
ALL_COMMITTED: Final = 1  # Event Type ID
SOME_FAILED: Final = 2  # Event Type ID

PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
DUPLICATE_TRANSACTION: Final = 0x0131
FAILURE_REASONS: Final = {
    PROCESSING_FAILURE: "the file is not what was received, or cannot be read",
    NO_SUCH_INSTANCE: "the instance, or its file, is not here",
    CLASS_CONFLICT: "the instance is of another SOP class",
    DUPLICATE_TRANSACTION: "the Transaction UID is in use for other instances",
}


def read_references(sequence: Iterable[Dataset]) -> list[Reference]:
    """Read Referenced SOP Class and Instance UID of each item.

    Raises
    ------
    ValueError
        If an item lacks one, or it is no UID.
    """
    references = []
    for item in sequence:
        try:
            pair = str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)
        except VALUE_ERRORS as error:
            raise ValueError("an item has no Referenced SOP Class or Instance UID") from error
        if not all(0 < len(uid) <= 64 and uid.replace(".", "").isdecimal() for uid in pair):
            raise ValueError("a referenced UID is not legal")
        references.append(Reference(*pair))
    return references


def write_request(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Build the Action Information of an N-ACTION."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_item(reference) for reference in references]
    return information


def write_report(
    transaction_uid: str, references: Sequence[Reference], failed: Mapping[Reference, int]
) -> Dataset:
    """Build the Event Information of an N-EVENT-REPORT. Source: PS3.4 Table J.3-2."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    committed = [_item(reference) for reference in references if reference not in failed]
    if committed:
        information.ReferencedSOPSequence = committed
    if failed:
        information.FailedSOPSequence = [_item(reference, reason) for reference, reason in failed.items()]
    return information


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item
