"""Query/Retrieve information models: their SOP classes, levels and keys; reading an identifier.

Relational queries are always on: keys of higher levels may be left out. Matching is that of QIDO-RS.

Source: PS3.4 C.6 (information models), C.2.2.1 (attributes), C.4.1.2 to C.4.3.2 (identifiers).
"""

from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Final

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pynetdicom.dsutils import decode

from dicom_node.errors import BadIdentifier, UnreadableIdentifier
from storage.index import SearchQuery
from storage.records import VALUE_ERRORS

MAX_IDENTIFIER_BYTES: Final = 1024 * 1024
NOT_MATCHED: Final = frozenset({"QueryRetrieveLevel", "SpecificCharacterSet"})


class Level(StrEnum):
    """Values of Query/Retrieve Level (0008,0052)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


UNIQUE_KEYS: Final = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.IMAGE: "SOPInstanceUID",
}


@dataclass(frozen=True)
class Model:
    """One information model: its SOP classes by service, and its levels."""

    name: str
    find: str
    move: str
    get: str
    levels: tuple[Level, ...]

    @property
    def sop_classes(self) -> tuple[str, str, str]:
        """Those of C-FIND, C-MOVE and C-GET."""
        return self.find, self.move, self.get


MODELS: Final = (
    Model(
        "Patient Root",
        "1.2.840.10008.5.1.4.1.2.1.1",
        "1.2.840.10008.5.1.4.1.2.1.2",
        "1.2.840.10008.5.1.4.1.2.1.3",
        tuple(Level),
    ),
    Model(
        "Study Root",
        "1.2.840.10008.5.1.4.1.2.2.1",
        "1.2.840.10008.5.1.4.1.2.2.2",
        "1.2.840.10008.5.1.4.1.2.2.3",
        (Level.STUDY, Level.SERIES, Level.IMAGE),
    ),
    Model(
        "Patient/Study Only (retired)",
        "1.2.840.10008.5.1.4.1.2.3.1",
        "1.2.840.10008.5.1.4.1.2.3.2",
        "1.2.840.10008.5.1.4.1.2.3.3",
        (Level.PATIENT, Level.STUDY),
    ),
)
PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY = MODELS
MODEL_OF: Final = {uid: model for model in MODELS for uid in model.sop_classes}


@dataclass(frozen=True)
class Request:
    """What an identifier asks for."""

    level: Level
    filters: dict[str, str]  # DICOM keyword -> value to match; several values divided by backslash
    keys: tuple[str, ...]  # keywords to answer with, in the order of their tags
    character_set: str  # Specific Character Set of the request, "" when it has none


def read_request(encoded: BytesIO | None, syntax: str, sop_class: str) -> Request:
    """Decode and check the identifier of a C-FIND, C-MOVE or C-GET request.

    Raises
    ------
    UnreadableIdentifier
        If it is no data set, or too large.
    BadIdentifier
        If its level is none of the SOP class's.
    """
    identifier = _decoded(encoded, syntax)
    try:
        level = _level(identifier, MODEL_OF[sop_class])
        values = {_keyword(element): _text(element.value) for element in identifier if element.VR != "SQ"}
        character_set = _text(identifier.get("SpecificCharacterSet", ""))
        keys = tuple(_keyword(element) for element in identifier)
    except VALUE_ERRORS as error:
        raise UnreadableIdentifier(f"a key cannot be read ({type(error).__name__})") from error
    filters = {
        keyword: value
        for keyword, value in values.items()
        if keyword and keyword not in NOT_MATCHED and value.strip()
    }
    return Request(level, filters, tuple(key for key in keys if key), character_set)


def retrieval_query(request: Request, limit: int) -> SearchQuery:
    """Turn the identifier of a C-MOVE or C-GET into a search for instances.

    Raises
    ------
    BadIdentifier
        If the unique key of the level is missing, or holds a wildcard. Source: PS3.4 C.4.2.2.1.
    """
    unique = UNIQUE_KEYS[request.level]
    value = request.filters.get(unique, "")
    if not value or "*" in value or "?" in value:
        raise BadIdentifier(f"{request.level} level needs {unique}, without wildcards")
    if request.level is Level.PATIENT and "\\" in value:
        raise BadIdentifier("PATIENT level takes one PatientID")
    keys = {key: request.filters[key] for key in UNIQUE_KEYS.values() if key in request.filters}
    return SearchQuery(keys, limit=limit)


def _decoded(encoded: BytesIO | None, syntax: str) -> Dataset:
    if encoded is None:
        raise UnreadableIdentifier("the request has no identifier")
    if encoded.getbuffer().nbytes > MAX_IDENTIFIER_BYTES:
        raise UnreadableIdentifier("the identifier is too large")
    uid = UID(syntax)
    encoded.seek(0)
    try:
        identifier = decode(encoded, uid.is_implicit_VR, uid.is_little_endian)
        identifier.decode()
    except VALUE_ERRORS as error:
        raise UnreadableIdentifier(f"the identifier cannot be decoded ({type(error).__name__})") from error
    return identifier


def _level(identifier: Dataset, model: Model) -> Level:
    text = _text(identifier.get("QueryRetrieveLevel", "")).strip()
    if text not in model.levels:
        raise BadIdentifier(f"Query/Retrieve Level must be one of {', '.join(model.levels)}")
    return Level(text)


def _keyword(element: object) -> str:
    return keyword_for_tag(getattr(element, "tag"))  # noqa: B009 - DataElement or its raw form


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, MultiValue):
        return "\\".join(str(part) for part in value)
    return str(value)
