"""From a data set to the attributes that the index keeps: stripped, bounded, bad values empty."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from storage.errors import InstanceUnidentified
from storage.notes import DerivedNote, is_derived
from storage.part10 import StoredFile
from storage.text import clean_text

# What pydicom raises over values that do not fit their VR: wrong length, unknown charset, not a number ...
VALUE_ERRORS: Final = (
    ValueError, TypeError, LookupError, AttributeError, RecursionError, NotImplementedError, OverflowError,
    EOFError, struct.error, BytesLengthException,
)  # fmt: skip
Attributes = Dataset | Mapping[str, str]  # asked for the same keywords
_STUDY_KEYWORDS: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "StudyDescription", "StudyID", "ReferringPhysicianName",
)  # fmt: skip
_SERIES_KEYWORDS: Final = (
    "Modality", "SeriesNumber", "SeriesDescription", "BodyPartExamined", "SeriesDate", "SeriesTime",
    "Laterality", "ImageLaterality",
)  # fmt: skip
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_DATE = re.compile(r"\d{8}", re.ASCII)
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", re.ASCII)
_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True)
class Origin:
    """How an instance reached us: kind "DIMSE", "STOW-RS", "OWN RESULT" or "IMPORT", and by whom."""

    kind: str
    detail: str


@dataclass(frozen=True)
class StudyAttributes:
    """What the index keeps of the patient and study level; "" where the data set says nothing."""

    patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    study_date: str
    study_time: str
    accession_number: str
    study_description: str
    study_id: str
    referring_physician_name: str


@dataclass(frozen=True)
class SeriesAttributes:
    """What the index keeps of the series level."""

    modality: str
    series_number: int | None
    series_description: str
    body_part_examined: str
    series_date: str
    series_time: str
    laterality: str


@dataclass(frozen=True)
class ImageAttributes:
    """What the index keeps of the instance level, beside its UIDs."""

    instance_number: int | None
    rows: int | None
    columns: int | None
    number_of_frames: int | None


@dataclass(frozen=True)
class InstanceRecord:
    """One instance, ready for the index: UIDs, attributes by level, its file and its origin."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study: StudyAttributes
    series: SeriesAttributes
    image: ImageAttributes
    stored: StoredFile
    origin: Origin
    is_own_result: bool = False
    note: DerivedNote | None = None  # what a derived object says of others
    may_correct: bool = False  # its sender may change whose study it is

    @property
    def is_derived(self) -> bool:
        """Whether it was made from images: such an object asks for no analysis."""
        return is_derived(self.sop_class_uid, self.series.modality)


def record_from_dataset(
    ds: Attributes, stored: StoredFile, origin: Origin, is_own_result: bool = False
) -> InstanceRecord:
    """Read what the index keeps from `ds`, which may have been read without its pixels.

    Raises
    ------
    InstanceUnidentified
        If one of the Study, Series, SOP Instance or SOP Class UIDs is absent or illegal.
    """
    file_meta = getattr(ds, "file_meta", None) or Dataset()
    return InstanceRecord(
        sop_instance_uid=_uid(ds, "SOPInstanceUID"),
        series_instance_uid=_uid(ds, "SeriesInstanceUID"),
        study_instance_uid=_uid(ds, "StudyInstanceUID"),
        sop_class_uid=_uid(ds, "SOPClassUID"),
        transfer_syntax_uid=_text(file_meta, "TransferSyntaxUID", 64),
        study=_study_attributes(ds),
        series=_series_attributes(ds),
        image=ImageAttributes(
            instance_number=_integer(ds, "InstanceNumber"),
            rows=_integer(ds, "Rows"),
            columns=_integer(ds, "Columns"),
            number_of_frames=_integer(ds, "NumberOfFrames"),
        ),
        stored=stored,
        origin=Origin(origin.kind[:16], clean_text(origin.detail, 256)),
        is_own_result=is_own_result,
    )


def _study_attributes(ds: Attributes) -> StudyAttributes:
    if isinstance(ds, dict):
        return _study_of_texts(tuple(map(ds.get, _STUDY_KEYWORDS)))
    return _read_study(ds)


@lru_cache(maxsize=64)  # images of one study come one after the other
def _study_of_texts(texts: tuple[str | None, ...]) -> StudyAttributes:
    return _read_study(_present(_STUDY_KEYWORDS, texts))


@lru_cache(maxsize=64)
def _series_of_texts(texts: tuple[str | None, ...]) -> SeriesAttributes:
    return _read_series(_present(_SERIES_KEYWORDS, texts))


def _present(keywords: tuple[str, ...], texts: tuple[str | None, ...]) -> dict[str, str]:
    return {keyword: text for keyword, text in zip(keywords, texts, strict=True) if text is not None}


def _read_study(ds: Attributes) -> StudyAttributes:
    return StudyAttributes(
        patient_id=_text(ds, "PatientID", 64),
        patient_name=_text(ds, "PatientName", 200),
        patient_birth_date=_date(ds, "PatientBirthDate"),
        patient_sex=_text(ds, "PatientSex", 16),
        study_date=_date(ds, "StudyDate"),
        study_time=_time(ds, "StudyTime"),
        accession_number=_text(ds, "AccessionNumber", 64),
        study_description=_text(ds, "StudyDescription", 256),
        study_id=_text(ds, "StudyID", 64),
        referring_physician_name=_text(ds, "ReferringPhysicianName", 200),
    )


def _series_attributes(ds: Attributes) -> SeriesAttributes:
    if isinstance(ds, dict):
        return _series_of_texts(tuple(map(ds.get, _SERIES_KEYWORDS)))
    return _read_series(ds)


def _read_series(ds: Attributes) -> SeriesAttributes:
    return SeriesAttributes(
        modality=_text(ds, "Modality", 16),
        series_number=_integer(ds, "SeriesNumber"),
        series_description=_text(ds, "SeriesDescription", 256),
        body_part_examined=_text(ds, "BodyPartExamined", 64),
        series_date=_date(ds, "SeriesDate"),
        series_time=_time(ds, "SeriesTime"),
        laterality=_text(ds, "Laterality", 16) or _text(ds, "ImageLaterality", 16),
    )


def _value(ds: Attributes, keyword: str) -> Any:
    try:
        return ds.get(keyword)
    except VALUE_ERRORS:
        return None


def _text(ds: Attributes, keyword: str, length: int) -> str:
    value = _value(ds, keyword)
    if value is None:
        return ""
    if isinstance(value, str):
        return clean_text(value, length)
    try:
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    except VALUE_ERRORS:  # person names are decoded as late as this
        return ""
    return clean_text(text, length)


def _uid(ds: Attributes, keyword: str) -> str:
    uid = _text(ds, keyword, 65)
    if len(uid) > 64 or _UID.fullmatch(uid) is None:
        msg = f"{keyword} is absent or not a legal UID"
        raise InstanceUnidentified(msg)
    return uid


def _date(ds: Attributes, keyword: str) -> str:
    # Dots: how ACR-NEMA wrote dates. Source: PS3.5 table 6.2-1, DA.
    text = _text(ds, keyword, 64).replace(".", "")
    return text if _DATE.fullmatch(text) else ""


def _time(ds: Attributes, keyword: str) -> str:
    # Colons: how ACR-NEMA wrote times. Source: PS3.5 table 6.2-1, TM.
    text = _text(ds, keyword, 64).replace(":", "")
    return text if _TIME.fullmatch(text) else ""


def _integer(ds: Attributes, keyword: str) -> int | None:
    text = _text(ds, keyword, 16)
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number in _INT32 else None
