"""QIDO-RS: search studies, series, instances.

Every relational form of PS3.18 10.6 is answered from the index. Unknown parameters are no error: OHIF and
others send more than any server knows. Answers hold the attributes of the standard's tables that the index
has, and the attributes matched; `includefield` asks for no more than that, in any of its spellings.

Source: PS3.18 8.3.4 (parameters), 10.6 (transaction), Tables 10.6.3-3 to 10.6.3-5 (attributes).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import BadRequest, NotAcceptable
from dicom_node.web.media_types import DICOM_JSON, JSON, accepted
from dicom_node.web.services import (
    DICOM_WEB,
    dicom_json_response,
    instance_address,
    require_study,
    services_of,
    uid_in_path,
)
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
from storage.tables import Instance, Series, Study

DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 2**31 - 1
OTHER_PARAMETERS: Final = frozenset({"limit", "offset", "fuzzymatching", "includefield", "accept"})
TAG_FORM: Final = re.compile(r"[0-9A-Fa-f]{8}")
CHARACTER_SET: Final = {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}

JsonObject = dict[str, Any]
Search = Callable[[Transaction, SearchQuery], Sequence[JsonObject]]


def search_for_studies(request: Request) -> Response:
    """Answer GET .../studies."""
    return _answer(request, lambda tx, query: [render_study(match) for match in search_studies(tx, query)])


def search_for_series(request: Request) -> Response:
    """Answer GET .../series and .../studies/{study}/series."""
    return _answer(request, lambda tx, query: [render_series(match) for match in search_series(tx, query)])


def search_for_instances(request: Request) -> Response:
    """Answer GET .../instances, of everything, of a study, or of a series."""
    return _answer(
        request, lambda tx, query: [render_instance(match) for match in search_instances(tx, query)]
    )


def _answer(request: Request, search: Search) -> Response:
    require_json(request)
    query = read_query(request)
    with services_of(request).database.reading() as tx:
        if "study" in request.path_params:
            require_study(tx, uid_in_path(request, "study"))
        found = search(tx, query)
    return dicom_json_response(found)


def require_json(request: Request) -> None:
    """Raise NotAcceptable unless the client takes DICOM JSON; XML is never written here."""
    if not any(kind.covers(DICOM_JSON) or kind.covers(JSON) for kind in accepted(request)):
        raise NotAcceptable(f"this answer comes as {DICOM_JSON} only")


def read_query(request: Request) -> SearchQuery:
    """Read the matching keys and options of a search from the address."""
    filters: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.lower() in OTHER_PARAMETERS:
            continue
        keyword = keyword_of(name)
        if keyword:
            filters[keyword] = value
    for level, keyword in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):
        if level in request.path_params:
            filters[keyword] = uid_in_path(request, level)
    return SearchQuery(
        filters,
        fuzzy=request.query_params.get("fuzzymatching", "").lower() == "true",
        limit=min(_number(request, "limit", DEFAULT_LIMIT), MAX_LIMIT),
        offset=min(_number(request, "offset", 0), MAX_OFFSET),
    )


def keyword_of(name: str) -> str:
    """Return the DICOM keyword of `name`, a keyword or eight hexadecimal digits; "" when there is none."""
    if TAG_FORM.fullmatch(name):
        return keyword_for_tag(int(name, 16))
    return name if tag_for_keyword(name) is not None else ""


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise BadRequest(f"{name} must be a whole number, 0 or more")
    return int(text)


def render_study(match: StudyMatch) -> JsonObject:
    """One study with its related counts. Source: PS3.18 Table 10.6.3-3."""
    address = f"{DICOM_WEB}/studies/{match.study.study_instance_uid}"
    return _render(
        *_study_values(match.study),
        ("ModalitiesInStudy", list(match.modalities)),
        ("NumberOfStudyRelatedSeries", match.number_of_series),
        ("NumberOfStudyRelatedInstances", match.number_of_instances),
        ("InstanceAvailability", "ONLINE"),
        ("RetrieveURL", address),
    )


def render_series(match: SeriesMatch) -> JsonObject:
    """One series with its study. Source: PS3.18 Table 10.6.3-4."""
    series = match.series
    address = f"{DICOM_WEB}/studies/{series.study_instance_uid}/series/{series.series_instance_uid}"
    return _render(
        *_study_values(match.study),
        *_series_values(series),
        ("NumberOfSeriesRelatedInstances", match.number_of_instances),
        ("RetrieveURL", address),
    )


def render_instance(match: InstanceMatch) -> JsonObject:
    """One instance with its series and study. Source: PS3.18 Table 10.6.3-5."""
    return _render(
        *_study_values(match.study), *_series_values(match.series), *_instance_values(match.instance)
    )


def _study_values(study: Study) -> Iterator[tuple[str, object]]:
    yield "StudyDate", study.study_date
    yield "StudyTime", study.study_time
    yield "AccessionNumber", study.accession_number
    yield "ReferringPhysicianName", study.referring_physician_name
    yield "StudyDescription", study.study_description
    yield "PatientName", study.patient_name
    yield "PatientID", study.patient_id
    yield "PatientBirthDate", study.patient_birth_date
    yield "PatientSex", study.patient_sex
    yield "StudyInstanceUID", study.study_instance_uid
    yield "StudyID", study.study_id


def _series_values(series: Series) -> Iterator[tuple[str, object]]:
    yield "SeriesDate", series.series_date
    yield "SeriesTime", series.series_time
    yield "Modality", series.modality
    yield "SeriesDescription", series.series_description
    yield "BodyPartExamined", series.body_part_examined
    yield "SeriesInstanceUID", series.series_instance_uid
    yield "SeriesNumber", series.series_number
    yield "Laterality", series.laterality


def _instance_values(instance: Instance) -> Iterator[tuple[str, object]]:
    yield "SOPClassUID", instance.sop_class_uid
    yield "SOPInstanceUID", instance.sop_instance_uid
    yield "InstanceAvailability", "ONLINE"
    yield "InstanceNumber", instance.instance_number
    yield "Rows", instance.rows
    yield "Columns", instance.columns
    yield "NumberOfFrames", instance.number_of_frames
    yield "AvailableTransferSyntaxUID", instance.transfer_syntax_uid
    yield "RetrieveURL", instance_address(instance)


def _render(*values: tuple[str, object]) -> JsonObject:
    """Render keyword and value pairs as DICOM JSON; an unknown value is an element without Value."""
    rendered: JsonObject = dict(CHARACTER_SET)
    for keyword, value in values:
        tag = tag_for_keyword(keyword)
        if tag is None or value is None:
            continue
        rendered[f"{tag:08X}"] = _element(dictionary_VR(tag), value)
    return dict(sorted(rendered.items()))


def _element(vr: str, value: object) -> JsonObject:
    if value in ("", []):
        return {"vr": vr}
    if vr == "PN":
        names = ("Alphabetic", "Ideographic", "Phonetic")
        groups = zip(names, str(value).split("="), strict=False)
        return {"vr": vr, "Value": [{name: text for name, text in groups if text}]}
    return {"vr": vr, "Value": value if isinstance(value, list) else [value]}
