"""UPS-RS: jobs seen as workitems, and workitems of others - create, search, change state, cancel.

A workitem whose processing parameters hold a query, or whose workitem code is of our scheme, runs a model on
the series that its input names, through the same jobs as everything else.

Source: PS3.18 11, PS3.4 CC.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from pydicom.uid import generate_uid
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import BadRequest, BodyTooLarge, ConflictingState, NotFound, UnsupportedMediaType
from dicom_node.uids import checked_uid
from dicom_node.web.media_types import DICOM_JSON, JSON, parse_media_type
from dicom_node.web.qido import AGENT, MAX_LIMIT, OTHER_PARAMETERS, number_in, require_json
from dicom_node.web.services import (
    DICOM_WEB,
    WebServices,
    dicom_json_response,
    json_response,
    services_of,
    uid_in_path,
)
from dicom_node.web.ups_create import (
    check_attributes,
    check_update,
    job_of,
    meets_final_state,
    prepare_creation,
    value_of,
)
from dicom_node.web.ups_match import Path, matches, read_path
from dicom_node.web.ups_view import STATE, TRANSACTION_UID, render_workitem
from storage.database import Transaction
from storage.jobs import JobState
from storage.workitems import (
    REFUSALS,
    Attributes,
    WorkitemRefused,
    WorkitemView,
    change_state,
    code_of_change,
    create_workitem,
    find_workitem,
    newest_workitems,
    request_cancel,
    update_workitem,
)

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
DEFAULT_LIMIT: Final = 200
MAX_SEARCHED: Final = 10_000  # workitems of each kind that one search looks at
SOP_INSTANCE_UID: Final = "00080018"
PATIENT_ID: Final = "00100020"
REASON: Final = "00741238"


async def create(request: Request) -> Response:
    """Answer POST .../workitems[?workitem={uid}]."""
    attributes = await read_attributes(request)
    return await run_in_threadpool(_create, request, attributes)


def _create(request: Request, attributes: Attributes) -> Response:
    services = services_of(request)
    uid = _uid_to_create(request, attributes)
    prepared, is_changed = prepare_creation(attributes)
    with services.database.transaction() as tx:
        if find_workitem(tx, uid) is not None:
            raise ConflictingState("a workitem of this UID is here already")
        job_id = job_of(tx, prepared, services.settings)
        if not create_workitem(tx, uid, {**prepared, SOP_INSTANCE_UID: _uid_element(uid)}, job_id):
            raise ConflictingState("a workitem of this UID is here already")
    address = f"{DICOM_WEB}/workitems/{uid}"
    response = Response(None, 201, {"Location": address, "Content-Location": address})
    if is_changed:
        response.headers["Warning"] = f'{AGENT} "The Workitem was created with modifications."'
    return response


def _uid_element(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}


def _uid_to_create(request: Request, attributes: Attributes) -> str:
    """The UID in the address, in either of the forms in use, or in the data set, or a new one."""
    bare = request.url.query if request.url.query and "=" not in request.url.query else ""
    named = request.query_params.get("workitem") or request.query_params.get("AffectedSOPInstanceUID") or bare
    given = named or value_of(attributes, SOP_INSTANCE_UID)
    return str(checked_uid(given, "UID of the workitem")) if given else str(generate_uid(prefix=None))


def search(request: Request) -> Response:
    """Answer GET .../workitems."""
    require_json(request)
    keys, ignored = _keys(request)
    limit = min(number_in(request, "limit", DEFAULT_LIMIT), MAX_LIMIT)
    offset = number_in(request, "offset", 0)
    with services_of(request).database.reading() as tx:
        found, is_more = _page(tx, keys, limit, offset)
    response = dicom_json_response(found)
    if is_more:
        response.headers.append("Warning", f'{AGENT} "There are additional results that can be requested"')
    if ignored:
        text = f'{AGENT} "{ignored} parameters that name no attribute were not used"'
        response.headers.append("Warning", text)
    return response


def _keys(request: Request) -> tuple[dict[Path, str], int]:
    keys: dict[Path, str] = {}
    ignored = 0
    for name, value in request.query_params.multi_items():
        if name.lower() in OTHER_PARAMETERS:
            continue
        path = read_path(name)
        if path is None:
            ignored += 1
        else:
            keys[path] = value
    return keys, ignored


def _page(tx: Transaction, keys: dict[Path, str], limit: int, offset: int) -> tuple[list[Attributes], bool]:
    state, patient_id = keys.get((STATE,)), keys.get((PATIENT_ID,))
    is_plain = patient_id and not set(patient_id) & set("*?\\")
    workitems = newest_workitems(
        tx,
        state=state if state in set(JobState) else None,
        patient_id=patient_id if is_plain else None,
        most=MAX_SEARCHED,
    )
    found: list[Attributes] = []
    seen = 0
    for view in workitems:
        rendered = render_workitem(tx, view, is_listed=True)
        if not matches(rendered, keys):
            continue
        seen += 1
        if seen > offset + limit:
            return found, True
        if seen > offset:
            found.append(rendered)
    return found, False


def retrieve(request: Request) -> Response:
    """Answer GET .../workitems/{workitem}; the lock is never shown."""
    require_json(request)
    uid = uid_in_path(request, "workitem")
    with services_of(request).database.reading() as tx:
        view = find_workitem(tx, uid)
        if view is None:
            raise NotFound(REFUSALS[0xC307])
        return dicom_json_response(render_workitem(tx, view))


async def update(request: Request) -> Response:
    """Answer POST .../workitems/{workitem}[?transaction-uid={uid}]."""
    attributes = await read_attributes(request)
    return await run_in_threadpool(_update, request, attributes)


def _update(request: Request, attributes: Attributes) -> Response:
    bare = request.url.query if request.url.query and "=" not in request.url.query else ""
    transaction = request.query_params.get("transaction-uid") or bare or value_of(attributes, TRANSACTION_UID)
    changes = check_update(attributes)
    uid = uid_in_path(request, "workitem")
    try:
        with services_of(request).database.transaction() as tx:
            update_workitem(tx, uid, changes, transaction)
    except WorkitemRefused as error:
        return refusal(error)
    return Response(None, 200, {"Content-Location": f"{DICOM_WEB}/workitems/{uid}"})


async def put_state(request: Request) -> Response:
    """Answer PUT .../workitems/{workitem}/state."""
    attributes = await read_attributes(request)
    return await run_in_threadpool(_put_state, request, attributes)


def _put_state(request: Request, attributes: Attributes) -> Response:
    requested = value_of(attributes, STATE)
    if requested not in set(JobState):
        raise BadRequest("Procedure Step State is SCHEDULED, IN PROGRESS, COMPLETED or CANCELED")
    transaction = value_of(attributes, TRANSACTION_UID)
    if transaction:
        checked_uid(transaction, "Transaction UID")
    uid = uid_in_path(request, "workitem")
    try:
        warning = _change(services_of(request), uid, JobState(requested), transaction)
    except WorkitemRefused as error:
        return refusal(error)
    response = Response(None, 200, {"Content-Location": f"{DICOM_WEB}/workitems/{uid}"})
    if warning:
        response.headers["Warning"] = f'{AGENT} "{warning}"'
    return response


def _change(services: WebServices, uid: str, requested: JobState, transaction: str) -> str | None:
    with services.database.transaction() as tx:
        view = find_workitem(tx, uid)
        if view is not None and _lacks_final_state(view, requested, transaction):
            raise WorkitemRefused(0xC304, REFUSALS[0xC304])
        return change_state(tx, uid, requested, transaction)


def _lacks_final_state(view: WorkitemView, requested: JobState, transaction: str) -> bool:
    is_allowed = code_of_change(view, requested, transaction) == 0
    return is_allowed and not meets_final_state(view, requested)


async def request_cancellation(request: Request) -> Response:
    """Answer POST .../workitems/{workitem}/cancelrequest."""
    attributes = await read_attributes(request, is_optional=True)
    return await run_in_threadpool(_request_cancellation, request, attributes)


def _request_cancellation(request: Request, attributes: Attributes) -> Response:
    reason = value_of(attributes, REASON) or "canceled by a request of UPS-RS"
    try:
        with services_of(request).database.transaction() as tx:
            warning = request_cancel(tx, uid_in_path(request, "workitem"), attributes, reason)
    except WorkitemRefused as error:
        return refusal(error)
    response = Response(None, 202)
    if warning:
        response.headers["Warning"] = f'{AGENT} "{warning}"'
    return response


def refusal(error: WorkitemRefused) -> Response:
    """Answer a request that the state table refuses. Source: PS3.18 11.6.3, 11.7.3, 11.8.3."""
    status = 404 if error.code == 0xC307 else 409
    content = {"error": str(error), "code": f"{error.code:04X}", "advice": ConflictingState.advice}
    response = json_response(content, status)
    response.headers["Warning"] = f'{AGENT} "{error.code:04X}: {error}"'
    return response


async def read_attributes(request: Request, *, is_optional: bool = False) -> Attributes:
    """Read the body, one DICOM JSON object alone or in an array; raises RequestRefused."""
    body = await _read_body(request.stream())
    if is_optional and not body.strip():
        return {}
    kind = parse_media_type(request.headers.get("content-type", ""))
    if kind.essence not in (DICOM_JSON, JSON):
        raise UnsupportedMediaType(f"a workitem comes as {DICOM_JSON}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    return check_attributes(content)


async def _read_body(stream: AsyncIterator[bytes]) -> bytes:
    body = b""
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"a workitem is at most {MAX_BODY_BYTES} bytes")
    return body
