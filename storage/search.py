"""Matching of studies, series and instances: what QIDO-RS and C-FIND ask for.

Source: PS3.4 section C.2.2.2 (attribute matching), PS3.18 section 8.3.4 (query parameters).
"""

import re
import unicodedata
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    distinct,
    exists,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from storage.database import Transaction
from storage.errors import SearchRefused
from storage.prepared import Prepared
from storage.tables import Instance, Series, Study
from storage.text import fold_name

_MAX_CHARACTERS = 256
_MAX_LIST_CHARACTERS = 65_536  # lists of UIDs: what an element of explicit VR can hold; source: PS3.5 7.1.2
_MAX_ROWS = 10_000
_DATE_RANGE = re.compile(r"(\d{8})?-(\d{8})?", re.ASCII)
_TIME = r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?"
_TIME_RANGE = re.compile(rf"({_TIME})?-({_TIME})?", re.ASCII)
_LATEST_TIME = "235959.999999"
_WORD_BREAK = re.compile(r"[\s^=,*?]+")

_STUDY_MOMENT = ("StudyDate", "StudyTime")
_IS_CURRENT = Instance.retired_as.is_(None)  # not rejected, withdrawn or superseded

_Column = InstrumentedAttribute[Any]
_Condition = ColumnElement[bool]


@dataclass(frozen=True)
class SearchQuery:
    """What to look for: DICOM keyword -> value to match; unknown keywords are ignored."""

    filters: Mapping[str, str]
    fuzzy: bool = False  # person names match by the beginnings of their words
    limit: int = 100
    offset: int = 0
    is_datetime_combined: bool = False  # Study Date and Study Time are one range; source: PS3.4 C.2.2.2.5


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
    """Return the matching studies, newest first: Study Date and Time, then arrival.

    Instances that were rejected, withdrawn or superseded do not count; a study of nothing else is not found.
    """
    return [
        StudyMatch(_study_row(row), tuple(sorted(filter(None, (row[-3] or "").split(",")))), row[-2], row[-1])
        for row in _run(tx, _STUDIES, query)
    ]


def search_series(tx: Transaction, query: SearchQuery) -> list[SeriesMatch]:
    """Return the matching series, of the newest study first, by Series Number."""
    width = len(_SERIES_ROW._fields)
    return [
        SeriesMatch(_series_row(row[:width]), _study_row(row[width:]), row[-1])
        for row in _run(tx, _SERIES, query)
    ]


def search_instances(tx: Transaction, query: SearchQuery) -> list[InstanceMatch]:
    """Return the matching instances, of the newest study first, by series and Instance Number."""
    first = len(_INSTANCE_ROW._fields)
    second = first + len(_SERIES_ROW._fields)
    return [
        InstanceMatch(_instance_row(row[:first]), _series_row(row[first:second]), _study_row(row[second:]))
        for row in _run(tx, _INSTANCES, query)
    ]


def count_studies(tx: Transaction, query: SearchQuery, most: int) -> int:
    """Return how many studies match, counting no further than `most`."""
    return _count_matches(tx, select(true()).select_from(Study).where(*_study_conditions(query)), most)


def count_series(tx: Transaction, query: SearchQuery, most: int) -> int:
    """Return how many series match, counting no further than `most`."""
    statement = (
        select(true())
        .select_from(Series)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .where(*_series_conditions(query))
    )
    return _count_matches(tx, statement, most)


def count_instances(tx: Transaction, query: SearchQuery, most: int) -> int:
    """Return how many instances match, counting no further than `most`."""
    statement = (
        select(true())
        .select_from(Instance)
        .join(Series, Series.series_instance_uid == Instance.series_instance_uid)
        .join(Study, Study.study_instance_uid == Instance.study_instance_uid)
        .where(*_instance_conditions(query))
    )
    return _count_matches(tx, statement, most)


def _count_matches(tx: Transaction, statement: Select[bool], most: int) -> int:
    return tx.scalar(select(func.count()).select_from(statement.limit(most).subquery())) or 0


def _study_conditions(query: SearchQuery) -> list[_Condition]:
    return [*conditions(query, STUDY_MATCHERS), _has_instances(query)]


def _has_instances(_query: SearchQuery) -> _Condition:
    return exists().where(Instance.study_instance_uid == Study.study_instance_uid, _IS_CURRENT)


