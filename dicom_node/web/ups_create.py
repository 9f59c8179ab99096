"""What a workitem must say at its creation and before its end, and the job of one that asks for our model.

Source: PS3.4 Table CC.2.5-3 (N-CREATE, N-SET and final state columns).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from dicom_node.errors import BadRequest, ConflictingState
from dicom_node.questions import MAX_QUERY, Wish, request_of
from dicom_node.settings import NodeSettings
from dicom_node.uids import checked_uid
from dicom_node.web.ups_view import OUR_SCHEME, STATE, TRANSACTION_UID, WORKLIST, element
from storage.database import Transaction
from storage.index import find_study
from storage.jobs import JobState, create_job
from storage.retrieval import kept_instances
from storage.tables import Series, Study
from storage.workitems import Attributes, WorkitemView, job_asked_for

RULE: Final = "UPS-RS"  # what made the job
REQUIRED: Final = (
    ("00741200", "ScheduledProcedureStepPriority"),
    ("00741204", "ProcedureStepLabel"),
    ("00404005", "ScheduledProcedureStepStartDateTime"),
    ("00404041", "InputReadinessState"),
)
PRIORITIES: Final = {"HIGH": 10, "MEDIUM": 0, "LOW": -10}
READINESS: Final = frozenset({"READY", "INCOMPLETE", "UNAVAILABLE"})
EMPTY_AT_CREATION: Final = (TRANSACTION_UID, "00741002", "00741216")
NEVER_UPDATED: Final = frozenset(
    {STATE, "00080016", "00080018", "00100010", "00100020", "00100030", "00100040", "00380010", "00741224"}
)
PERFORMED: Final = "00741216"
OF_COMPLETED: Final = ("00404028", "00404050", "00404019", "00404051", "00404033")
MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 20_000


def check_attributes(attributes: object) -> Attributes:
    """Return a DICOM JSON object of bounded size; raises BadRequest."""
    if not isinstance(attributes, dict):
        raise BadRequest("a workitem is one DICOM JSON object")
    if sum(1 for _ in _elements(attributes, 0)) > MAX_ELEMENTS:
        raise BadRequest(f"a workitem has at most {MAX_ELEMENTS} elements")
    return attributes


def _elements(item: dict[str, Any], depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise BadRequest(f"the sequences of a workitem are nested at most {MAX_DEPTH} deep")
    for tag, content in item.items():
        is_tag = len(tag) == 8 and set(tag) <= set("0123456789ABCDEFabcdef")
        if not is_tag or not isinstance(content, dict) or "BulkDataURI" in content:
            raise BadRequest("a workitem is DICOM JSON: tags of eight digits, each with vr and Value")
        values = content.get("Value", [])
        if not isinstance(values, list):
            raise BadRequest(f"the Value of {tag} is not a list")
        yield tag
        if content.get("vr") == "SQ":
            for inner in values:
                if not isinstance(inner, dict):
                    raise BadRequest(f"an item of {tag} is no object")
                yield from _elements(inner, depth + 1)


def prepare_creation(attributes: Attributes) -> tuple[Attributes, bool]:
    """Check a new workitem; gives it as it is kept, and whether something was added.

    Raises
    ------
    BadRequest
        If the standard does not allow it so.
    """
    if value_of(attributes, STATE) != JobState.SCHEDULED:
        raise BadRequest("Procedure Step State of a new workitem must be SCHEDULED")
    for tag in EMPTY_AT_CREATION:
        if attributes.get(tag, {}).get("Value"):
            raise BadRequest(f"{tag} must be empty in a new workitem")
    for tag, keyword in REQUIRED:
        if not value_of(attributes, tag):
            raise BadRequest(f"a new workitem needs {keyword} ({tag})")
    if value_of(attributes, "00741200") not in PRIORITIES:
        raise BadRequest("ScheduledProcedureStepPriority is HIGH, MEDIUM or LOW")
    if value_of(attributes, "00404041") not in READINESS:
        raise BadRequest("InputReadinessState is READY, INCOMPLETE or UNAVAILABLE")
    tag, worklist = element("WorklistLabel", WORKLIST)
    is_changed = not value_of(attributes, tag)
    return ({**attributes, tag: worklist} if is_changed else attributes), is_changed


def check_update(attributes: Attributes) -> Attributes:
    """Return what an update may change; raises BadRequest for what it may not."""
    forbidden = sorted(NEVER_UPDATED & set(attributes))
    if forbidden:
        raise BadRequest(f"an update does not change {', '.join(forbidden)}")
    return {tag: content for tag, content in attributes.items() if tag != TRANSACTION_UID}


def meets_final_state(view: WorkitemView, requested: JobState) -> bool:
    """Whether a workitem says what it must before its end. Source: PS3.4 CC.2.5.1.1.

    What a canceled one must say, the node adds.
    """
    if requested is not JobState.COMPLETED:
        return True
    performed = (view.attributes or {}).get(PERFORMED, {}).get("Value") or []
    return len(performed) == 1 and all(tag in performed[0] for tag in OF_COMPLETED)


def value_of(attributes: Attributes, tag: str) -> str:
    """First value of an element as text, "" when there is none."""
    values = attributes.get(tag, {}).get("Value") or [""]
    return values[0] if isinstance(values[0], str) else ""


def job_of(tx: Transaction, attributes: Attributes, settings: NodeSettings) -> str | None:
    """Create the job of a workitem that asks for our model; None when it does not.

    Raises
    ------
    BadRequest, ConflictingState, NotAskable
        If it asks for what cannot be run, or its images are not here.
    """
    wish = _wish_of(attributes)
    if wish is None:
        return None
    study, series = _input_of(tx, attributes)
    priority = PRIORITIES[value_of(attributes, "00741200")]
    request = replace(request_of(tx, wish, study, series, settings), rule=RULE, priority=priority)
    job_id = create_job(tx, request) or job_asked_for(tx, request)
    if job_id is None:
        raise ConflictingState("the same job was just removed: create the workitem again")
    return job_id


def _wish_of(attributes: Attributes) -> Wish | None:
    given = dict(_parameters(attributes))
    codes = attributes.get("00404018", {}).get("Value") or []
    ours = [code for code in codes if isinstance(code, dict) and value_of(code, "00080102") == OUR_SCHEME]
    if not given and not ours:
        return None
    model = given.get("model") or (value_of(ours[0], "00080100") if ours else "")
    query = given.get("query", "")
    if len(query) > MAX_QUERY:
        raise BadRequest(f"the query has more than {MAX_QUERY} characters")
    return Wish(model, query, given.get("target", ""))


def _parameters(attributes: Attributes) -> Iterator[tuple[str, str]]:
    """Text items of Scheduled Processing Parameters whose concept is one of ours."""
    for item in attributes.get("00741210", {}).get("Value") or []:
        names = item.get("0040A043", {}).get("Value") or []
        if names and value_of(names[0], "00080102") == OUR_SCHEME:
            yield value_of(names[0], "00080100"), value_of(item, "0040A160").strip()


def _input_of(tx: Transaction, attributes: Attributes) -> tuple[Study, Series]:
    items = attributes.get("00404021", {}).get("Value") or []
    if len(items) != 1:
        raise BadRequest("a workitem for a model names one series in InputInformationSequence")
    study_uid = str(checked_uid(value_of(items[0], "0020000D"), "StudyInstanceUID of the input"))
    series_uid = str(checked_uid(value_of(items[0], "0020000E"), "SeriesInstanceUID of the input"))
    study, series = find_study(tx, study_uid), tx.get(Series, series_uid)
    if study is None or series is None or not kept_instances(tx, study_uid, series_uid):
        raise ConflictingState("the series of the input is not stored here: send its images first")
    return study, series
