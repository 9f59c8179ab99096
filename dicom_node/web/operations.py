"""The operator's JSON API: studies, jobs, deliveries, what is wrong and why.

No patient attribute leaves by this way: studies are named by UID, as in the logs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import BadRequest, NotFound
from dicom_node.web.services import json_response, services_of, uid_in_path
from storage.corrections import OWN_RESULT, SEGMENTATIONS, overlay_series
from storage.database import Transaction
from storage.index import find_instance, find_study, series_of_study
from storage.tables import (
    Conflict,
    Delivery,
    DeliveryAttempt,
    Instance,
    Job,
    JobAttempt,
    Series,
    Study,
    Table,
)

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000

JsonObject = dict[str, Any]


def list_studies(request: Request) -> Response:
    """Answer GET /api/studies: the latest first."""
    limit, offset = page_of(request)
    with services_of(request).database.reading() as tx:
        order = (Study.last_received_at.desc(), Study.study_instance_uid)
        rows = tx.scalars(select(Study).order_by(*order).limit(limit).offset(offset)).all()
        return json_response({"studies": [study_line(tx, row) for row in rows]})


def show_study(request: Request) -> Response:
    """Answer GET /api/studies/{uid}: state, evidence, outcome, series, jobs, deliveries."""
    with services_of(request).database.reading() as tx:
        study = find_study(tx, uid_in_path(request, "study"))
        if study is None:
            raise NotFound("no study of this UID is stored here")
        return json_response(_study_page(tx, study))


def list_jobs(request: Request) -> Response:
    """Answer GET /api/jobs: the latest first; `state` and `study` narrow it."""
    limit, offset = page_of(request)
    statement = select(Job).order_by(Job.created_at.desc(), Job.job_id).limit(limit).offset(offset)
    for name, column in (("state", Job.state), ("study", Job.study_instance_uid)):
        if name in request.query_params:
            statement = statement.where(column == request.query_params[name][:64])
    with services_of(request).database.reading() as tx:
        return json_response({"jobs": [job_line(row) for row in tx.scalars(statement)]})


def show_job(request: Request) -> Response:
    """Answer GET /api/jobs/{id}: with its attempts and deliveries."""
    job_id = request.path_params["job_id"]
    with services_of(request).database.reading() as tx:
        job = tx.get(Job, job_id) if re.fullmatch(r"[0-9a-f]{1,32}", job_id) else None
        if job is None:
            raise NotFound("there is no job of this id")
        attempts = tx.scalars(
            select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.attempt)
        ).all()
        deliveries = _deliveries(tx, [job_id])
        return json_response(job_line(job) | {"attempts_made": _plain(attempts), "deliveries": deliveries})


def study_line(tx: Transaction, study: Study) -> JsonObject:
    """One study as it stands in a list."""
    origins = tx.execute(
        select(Instance.origin_kind, Instance.origin_detail, func.count())
        .where(Instance.study_instance_uid == study.study_instance_uid)
        .group_by(Instance.origin_kind, Instance.origin_detail)
        .order_by(Instance.origin_kind, Instance.origin_detail)
    ).all()
    jobs = select(Job).where(Job.study_instance_uid == study.study_instance_uid).order_by(Job.created_at)
    return {
        "study_instance_uid": study.study_instance_uid,
        "version": study.version,
        "state": study_state(study),
        "last_received_at": study.last_received_at,
        "completed_at": study.completed_at,
        "evidence": json.loads(study.evidence) if study.evidence else None,
        "outcome": study.outcome,
        "origins": [{"kind": kind, "from": detail, "instances": count} for kind, detail, count in origins],
        "jobs": [job_line(job) for job in tx.scalars(jobs)],
        "viewer": viewer_link(study.study_instance_uid, _latest_overlay(tx, study.study_instance_uid)),
    }


def viewer_link(study_instance_uid: str, overlay_series_uid: str | None) -> str:
    """Where the viewer opens the study; with an overlay on, where one is named."""
    link = f"/viewer?StudyInstanceUIDs={study_instance_uid}"
    return link if overlay_series_uid is None else f"{link}&initialSeriesInstanceUID={overlay_series_uid}"


def _latest_overlay(tx: Transaction, study_instance_uid: str) -> str | None:
    """The series of our latest SEG of the study, or of what a person made of it.

    Of its forms it is the BINARY one: every OHIF shows that with its own colours (interop.md 4.5).
    """
    statement = (
        select(Instance)
        .where(Instance.study_instance_uid == study_instance_uid, Instance.origin_kind == OWN_RESULT)
        .where(Instance.sop_class_uid.in_(SEGMENTATIONS), Instance.retired_as.is_(None))
        .order_by(Instance.received_at.desc(), Instance.series_instance_uid)
    )
    latest = tx.scalars(statement).first()
    return None if latest is None else overlay_series(tx, _binary_of(tx, latest))


def _binary_of(tx: Transaction, latest: Instance) -> Instance:
    """The BINARY SEG of the same job, its first where it has several."""
    job = tx.get(Job, latest.origin_detail)
    named = (json.loads(job.summary) if job and job.summary else {}).get("sop_instance_uids") or {}
    found = find_instance(tx, named["seg"]) if named.get("seg") else None
    return found or latest


def study_state(study: Study) -> str:
    """Receiving, complete (routing has not spoken yet), or routed."""
    if study.completed_at is None:
        return "RECEIVING"
    return "ROUTED" if study.outcome else "COMPLETE"


def job_line(job: Job) -> JsonObject:
    """One job as plain values."""
    return _values(job) | {"summary": json.loads(job.summary) if job.summary else None}


def delivery_line(delivery: Delivery) -> JsonObject:
    """One delivery as plain values."""
    return _values(delivery)


def _study_page(tx: Transaction, study: Study) -> JsonObject:
    page = study_line(tx, study)
    conflicts = (
        select(Conflict)
        .join(Instance, Instance.sop_instance_uid == Conflict.sop_instance_uid)
        .where(Instance.study_instance_uid == study.study_instance_uid)
    )
    return page | {
        "series": [_series_line(row) for row in series_of_study(tx, study.study_instance_uid)],
        "deliveries": _deliveries(tx, [job["job_id"] for job in page["jobs"]]),
        "conflicts": _plain(tx.scalars(conflicts).all()),
    }


def _series_line(series: Series) -> JsonObject:
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": series.modality,
        "series_number": series.series_number,
        "is_own_result": series.is_own_result,
    }


def _deliveries(tx: Transaction, job_ids: Sequence[str]) -> list[JsonObject]:
    rows = tx.scalars(
        select(Delivery)
        .where(Delivery.job_id.in_(job_ids))
        .order_by(Delivery.created_at, Delivery.delivery_id)
    ).all()
    attempts: dict[str, list[JsonObject]] = {}
    tried = (
        select(DeliveryAttempt)
        .where(DeliveryAttempt.delivery_id.in_([row.delivery_id for row in rows]))
        .order_by(DeliveryAttempt.delivery_id, DeliveryAttempt.attempt)
    )
    for attempt in tx.scalars(tried):
        attempts.setdefault(attempt.delivery_id, []).append(_values(attempt))
    return [_values(row) | {"attempts_made": attempts.get(row.delivery_id, [])} for row in rows]


def _plain(rows: Sequence[Table]) -> list[JsonObject]:
    return [_values(row) for row in rows]


def _values(row: Table) -> JsonObject:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def page_of(request: Request) -> tuple[int, int]:
    """`limit` and `offset` that a request asks for; raises BadRequest."""
    return (
        min(_whole_number(request.query_params, "limit", DEFAULT_LIMIT), MAX_LIMIT),
        _whole_number(request.query_params, "offset", 0),
    )


def _whole_number(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name, "")
    if not text:
        return default
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise BadRequest(f"{name} must be a whole number, 0 or more")
    return int(text)