def _series_conditions(query: SearchQuery) -> list[_Condition]:
    has_instances = exists().where(Instance.series_instance_uid == Series.series_instance_uid, _shown(query))
    return [*conditions(query, STUDY_MATCHERS | SERIES_MATCHERS), has_instances]


def _instance_conditions(query: SearchQuery) -> list[_Condition]:
    return [*conditions(query, STUDY_MATCHERS | SERIES_MATCHERS | INSTANCE_MATCHERS), _shown(query)]


def _shown(query: SearchQuery) -> _Condition:
    """What was replaced is found by whoever asks for it by its UID; what was rejected is not found."""
    is_named = any(query.filters.get(keyword) for keyword in ("SeriesInstanceUID", "SOPInstanceUID"))
    return or_(_IS_CURRENT, Instance.retired_as == "SUPERSEDED") if is_named else _IS_CURRENT


@dataclass(frozen=True)
class _Level:
    """One level of search: its statement without conditions, and what can be matched."""

    name: str
    select: Callable[[str, SearchQuery], Select[Any]]  # of a dialect
    matchers: Mapping[str, "Matcher"]


def _run(tx: Transaction, level: _Level, query: SearchQuery) -> Sequence[Any]:
    """Execute one search; one that asks for exact values only, by a statement that is compiled already."""
    if not (0 <= query.limit <= _MAX_ROWS and 0 <= query.offset < 2**31):
        raise SearchRefused(f"limit must be 0 to {_MAX_ROWS}, and offset 0 or more")
    exact = _exact_values(level, query)
    if exact is not None:
        values = {**exact, "page_limit": query.limit, "page_offset": query.offset}
        return _prepared(level.name, tuple(exact)).run(tx, values).fetchall()
    statement = level.select(tx.get_bind().dialect.name, query).where(*conditions(query, level.matchers))
    return tx.execute(statement.limit(query.limit).offset(query.offset)).all()


def _exact_values(level: _Level, query: SearchQuery) -> dict[str, Any] | None:
    """Keyword -> value of a search without wildcards, lists and ranges; None for any other."""
    values: dict[str, Any] = {}
    for keyword, text in query.filters.items():
        value = text.strip()
        if keyword not in level.matchers or value in {"", "*"}:
            continue
        _check_value(keyword, text)
        matcher = level.matchers[keyword]
        exact = matcher.exact(value) if matcher.exact is not None else None
        if exact is None or query.is_datetime_combined:
            return None
        values[keyword] = exact
    return dict(sorted(values.items()))


def _check_value(keyword: str, value: str) -> None:
    if len(value) > (_MAX_LIST_CHARACTERS if keyword.endswith("UID") else _MAX_CHARACTERS):
        raise SearchRefused(f"{keyword}: the value is too long")
    if "\0" in value:
        raise SearchRefused(f"{keyword}: the value holds a NUL")


@cache
def _prepared(level_name: str, keywords: tuple[str, ...]) -> Prepared:
    """The statement of a level with `keywords` matched exactly; there are few such sets in use."""
    level = next(level for level in (_STUDIES, _SERIES, _INSTANCES) if level.name == level_name)
    named = SearchQuery(dict.fromkeys(keywords, "named"))
    equal = [
        column == bindparam(keyword)
        for keyword in keywords
        if (column := level.matchers[keyword].column) is not None
    ]
    limit, offset = (bindparam(name, type_=Integer()) for name in ("page_limit", "page_offset"))
    return Prepared(
        **{
            dialect: level.select(dialect, named).where(*equal).limit(limit).offset(offset)
            for dialect in ("sqlite", "postgresql")
        }
    )


def _select_studies(dialect: str, query: SearchQuery) -> Select[Any]:
    is_of_study = Series.study_instance_uid == Study.study_instance_uid
    is_current = exists().where(Instance.series_instance_uid == Series.series_instance_uid, _IS_CURRENT)
    modality = distinct(Series.modality)
    listed = func.group_concat(modality) if dialect == "sqlite" else func.string_agg(modality, ",")
    modalities = select(listed).where(is_of_study, is_current, Series.modality != "").scalar_subquery()
    instances = _count(Instance, Instance.study_instance_uid == Study.study_instance_uid, _IS_CURRENT)
    columns = (*_columns(Study), modalities, _count(Series, is_of_study, is_current), instances)
    return select(*columns).where(_has_instances(query)).order_by(*_NEWEST_FIRST)


