"""Matching of studies, series and instances: what QIDO-RS and C-FIND ask for.

Source: PS3.4 section C.2.2.2 (attribute matching), PS3.18 section 8.3.4 (query parameters).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVarTuple

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction
from storage.errors import SearchRefused
from storage.tables import Instance, Series, Study
from storage.text import fold_name

_MAX_CHARACTERS = 256
_MAX_LIST_CHARACTERS = 10_000  # lists of UIDs
_MAX_ROWS = 10_000
_DATE_RANGE = re.compile(r"(\d{8})?-(\d{8})?", re.ASCII)
_TIME = r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?"
_TIME_RANGE = re.compile(rf"({_TIME})?-({_TIME})?", re.ASCII)
_LATEST_TIME = "235959.999999"
_WORD_BREAK = re.compile(r"[\s^=,*?]+")

_Column = InstrumentedAttribute[Any]
_Condition = ColumnElement[bool]
_Columns = TypeVarTuple("_Columns")


@dataclass(frozen=True)
class SearchQuery:
    """What to look for: DICOM keyword -> value to match; unknown keywords are ignored."""

    filters: Mapping[str, str]
    fuzzy: bool = False  # person names match by the beginnings of their words
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True)
class StudyMatch:
    """A study and its related counts."""

    study: Study
    modalities: tuple[str, ...]
    number_of_series: int
    number_of_instances: int


@dataclass(frozen=True)
class SeriesMatch:
    """A series, its study, and how many instances it has."""

    series: Series
    study: Study
    number_of_instances: int


@dataclass(frozen=True)
class InstanceMatch:
    """An instance with its series and study."""

    instance: Instance
    series: Series
    study: Study


def search_studies(tx: Transaction, query: SearchQuery) -> list[StudyMatch]:
    """Return the matching studies, newest first: Study Date and Time, then arrival."""
    series_count = _count(Series, Series.study_instance_uid == Study.study_instance_uid)
    instance_count = _count(Instance, Instance.study_instance_uid == Study.study_instance_uid)
    statement = select(Study, series_count, instance_count).where(*_conditions(query, _STUDY_MATCHERS))
    rows = tx.execute(_page(statement.order_by(*_NEWEST_FIRST), query)).all()
    modalities = _modalities(tx, [study.study_instance_uid for study, _, _ in rows])
    return [
        StudyMatch(study, modalities.get(study.study_instance_uid, ()), series, instances)
        for study, series, instances in rows
    ]


def search_series(tx: Transaction, query: SearchQuery) -> list[SeriesMatch]:
    """Return the matching series, of the newest study first, by Series Number."""
    count = _count(Instance, Instance.series_instance_uid == Series.series_instance_uid)
    statement = (
        select(Series, Study, count)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .where(*_conditions(query, _STUDY_MATCHERS | _SERIES_MATCHERS))
        .order_by(*_NEWEST_FIRST, Series.series_number.nulls_last(), Series.series_instance_uid)
    )
    return [SeriesMatch(*row) for row in tx.execute(_page(statement, query))]


def search_instances(tx: Transaction, query: SearchQuery) -> list[InstanceMatch]:
    """Return the matching instances, of the newest study first, by series and Instance Number."""
    statement = (
        select(Instance, Series, Study)
        .join(Series, Series.series_instance_uid == Instance.series_instance_uid)
        .join(Study, Study.study_instance_uid == Instance.study_instance_uid)
        .where(*_conditions(query, _STUDY_MATCHERS | _SERIES_MATCHERS | _INSTANCE_MATCHERS))
        .order_by(
            *_NEWEST_FIRST,
            Series.series_number.nulls_last(),
            Series.series_instance_uid,
            Instance.instance_number.nulls_last(),
            Instance.sop_instance_uid,
        )
    )
    return [InstanceMatch(*row) for row in tx.execute(_page(statement, query))]


def _page(statement: Select[*_Columns], query: SearchQuery) -> Select[*_Columns]:
    if not (0 <= query.limit <= _MAX_ROWS and 0 <= query.offset < 2**31):
        raise SearchRefused(f"limit must be 0 to {_MAX_ROWS}, and offset 0 or more")
    return statement.limit(query.limit).offset(query.offset).execution_options(populate_existing=True)


def _count(table: type[Series] | type[Instance], condition: _Condition) -> ColumnElement[int]:
    return select(func.count()).select_from(table).where(condition).scalar_subquery()


def _modalities(tx: Transaction, study_uids: list[str]) -> dict[str, tuple[str, ...]]:
    statement = (
        select(Series.study_instance_uid, Series.modality)
        .where(Series.study_instance_uid.in_(study_uids), Series.modality != "")
        .distinct()
        .order_by(Series.modality)
    )
    found: dict[str, tuple[str, ...]] = {}
    for uid, modality in tx.execute(statement):
        found[uid] = (*found.get(uid, ()), modality)
    return found


def _conditions(query: SearchQuery, matchers: Mapping[str, "_Matcher"]) -> Iterable[_Condition]:
    for keyword, value in query.filters.items():
        if keyword not in matchers or value.strip() in {"", "*"}:
            continue  # an empty value matches everything; source: PS3.4 section C.2.2.2.3
        if len(value) > (_MAX_LIST_CHARACTERS if keyword.endswith("UID") else _MAX_CHARACTERS):
            raise SearchRefused(f"{keyword}: the value is too long")
        if "\0" in value:
            raise SearchRefused(f"{keyword}: the value holds a NUL")
        yield matchers[keyword](keyword, value.strip(), query.fuzzy)


_Matcher = Callable[[str, str, bool], _Condition]


def _text(column: _Column) -> _Matcher:
    """Case-sensitive, with the wildcards * and ?."""

    def match(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        return _like(column, value)

    return match


def _name(folded: _Column) -> _Matcher:
    """Without case; fuzzy: each word asked for begins a word of the name."""

    def match(_keyword: str, value: str, is_fuzzy: bool) -> _Condition:
        if not is_fuzzy:
            return _like(folded, fold_name(value))
        words = _WORD_BREAK.split(unicodedata.normalize("NFKC", value).casefold())
        return and_(true(), *(_begins_a_word(folded, word) for word in words if word))

    return match


def _uid(column: _Column) -> _Matcher:
    """One UID, or a list divided by backslash or comma; source: PS3.4 section C.2.2.2.2."""

    def match(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        return column.in_(_values(value))

    return match


def _number(column: _Column) -> _Matcher:
    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        try:
            number = int(value)
        except ValueError:
            raise SearchRefused(f"{keyword}: not a whole number") from None
        return column == number if abs(number) < 2**31 else false()

    return match


def _date(column: _Column) -> _Matcher:
    """YYYYMMDD, or a range a-b, a-, -b; source: PS3.4 section C.2.2.2.5."""

    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        first, last = _bounds(keyword, value, _DATE_RANGE)
        return _within(column, first, last)

    return match


def _time(column: _Column) -> _Matcher:
    """HH[MM[SS[.F]]], or a range; what is left out of the later bound reaches to its end."""

    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        first, last = _bounds(keyword, value.replace(":", ""), _TIME_RANGE)
        return _within(column, first, last and last + _LATEST_TIME[len(last) :])

    return match


def _modality_in_study(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
    matching = or_(*(_like(Series.modality, modality) for modality in _values(value)))
    return exists().where(Series.study_instance_uid == Study.study_instance_uid, matching)


def _bounds(keyword: str, value: str, form: re.Pattern[str]) -> tuple[str | None, str | None]:
    bounds = form.fullmatch(value.replace(" ", "") if "-" in value else f"{value}-{value}")
    if bounds is None or value == "-":
        raise SearchRefused(f"{keyword}: neither a value nor a range such as a-b, a- or -b")
    first, last = bounds.groups()
    return first, last


def _within(column: _Column, first: str | None, last: str | None) -> _Condition:
    conditions = [column != ""]  # an unknown date lies in no range
    if first:
        conditions.append(column >= first)
    if last:
        conditions.append(column <= last)
    return and_(*conditions)


def _values(value: str) -> list[str]:
    return [part.strip() for part in re.split(r"[\\,]", value) if part.strip()]


def _like(column: _Column, value: str) -> _Condition:
    if "*" not in value and "?" not in value:
        return column == value
    return column.like(_escaped(value).replace("*", "%").replace("?", "_"), escape="/")


def _begins_a_word(column: _Column, word: str) -> _Condition:
    start = f"{_escaped(word)}%"
    patterns = (start, *(f"%{divider}{start}" for divider in (" ", "^", "=", "-")))
    return or_(*(column.like(pattern, escape="/") for pattern in patterns))


def _escaped(value: str) -> str:
    return value.replace("/", "//").replace("%", "/%").replace("_", "/_")


_NEWEST_FIRST = (
    Study.study_date.desc(),
    Study.study_time.desc(),
    Study.created_at.desc(),
    Study.study_instance_uid.desc(),
)
_STUDY_MATCHERS: dict[str, _Matcher] = {
    "StudyInstanceUID": _uid(Study.study_instance_uid),
    "PatientID": _text(Study.patient_id),
    "PatientName": _name(Study.patient_name_folded),
    "PatientBirthDate": _date(Study.patient_birth_date),
    "PatientSex": _text(Study.patient_sex),
    "StudyDate": _date(Study.study_date),
    "StudyTime": _time(Study.study_time),
    "AccessionNumber": _text(Study.accession_number),
    "StudyDescription": _text(Study.study_description),
    "StudyID": _text(Study.study_id),
    "ReferringPhysicianName": _name(Study.referring_physician_name_folded),
    "ModalitiesInStudy": _modality_in_study,
}
_SERIES_MATCHERS: dict[str, _Matcher] = {
    "SeriesInstanceUID": _uid(Series.series_instance_uid),
    "Modality": _text(Series.modality),
    "SeriesNumber": _number(Series.series_number),
    "SeriesDescription": _text(Series.series_description),
    "BodyPartExamined": _text(Series.body_part_examined),
    "SeriesDate": _date(Series.series_date),
    "SeriesTime": _time(Series.series_time),
    "Laterality": _text(Series.laterality),
}
_INSTANCE_MATCHERS: dict[str, _Matcher] = {
    "SOPInstanceUID": _uid(Instance.sop_instance_uid),
    "SOPClassUID": _uid(Instance.sop_class_uid),
    "InstanceNumber": _number(Instance.instance_number),
    "Rows": _number(Instance.rows),
    "Columns": _number(Instance.columns),
    "NumberOfFrames": _number(Instance.number_of_frames),
}
