"""2 INDEX, of derived objects. Reads which instances they name; who may change whose study it is.

Source: PS3.3 C.17.2 (Current Requested Procedure Evidence), C.17.6 (Key Object document title).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from storage.notes import KEY_OBJECT_SELECTION, REJECTION_CODES, DerivedNote, Named
from storage.records import VALUE_ERRORS, InstanceRecord

MAX_NAMED: Final = 50_000  # instances that one object may name
MAX_UID_CHARACTERS: Final = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdentityRules:
    """What of the received objects is followed."""

    follows_rejection_notes: bool = True
    corrections_from: frozenset[str] = frozenset()  # AE titles

    def completed(self, record: InstanceRecord, open_file: Callable[[], BinaryIO]) -> InstanceRecord:
        """Add to `record` what it says of others, and whether its sender may correct.

        The file has been walked within limits before; only derived objects are opened again.
        """
        if self.corrections_from and record.origin.kind == "DIMSE":
            record = replace(record, may_correct=record.origin.detail in self.corrections_from)
        if not record.is_derived or record.is_own_result:
            return record
        with open_file() as file:
            note = note_of(file, record)
        if note is not None and note.rejection_code is not None and not self.follows_rejection_notes:
            note = None
        return replace(record, note=note)


def note_of(file: BinaryIO, record: InstanceRecord) -> DerivedNote | None:
    """Read which instances a derived object names; None when it names none or cannot be read."""
    try:
        dataset = dcmread(file, stop_before_pixels=True, force=True)
        code = _rejection_code(dataset) if record.sop_class_uid == KEY_OBJECT_SELECTION else None
        names = _evidence(dataset) if code is not None else _references(dataset)
        named = tuple(dict.fromkeys(_bounded(names)))
    except (*VALUE_ERRORS, InvalidDicomError) as error:
        extra = {"sop_instance_uid": record.sop_instance_uid, "reason": type(error).__name__}
        logger.warning("a derived object cannot be followed", extra=extra)
        return None
    return DerivedNote(named, code) if named else None


@dataclass(frozen=True)
class ResultNote:
    """What a result of ours says of others: which results it replaced, and what it was made from."""

    predecessors: tuple[str, ...]
    inputs: tuple[str, ...]


def result_note_of(file: BinaryIO) -> ResultNote | None:
    """Read what a result of ours says of others; None when it cannot be read.

    Source: PS3.3 C.17.2 (Predecessor Documents Sequence).
    """
    try:
        dataset = dcmread(file, stop_before_pixels=True, force=True)
        before = Dataset()
        if "PredecessorDocumentsSequence" in dataset:
            before.PredecessorDocumentsSequence = dataset.PredecessorDocumentsSequence
            del dataset.PredecessorDocumentsSequence
        found = [tuple(dict.fromkeys(_bounded(_references(each)))) for each in (before, dataset)]
    except (*VALUE_ERRORS, InvalidDicomError):
        return None
    predecessors, inputs = (tuple(named.sop_instance_uid for named in names) for names in found)
    return ResultNote(predecessors, inputs)


def _rejection_code(dataset: Dataset) -> str | None:
    """The code of the document title, if it is that of a rejection note. Source: PS3.16 CID 7011."""
    for title in dataset.get("ConceptNameCodeSequence") or ():
        code, scheme = str(title.get("CodeValue", "")), str(title.get("CodingSchemeDesignator", ""))
        if code in REJECTION_CODES and scheme == "DCM":
            return code
    return None


def _evidence(dataset: Dataset) -> Iterator[Named]:
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or ():
        for series in study.get("ReferencedSeriesSequence") or ():
            for item in series.get("ReferencedSOPSequence") or ():
                yield Named(str(study.StudyInstanceUID), str(item.ReferencedSOPInstanceUID))


def _references(dataset: Dataset) -> Iterator[Named]:
    """Every instance that is named anywhere in the object."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _references(item)
        elif element.keyword == "ReferencedSOPInstanceUID" and element.value:
            yield Named("", str(element.value))


def _bounded(names: Iterator[Named]) -> Iterator[Named]:
    for count, named in enumerate(names):
        if count >= MAX_NAMED:
            return
        if len(named.sop_instance_uid) <= MAX_UID_CHARACTERS and len(named.study_instance_uid) <= 64:
            yield named