def _select_series(_dialect: str, query: SearchQuery) -> Select[Any]:
    is_of_series = Instance.series_instance_uid == Series.series_instance_uid
    count = _count(Instance, is_of_series, _shown(query))
    return (
        select(*_columns(Series), *_columns(Study), count)
        .join_from(Series, Study, Study.study_instance_uid == Series.study_instance_uid)
        .where(exists().where(is_of_series, _shown(query)))
        .order_by(*_NEWEST_FIRST, Series.series_number.nulls_last(), Series.series_instance_uid)
    )


def _select_instances(_dialect: str, query: SearchQuery) -> Select[Any]:
    return (
        select(*_columns(Instance), *_columns(Series), *_columns(Study))
        .join_from(Instance, Series, Series.series_instance_uid == Instance.series_instance_uid)
        .join(Study, Study.study_instance_uid == Instance.study_instance_uid)
        .where(_shown(query))
        .order_by(
            *_NEWEST_FIRST,
            Series.series_number.nulls_last(),
            Series.series_instance_uid,
            Instance.instance_number.nulls_last(),
            Instance.sop_instance_uid,
        )
    )


def _count(table: type[Series] | type[Instance], *which: _Condition) -> ColumnElement[int]:
    return select(func.count()).select_from(table).where(*which).scalar_subquery()


def _columns(table: type[Study] | type[Series] | type[Instance]) -> tuple[_Column, ...]:
    return tuple(getattr(table, column.key) for column in table.__table__.columns)


def _row_type(table: type[Study] | type[Series] | type[Instance]) -> Any:
    """A tuple with the attributes of the table's class: objects of it cost several times as much."""
    return namedtuple(f"{table.__name__}Row", [column.key for column in table.__table__.columns])  # noqa: PYI024


_STUDY_ROW: Final = _row_type(Study)
_SERIES_ROW: Final = _row_type(Series)
_INSTANCE_ROW: Final = _row_type(Instance)
_STUDY_WIDTH: Final = len(_STUDY_ROW._fields)


def _study_row(values: Sequence[Any]) -> Study:
    return cast("Study", _STUDY_ROW._make(values[:_STUDY_WIDTH]))


def _series_row(values: Sequence[Any]) -> Series:
    return cast("Series", _SERIES_ROW._make(values))


def _instance_row(values: Sequence[Any]) -> Instance:
    return cast("Instance", _INSTANCE_ROW._make(values))


def conditions(query: SearchQuery, matchers: Mapping[str, "Matcher"]) -> Iterator[_Condition]:
    """Yield the SQL conditions of a search, for the keywords that `matchers` knows.

    Raises
    ------
    SearchRefused
        If a value has not the form that its attribute is matched with.
    """
    for keyword, value in query.filters.items():
        if query.is_datetime_combined and keyword in _STUDY_MOMENT:
            continue
        if keyword not in matchers or value.strip() in {"", "*"}:
            continue  # an empty value matches everything; source: PS3.4 section C.2.2.2.3
        _check_value(keyword, value)
        yield matchers[keyword](keyword, value.strip(), query.fuzzy)
    if query.is_datetime_combined:
        yield from _study_moment(query)


@dataclass(frozen=True)
class Matcher:
    """How one attribute is matched: a condition for any value, and the column that one exact value equals."""

    condition: Callable[[str, str, bool], _Condition]
    column: _Column | None = None  # None: there is no exact value, or it is not a column's
    exact: Callable[[str], Any] | None = None  # a value as the column holds it; None when it is not exact

    def __call__(self, keyword: str, value: str, is_fuzzy: bool) -> _Condition:
        """Give the SQL condition; raises SearchRefused."""
        return self.condition(keyword, value, is_fuzzy)


