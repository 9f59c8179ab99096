"""QIDO-RS: search studies, series, instances.

Every relational form of PS3.18 10.6 is answered from the index. Unknown parameters are no error: OHIF and
others send more than any server knows; what was not used is named in a Warning. Attributes beyond the index
come from the metadata of one instance of the match, when `includefield` asks for them.

Source: PS3.18 8.3.4 (parameters), 10.6 (transaction), Tables 10.6.3-3 to 10.6.3-5 (attributes).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import BadRequest, NodeError, NotAcceptable
from dicom_node.web.attributes import OF_SERIES, OF_STUDY
from dicom_node.web.media_types import DICOM_JSON, JSON, accepted
from dicom_node.web.services import (
    DICOM_WEB,
    FRESH,
    WebServices,
    require_study,
    services_of,
    uid_in_path,
)
from storage import keywords
from storage.database import Transaction
from storage.index import (
    InstanceMatch,
    SearchQuery,
    SeriesMatch,
    StudyMatch,
    search_instances,
    search_series,
    search_studies,
)
from storage.keywords import values_of
from storage.retrieval import KeptInstance, kept_instances
from storage.search import (
    INSTANCE_MATCHERS,
    SERIES_MATCHERS,
    STUDY_MATCHERS,
    count_instances,
    count_series,
    count_studies,
)
from storage.tables import Instance, Series

DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 2**31 - 1
MAX_COUNTED: Final = 100_000  # beyond it no total is told
REMEMBERED: Final = 20_000  # matches of each level, about 1 KiB each
MAX_NAMES: Final = 10  # of parameters in one Warning
OTHER_PARAMETERS: Final = frozenset(
    {
        "limit",
        "offset",
        "fuzzymatching",
        "includefield",
        "accept",
        "emptyvaluematching",
        "multiplevaluematching",
    }
)
TAG_FORM: Final = re.compile(r"[0-9A-Fa-f]{8}")
NAME_FORM: Final = re.compile(r"[A-Za-z0-9._]{1,64}")
CHARACTER_SET: Final = {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}
TOTAL_HEADER: Final = "X-Total-Count"
AGENT: Final = "299 dicom-node:"
ALL: Final = "all"

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class _Level:
    """What differs between studies, series and instances."""

    matchers: Mapping[str, object]
    search: Callable[[Transaction, SearchQuery], Sequence[Any]]
    count: Callable[[Transaction, SearchQuery, int], int]
    text: Callable[[Any], str]  # of a match, as JSON
    uids: Callable[[Any], tuple[str, ...]]  # of a match: study, series, instance
    all_tags: frozenset[str] | None  # what includefield=all adds; None = everything


@dataclass(frozen=True)
class _Asked:
    """One search, as it was asked for."""

    query: SearchQuery
    fields: tuple[str, ...]  # tags to add, or "all"
    ignored: tuple[str, ...]  # names of parameters that were not used


def search_for_studies(request: Request) -> Response:
    """Answer GET .../studies."""
    return _answer(request, STUDIES)


def search_for_series(request: Request) -> Response:
    """Answer GET .../series and .../studies/{study}/series."""
    return _answer(request, SERIES)


def search_for_instances(request: Request) -> Response:
    """Answer GET .../instances, of everything, of a study, or of a series."""
    return _answer(request, INSTANCES)


def _answer(request: Request, level: _Level) -> Response:
    require_json(request)
    asked = read_query(request, level.matchers)
    services = services_of(request)
    with services.database.reading() as tx:
        matches = level.search(tx, asked.query)
        if not matches and "study" in request.path_params:
            require_study(tx, uid_in_path(request, "study"))
        total = _total(tx, level, asked.query, len(matches))
        texts = [level.text(match) for match in matches]
        if asked.fields:
            kept = [kept_instances(tx, *level.uids(match)) for match in matches]
            texts = _with_fields(services, asked.fields, texts, kept, level.all_tags)
    response = Response(f"[{','.join(texts)}]".encode(), 200, FRESH, DICOM_JSON)
    for name, value in _notes(asked, total, len(matches)):
        response.headers.append(name, value)
    return response


def _total(tx: Transaction, level: _Level, query: SearchQuery, found: int) -> int:
    """How many there are in all; counted only when this page does not say it already."""
    if found < query.limit and (found or not query.offset):
        return query.offset + found
    return level.count(tx, query, MAX_COUNTED)


def _notes(asked: _Asked, total: int, found: int) -> Iterator[tuple[str, str]]:
    """Headers about what was left out. Source: PS3.18 8.3.4.4 (remaining results), 8.3.1."""
    if total < MAX_COUNTED:
        yield TOTAL_HEADER, str(total)
    remaining = total - asked.query.offset - found
    if remaining > 0:
        number = str(remaining) if total < MAX_COUNTED else f"more than {remaining}"
        yield "Warning", f'{AGENT} "There are {number} additional results that can be requested"'
    if asked.ignored:
        names = ", ".join(asked.ignored[:MAX_NAMES])
        yield "Warning", f'{AGENT} "The following parameters were not used: {names}"'


def require_json(request: Request) -> None:
    """Raise NotAcceptable unless the client takes DICOM JSON; XML is never written here."""
    if not any(kind.covers(DICOM_JSON) or kind.covers(JSON) for kind in accepted(request)):
        raise NotAcceptable(f"this answer comes as {DICOM_JSON} only")


def read_query(request: Request, matchers: Mapping[str, object]) -> _Asked:
    """Read the matching keys and options of a search from the address."""
    filters: dict[str, str] = {}
    ignored: dict[str, None] = {}
    for name, value in request.query_params.multi_items():
        if name.lower() in OTHER_PARAMETERS:
            continue
        keyword = keyword_of(name)
        if keyword in matchers:
            filters[keyword] = value
        elif value or not keyword:
            ignored[name if NAME_FORM.fullmatch(name) else "(a name that is no attribute)"] = None
    for level, keyword in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):
        if level in request.path_params:
            filters[keyword] = uid_in_path(request, level)
    query = SearchQuery(
        filters,
        fuzzy=request.query_params.get("fuzzymatching", "").lower() == "true",
        limit=min(number_in(request, "limit", DEFAULT_LIMIT), MAX_LIMIT),
        offset=min(number_in(request, "offset", 0), MAX_OFFSET),
    )
    return _Asked(query, _fields(request), tuple(ignored))


def _fields(request: Request) -> tuple[str, ...]:
    """What `includefield` names, as tags, in any of its spellings; unknown names are left out."""
    names = {
        name.strip()
        for text in request.query_params.getlist("includefield")
        for name in text.split(",")
        if name.strip()
    }
    if ALL in names:
        return (ALL,)
    tags = (tag_for_keyword(keyword_of(name)) if keyword_of(name) else _tag(name) for name in names)
    return tuple(sorted(f"{tag:08X}" for tag in tags if tag is not None))


def _tag(name: str) -> int | None:
    return int(name, 16) if TAG_FORM.fullmatch(name) else None


def keyword_of(name: str) -> str:
    """Return the DICOM keyword of `name`, a keyword or eight hexadecimal digits; "" when there is none."""
    if TAG_FORM.fullmatch(name):
        return keyword_for_tag(int(name, 16))
    return name if tag_for_keyword(name) is not None else ""


def number_in(request: Request, name: str, default: int) -> int:
    """Return a whole number of the address; raises BadRequest."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise BadRequest(f"{name} must be a whole number, 0 or more")
    return int(text)


