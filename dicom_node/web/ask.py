"""Questions over HTTP: asked by POST, followed by GET, their results sent by POST when somebody wants that.

An answer is the model's words and the objects made of them. No patient attribute leaves by this way.
"""

import json
import re
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import BadRequest, BodyTooLarge, NotAskable, NotFound, UnsupportedMediaType
from dicom_node.progress import images_read
from dicom_node.questions import Question, Wish, ask
from dicom_node.uids import checked_uid
from dicom_node.web.login.who import asker_of
from dicom_node.web.media_types import JSON, parse_media_type
from dicom_node.web.operations import viewer_link
from dicom_node.web.services import DICOM_WEB, json_response, services_of
from storage.corrections import overlay_series
from storage.database import Transaction
from storage.deliveries import DeliveryState
from storage.index import find_instance
from storage.jobs import JobState
from storage.questions import answering_job, deliveries_of_result, is_held, send_results
from storage.tables import Delivery, Instance, Job

ADDRESS: Final = "/api/ask"
MAX_BODY_BYTES: Final = 16 * 1024
PROGRESS: Final = {
    JobState.SCHEDULED: "The question waits for the model.",
    JobState.IN_PROGRESS: "The model is at work.",
    JobState.COMPLETED: "Answered.",
    JobState.CANCELED: "There is no answer.",
}
SAID: Final = (
    "text", "diagnosis", "confidence", "reasoning", "conclusion", "target", "area_mm2", "area_px",
    "volume_ml", "ejection_fraction_percent", "remarks",
)  # fmt: skip

JsonObject = dict[str, Any]


class _Body(BaseModel):
    """What a question looks like; lengths are checked where they mean something."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    question: str
    series: str | None = None
    model: str = Field(default="", max_length=64)
    send: StrictBool = False


async def ask_question(request: Request) -> Response:
    """Answer POST /api/ask: 202 with the address at which the answer will be."""
    question = _question(_body(await _read(request)), _asker(request))
    return await run_in_threadpool(_ask, request, question)


def _ask(request: Request, question: Question) -> Response:
    services = services_of(request)
    with services.database.transaction() as tx:
        if question.is_sent:
            _require_destination(request)
        job_id = ask(tx, question, services.settings)
        line = answer_line(tx, tx.get_one(Job, job_id, populate_existing=True))
    answer = json_response(line, 202)
    answer.headers["Location"] = line["url"]
    return answer


def show_answer(request: Request) -> Response:
    """Answer GET /api/ask/{job}: how far it is, then what the model said and where the objects are."""
    with services_of(request).database.reading() as tx:
        return json_response(answer_line(tx, _job(tx, request)))


def send_answer(request: Request) -> Response:
    """Answer POST /api/ask/{job}/send: 202, the results go to the destinations as new results."""
    _require_destination(request)
    with services_of(request).database.transaction() as tx:
        job = _job(tx, request)
        if job.state == JobState.CANCELED:
            raise NotAskable("there is no answer that could be sent: ask again")
        send_results(tx, job.job_id)
        tx.expire_all()
        return json_response(answer_line(tx, _job(tx, request)), 202)


def answer_line(tx: Transaction, job: Job) -> JsonObject:
    """A question as it stands."""
    state = JobState(job.state)
    summary = json.loads(job.summary) if job.summary else {}
    objects = _objects(tx, summary)
    deliveries = deliveries_of_result(tx, job.job_id)
    overlay = next((overlay_series(tx, each) for kind, each in objects if kind == "seg"), None)
    return {
        "url": f"{ADDRESS}/{job.job_id}",
        "job_id": job.job_id,
        "state": state,
        "is_over": state in (JobState.COMPLETED, JobState.CANCELED),
        "progress": f"{PROGRESS[state]} {images_read(job)}".strip(),
        "question": job.query,
        "model": job.model,
        "model_version": job.model_version,
        "study_instance_uid": job.study_instance_uid,
        "series_instance_uid": job.series_instance_uid,
        "outcome": job.outcome,
        "reason": job.reason,
        "answer": {name: summary[name] for name in SAID if summary.get(name) not in (None, "", [])},
        "objects": [_object(kind, each) for kind, each in objects],
        "viewer": viewer_link(job.study_instance_uid, overlay),
        "is_sent": not job.is_kept_here,
        "can_be_sent": any(is_held(each) for each in deliveries),
        "deliveries": [_delivery(each) for each in deliveries],
    }


def _objects(tx: Transaction, summary: JsonObject) -> list[tuple[str, Instance]]:
    """What the answer was made into, the masks first."""
    named = (summary.get("sop_instance_uids") or {}).items()
    found = ((kind, find_instance(tx, uid)) for kind, uid in named if uid)
    return [(kind, row) for kind, row in found if row is not None]


def _object(kind: str, row: Instance) -> JsonObject:
    return {
        "kind": kind.split(maxsplit=1)[0],
        "sop_class_uid": row.sop_class_uid,
        "sop_instance_uid": row.sop_instance_uid,
        "series_instance_uid": row.series_instance_uid,
        "address": f"{DICOM_WEB}/studies/{row.study_instance_uid}/series/{row.series_instance_uid}"
        f"/instances/{row.sop_instance_uid}",
    }


def _delivery(delivery: Delivery) -> JsonObject:
    held = is_held(delivery)
    return {
        "destination": delivery.destination,
        "sop_instance_uid": delivery.sop_instance_uid,
        "state": "HELD" if held else DeliveryState(delivery.state),
    }


async def _read(request: Request) -> bytes:
    if parse_media_type(request.headers.get("content-type", "")).essence != JSON:
        raise UnsupportedMediaType(f"a question comes as {JSON}")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"a question is at most {MAX_BODY_BYTES} bytes")
    return body


def _body(content: bytes) -> _Body:
    try:
        return _Body.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise BadRequest(
            f"{where}: {first['msg']}; send a JSON object of study and question, and series, model, send"
        ) from error


def _question(body: _Body, asker: str) -> Question:
    study = str(checked_uid(body.study, "study"))
    series = None if body.series is None else str(checked_uid(body.series, "series"))
    return Question(study, series, Wish(body.model, body.question), body.send, asker)


def _require_destination(request: Request) -> None:
    if not services_of(request).settings.destinations:
        raise NotAskable("this node has nobody to send results to: add one to [[destinations]]")


def _job(tx: Transaction, request: Request) -> Job:
    job_id = request.path_params["job_id"]
    job = tx.get(Job, job_id) if re.fullmatch(r"[0-9a-f]{32}", job_id) else None
    if job is None:
        raise NotFound("there is no question of this id: ask with POST /api/ask")
    return answering_job(tx, job)


def _asker(request: Request) -> str:
    return f"question, {asker_of(request)}"