def _text(column: _Column) -> Matcher:
    """Case-sensitive, with the wildcards * and ?; of several values divided by backslash, any matches."""

    def match(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        values = [part.strip() for part in value.split("\\")]
        return or_(*(_like(column, part) for part in values if part)) if any(values) else true()

    return Matcher(match, column, lambda value: None if set(value) & set("*?\\") else value)


def _name(folded: _Column) -> Matcher:
    """Without case; fuzzy: each word asked for begins a word of the name."""

    def match(_keyword: str, value: str, is_fuzzy: bool) -> _Condition:
        if not is_fuzzy:
            return _like(folded, fold_name(value))
        words = _WORD_BREAK.split(unicodedata.normalize("NFKC", value).casefold())
        return and_(true(), *(_begins_a_word(folded, word) for word in words if word))

    return Matcher(match)


def _uid(column: _Column) -> Matcher:
    """One UID, or a list divided by backslash or comma; source: PS3.4 section C.2.2.2.2."""

    def match(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        return column.in_(_values(value))

    return Matcher(match, column, lambda value: None if set(value) & set("\\,") else value)


def _number(column: _Column) -> Matcher:
    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        try:
            numbers = [int(part) for part in value.split("\\") if part.strip()]
        except ValueError:
            raise SearchRefused(f"{keyword}: not a whole number") from None
        return column.in_([number for number in numbers if abs(number) < 2**31])

    return Matcher(match)


def _date(column: _Column) -> Matcher:
    """YYYYMMDD, or a range a-b, a-, -b; source: PS3.4 section C.2.2.2.5."""

    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        first, last = _bounds(keyword, value, _DATE_RANGE)
        return _within(column, first, last)

    return Matcher(match)


def _time(column: _Column) -> Matcher:
    """HH[MM[SS[.F]]], or a range; what is left out of the later bound reaches to its end."""

    def match(keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
        first, last = _bounds(keyword, value.replace(":", ""), _TIME_RANGE)
        return _within(column, first, last and last + _LATEST_TIME[len(last) :])

    return Matcher(match)


def _study_moment(query: SearchQuery) -> Iterator[_Condition]:
    """Study Date and Study Time as the two halves of one range."""
    date, time = (query.filters.get(keyword, "").strip() for keyword in _STUDY_MOMENT)
    first_day, last_day = _bounds("StudyDate", date, _DATE_RANGE) if date else (None, None)
    first, last = _bounds("StudyTime", time.replace(":", ""), _TIME_RANGE) if time else (None, None)
    if not date:
        yield from ([_within(Study.study_time, first, last)] if time else [])
        return
    yield Study.study_date != ""
    if first_day:
        later = and_(Study.study_date == first_day, Study.study_time >= (first or ""))
        yield or_(Study.study_date > first_day, later)
    if last_day:
        end = (last or "") + _LATEST_TIME[len(last or "") :]
        yield or_(Study.study_date < last_day, and_(Study.study_date == last_day, Study.study_time <= end))


def _modality_in_study(_keyword: str, value: str, _is_fuzzy: bool) -> _Condition:
    # Under other names: a search for series or instances has these tables already, and one row of each.
    series, instance = aliased(Series), aliased(Instance)
    matching = or_(*(_like(series.modality, modality) for modality in _values(value)))
    is_current = exists().where(
        instance.series_instance_uid == series.series_instance_uid, instance.retired_as.is_(None)
    )
    return exists().where(series.study_instance_uid == Study.study_instance_uid, matching, is_current)


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
STUDY_MATCHERS: dict[str, Matcher] = {
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
    "ModalitiesInStudy": Matcher(_modality_in_study),
}
SERIES_MATCHERS: dict[str, Matcher] = {
    "SeriesInstanceUID": _uid(Series.series_instance_uid),
    "Modality": _text(Series.modality),
    "SeriesNumber": _number(Series.series_number),
    "SeriesDescription": _text(Series.series_description),
    "BodyPartExamined": _text(Series.body_part_examined),
    "SeriesDate": _date(Series.series_date),
    "SeriesTime": _time(Series.series_time),
    "Laterality": _text(Series.laterality),
}
INSTANCE_MATCHERS: dict[str, Matcher] = {
    "SOPInstanceUID": _uid(Instance.sop_instance_uid),
    "SOPClassUID": _uid(Instance.sop_class_uid),
    "InstanceNumber": _number(Instance.instance_number),
    "Rows": _number(Instance.rows),
    "Columns": _number(Instance.columns),
    "NumberOfFrames": _number(Instance.number_of_frames),
}
_STUDIES = _Level("study", _select_studies, STUDY_MATCHERS)
_SERIES = _Level("series", _select_series, STUDY_MATCHERS | SERIES_MATCHERS)
_INSTANCES = _Level("instance", _select_instances, STUDY_MATCHERS | SERIES_MATCHERS | INSTANCE_MATCHERS)