def _with_fields(
    services: WebServices,
    fields: tuple[str, ...],
    texts: Sequence[str],
    kept: Sequence[Sequence[KeptInstance]],
    all_tags: frozenset[str] | None,
) -> list[str]:
    """Add what the index does not have, from the metadata of the first instance of each match."""
    found: list[str] = []
    for text, rows in zip(texts, kept, strict=True):
        item = json.loads(text)
        missing = fields == (ALL,) or any(tag not in item for tag in fields)
        if not missing or not rows:
            found.append(text)
            continue
        try:
            metadata = json.loads(services.metadata.of_instance(services.files, rows[0]))
        except NodeError:  # what cannot be read now is left out, as an unknown attribute is
            found.append(text)
            continue
        wanted = fields
        if fields == (ALL,):
            wanted = tuple(tag for tag in metadata if all_tags is None or tag in all_tags)
        added = {tag: metadata[tag] for tag in wanted if tag in metadata and tag not in item}
        found.append(_dump({**item, **added}))
    return found


def _dump(item: JsonObject) -> str:
    return json.dumps(dict(sorted(item.items())), allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _remembered(render: Callable[[Any], JsonObject]) -> Callable[[Any], str]:
    """Render a match once: the same row has the same text, so what is remembered is never out of date."""
    return lru_cache(REMEMBERED)(lambda match: _dump(render(match)))


def render_study(match: StudyMatch) -> JsonObject:
    """One study with its related counts. Source: PS3.18 Table 10.6.3-3."""
    address = f"{DICOM_WEB}/studies/{match.study.study_instance_uid}"
    return _render(
        *values_of(match.study, keywords.OF_STUDY),
        ("ModalitiesInStudy", list(match.modalities)),
        ("NumberOfStudyRelatedSeries", match.number_of_series),
        ("NumberOfStudyRelatedInstances", match.number_of_instances),
        ("InstanceAvailability", "ONLINE"),
        ("RetrieveURL", address),
    )


def render_series(match: SeriesMatch) -> JsonObject:
    """One series with its study. Source: PS3.18 Table 10.6.3-4."""
    series = match.series
    return _render(
        *values_of(match.study, keywords.OF_STUDY),
        *values_of(series, keywords.OF_SERIES),
        ("NumberOfSeriesRelatedInstances", match.number_of_instances),
        ("RetrieveURL", series_address(series)),
    )


def render_instance(match: InstanceMatch) -> JsonObject:
    """One instance with its series and study. Source: PS3.18 Table 10.6.3-5."""
    return _render(
        *values_of(match.study, keywords.OF_STUDY),
        *values_of(match.series, keywords.OF_SERIES),
        *_instance_values(match.instance),
    )


def _instance_values(instance: Instance) -> Iterator[tuple[str, object]]:
    yield from values_of(instance, keywords.OF_INSTANCE)
    yield "InstanceAvailability", "ONLINE"
    yield "RetrieveURL", f"{series_address(instance)}/instances/{instance.sop_instance_uid}"


def series_address(row: Series | Instance) -> str:
    """Absolute path of a series under the DICOMweb root."""
    return f"{DICOM_WEB}/studies/{row.study_instance_uid}/series/{row.series_instance_uid}"


def _element_maker(keyword: str) -> tuple[str, str]:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return f"{tag:08X}", dictionary_VR(tag)


class _Known(dict[str, tuple[str, str]]):
    """Keyword -> (tag, VR), looked up once."""

    def __missing__(self, keyword: str) -> tuple[str, str]:
        found = self[keyword] = _element_maker(keyword)
        return found


_KNOWN: Final = _Known()


def _render(*values: tuple[str, object]) -> JsonObject:
    """Render keyword and value pairs as DICOM JSON; an unknown value is an element without Value."""
    rendered: JsonObject = dict(CHARACTER_SET)
    for keyword, value in values:
        if value is None:
            continue
        tag, vr = _KNOWN[keyword]
        rendered[tag] = _element(vr, value)
    return dict(sorted(rendered.items()))


def _element(vr: str, value: object) -> JsonObject:
    if value in ("", []):
        return {"vr": vr}
    if vr == "PN":
        names = ("Alphabetic", "Ideographic", "Phonetic")
        groups = zip(names, str(value).split("="), strict=False)
        return {"vr": vr, "Value": [{name: text for name, text in groups if text}]}
    return {"vr": vr, "Value": value if isinstance(value, list) else [value]}


STUDIES: Final = _Level(
    STUDY_MATCHERS,
    search_studies,
    count_studies,
    _remembered(render_study),
    lambda match: (match.study.study_instance_uid,),
    OF_STUDY,
)
SERIES: Final = _Level(
    STUDY_MATCHERS | SERIES_MATCHERS,
    search_series,
    count_series,
    _remembered(render_series),
    lambda match: (match.series.study_instance_uid, match.series.series_instance_uid),
    OF_STUDY | OF_SERIES,
)
INSTANCES: Final = _Level(
    STUDY_MATCHERS | SERIES_MATCHERS | INSTANCE_MATCHERS,
    search_instances,
    count_instances,
    _remembered(render_instance),
    lambda match: (
        match.instance.study_instance_uid,
        match.instance.series_instance_uid,
        match.instance.sop_instance_uid,
    ),
    None,
)
