"""UPS workitems: those that other systems made, and our jobs as others see them; who hears of their changes.

The state table of the standard stands here as data. A workitem that asks for our model is carried out by a
job, whose state is then the workitem's: there is one truth about work, and it is in the job's row.

Source: PS3.4 CC.1.1 (states), CC.2.1 (change state), CC.2.2 (request cancel), CC.2.3 (subscribe).
"""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, delete, func, select, update

from storage.database import Transaction, database_now, now_after
from storage.errors import StorageError
from storage.jobs import JobRequest, JobState
from storage.leases import released
from storage.tables import Job, Study, Workitem, WorkitemSubscription
from storage.text import clean_text
from storage.upsert import insert_into

GLOBAL: Final = "1.2.840.10008.5.1.4.34.5"  # Source: PS3.4 CC.3.1
FILTERED: Final = "1.2.840.10008.5.1.4.34.5.1"
CANCELED_OUTCOME: Final = "CANCELED"  # of a job that somebody asked to stop
MOST_CANCEL_REQUESTS: Final = 100  # of one workitem
_OPEN: Final = (JobState.SCHEDULED, JobState.IN_PROGRESS)
_OF_JOB: Final = re.compile(r"2\.25\.([0-9]{1,39})", re.ASCII)

Attributes = dict[str, Any]  # DICOM JSON


class WorkitemRefused(StorageError):
    """A workitem cannot be changed as asked; `code` is the status of PS3.4 CC.2."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


REFUSALS: Final = {
    0xC300: "the workitem may no longer be updated",
    0xC301: "the correct Transaction UID was not provided",
    0xC302: "the workitem is already IN PROGRESS",
    0xC303: "a workitem may only become SCHEDULED by its creation",
    0xC304: "the workitem has not met the requirements of its final state",
    0xC307: "no workitem of this UID is here",
    0xC310: "the workitem is not yet IN PROGRESS",
    0xC311: "the workitem is already COMPLETED",
    0xC312: "the performer of the workitem cannot be contacted",
}
WARNINGS: Final = {
    0xB304: "The UPS is already in the requested state of CANCELED.",
    0xB306: "The UPS is already in the requested state of COMPLETED.",
}

_SCHEDULED, _IN_PROGRESS, _COMPLETED, _CANCELED = JobState
# Asked-for state -> present state -> code, with the correct Transaction UID; 0 = done.
# Source: PS3.4 Table CC.1.1-2.
STATE_TABLE: Final[dict[JobState, dict[JobState, int]]] = {
    _IN_PROGRESS: {_SCHEDULED: 0, _IN_PROGRESS: 0xC302, _COMPLETED: 0xC300, _CANCELED: 0xC300},
    _SCHEDULED: dict.fromkeys(JobState, 0xC303),
    _COMPLETED: {_SCHEDULED: 0xC310, _IN_PROGRESS: 0, _COMPLETED: 0xB306, _CANCELED: 0xC300},
    _CANCELED: {_SCHEDULED: 0xC310, _IN_PROGRESS: 0, _COMPLETED: 0xC300, _CANCELED: 0xB304},
}
_WRONG_TRANSACTION: Final = 0xC301


@dataclass(frozen=True)
class WorkitemView:
    """One workitem as it stands now."""

    workitem_uid: str
    state: JobState
    attributes: Attributes | None  # None: it is a job of ours that nobody created by UPS
    transaction_uid: str | None
    job: Job | None
    study: Study | None  # of the job
    cancel_requests: tuple[Attributes, ...]
    created_at: float
    started_at: float | None
    finished_at: float | None
    changed_at: float


@dataclass(frozen=True)
class Subscription:
    """Who is told of what."""

    workitem_uid: str  # or one of the well-known UIDs
    subscriber: str
    has_deletion_lock: bool
    filter: dict[str, str] | None
    created_at: float


def uid_of_job(job_id: str) -> str:
    """The workitem UID under which a job of ours is seen. Source: PS3.5 B.2 (UID from a UUID)."""
    return f"2.25.{int(job_id, 16)}"


def create_workitem(tx: Transaction, workitem_uid: str, attributes: Attributes, job_id: str | None) -> bool:
    """Enter a SCHEDULED workitem; False when its UID is taken."""
    if find_workitem(tx, workitem_uid) is not None:
        return False
    insert = (
        insert_into(tx, Workitem)
        .values(
            workitem_uid=workitem_uid,
            state=JobState.SCHEDULED,
            attributes=_dump(attributes),
            job_id=job_id,
            created_at=database_now(),
            changed_at=database_now(),
        )
        .on_conflict_do_nothing(index_elements=[Workitem.workitem_uid])
        .returning(Workitem.workitem_uid)
    )
    return tx.scalar(insert) is not None


def job_asked_for(tx: Transaction, request: JobRequest) -> str | None:
    """Return the id of the latest job that just this request made before, or None."""
    asked = (
        (Job.study_instance_uid, request.study_instance_uid),
        (Job.study_version, request.study_version),
        (Job.series_instance_uid, request.series_instance_uid),
        (Job.model, request.model),
        (Job.query, request.query),
    )
    statement = select(Job.job_id).where(*(column == value for column, value in asked))
    return tx.scalar(statement.order_by(Job.created_at.desc()).limit(1))


def find_workitem(tx: Transaction, workitem_uid: str) -> WorkitemView | None:
    """Return a workitem, of either kind, or None."""
    row = tx.get(Workitem, workitem_uid, populate_existing=True, with_for_update=_may_lock(tx))
    if row is not None:
        return _view(tx, row)
    match = _OF_JOB.fullmatch(workitem_uid)
    if match is None or int(match[1]) >= 2**128:
        return None
    job = tx.get(Job, uuid.UUID(int=int(match[1])).hex, populate_existing=True)
    return None if job is None else _view_of_job(tx, job)


def change_state(tx: Transaction, workitem_uid: str, requested: JobState, transaction_uid: str) -> str | None:
    """Change the state as the standard's table allows; gives the sentence of a warning, if it is one.

    Raises
    ------
    WorkitemRefused
        With the code of the table. The caller checks the requirements of final states before.
    """
    workitem = _require(tx, workitem_uid)
    code = code_of_change(workitem, requested, transaction_uid)
    if code in WARNINGS:
        return WARNINGS[code]
    if code:
        raise WorkitemRefused(code, REFUSALS[code])
    values: dict[str, Any] = {"state": requested, "changed_at": database_now()}
    if requested is JobState.IN_PROGRESS:
        values |= {"transaction_uid": transaction_uid, "started_at": database_now()}
    else:
        values |= {"finished_at": now_after(Workitem.started_at)}
    _update(tx, workitem_uid, values)
    return None


def code_of_change(workitem: WorkitemView, requested: JobState, transaction_uid: str) -> int:
    """What the state table says to a change; 0 = it is allowed. Source: PS3.4 Table CC.1.1-2."""
    if requested is JobState.SCHEDULED:
        return 0xC303
    if workitem.job is not None:  # this node performs it, and holds the lock
        return 0xC300 if workitem.state not in _OPEN else _WRONG_TRANSACTION
    is_locked = workitem.transaction_uid is not None
    if not transaction_uid or (is_locked and transaction_uid != workitem.transaction_uid):
        return _WRONG_TRANSACTION
    return STATE_TABLE[requested][workitem.state]


def update_workitem(tx: Transaction, workitem_uid: str, attributes: Attributes, transaction_uid: str) -> None:
    """Replace attributes; those of a final state never change again. Raises WorkitemRefused.

    Source: PS3.4 CC.2.6.3.
    """
    workitem = _require(tx, workitem_uid)
    if workitem.state not in _OPEN:
        raise WorkitemRefused(0xC300, REFUSALS[0xC300])
    if workitem.job is not None or workitem.attributes is None:
        raise WorkitemRefused(
            _WRONG_TRANSACTION, "this node performs the workitem, and nobody else changes it"
        )
    if workitem.state is JobState.IN_PROGRESS and transaction_uid != workitem.transaction_uid:
        raise WorkitemRefused(_WRONG_TRANSACTION, REFUSALS[_WRONG_TRANSACTION])
    merged = {**workitem.attributes, **attributes}
    _update(tx, workitem_uid, {"attributes": _dump(merged), "changed_at": database_now()})


def request_cancel(tx: Transaction, workitem_uid: str, request: Attributes, reason: str) -> str | None:
    """Cancel what nobody performs or we perform; tell the performer of everything else.

    Raises
    ------
    WorkitemRefused
        0xC311 when it is COMPLETED, 0xC307 when it is not here.
    """
    workitem = _require(tx, workitem_uid)
    if workitem.state is JobState.CANCELED:
        return WARNINGS[0xB304]
    if workitem.state is JobState.COMPLETED:
        raise WorkitemRefused(0xC311, REFUSALS[0xC311])
    if workitem.job is not None:
        _cancel_job(tx, workitem.job.job_id, reason)
        return None
    if workitem.state is JobState.SCHEDULED:
        times = {"started_at": database_now(), "finished_at": database_now()}
        _update(tx, workitem_uid, {"state": JobState.CANCELED, "changed_at": database_now(), **times})
    asked = [*workitem.cancel_requests, request][-MOST_CANCEL_REQUESTS:]
    _update(tx, workitem_uid, {"cancel_requests": json.dumps(asked), "changed_at": database_now()})
    return None


def _cancel_job(tx: Transaction, job_id: str, reason: str) -> None:
    """One UPDATE; a worker that holds the job loses it at its next heartbeat, and drops its result."""
    statement = (
        update(Job)
        .where(Job.job_id == job_id, Job.state.in_(_OPEN))
        .values(
            {
                Job.state: JobState.CANCELED,
                Job.outcome: CANCELED_OUTCOME,
                Job.reason: clean_text(reason, 1000),
                Job.started_at: func.coalesce(Job.started_at, database_now()),
                Job.finished_at: now_after(Job.started_at),
                Job.fence: Job.fence + 1,
                **released(Job),
            }
        )
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)


def newest_workitems(
    tx: Transaction, *, state: str | None, patient_id: str | None, most: int
) -> Iterator[WorkitemView]:
    """Yield the workitems of both kinds, newest first, `most` of each kind."""
    made = select(Workitem).order_by(Workitem.created_at.desc(), Workitem.workitem_uid)
    shown_elsewhere = select(Workitem.job_id).where(Workitem.job_id.is_not(None))
    ours = (
        select(Job, Study)
        .join(Study, Study.study_instance_uid == Job.study_instance_uid)
        .where(Job.job_id.not_in(shown_elsewhere))
        .order_by(Job.created_at.desc(), Job.job_id)
    )
    if state is not None:
        ours = ours.where(Job.state == state)
        made = made.where((Workitem.state == state) | Workitem.job_id.is_not(None))
    if patient_id is not None:
        ours = ours.where(Study.patient_id == patient_id)
    yield from _merged(tx, made.limit(most), ours.limit(most))


def _merged(tx: Transaction, made: Select[Workitem], ours: Select[Job, Study]) -> Iterator[WorkitemView]:
    made_views = [_view(tx, row) for row in tx.scalars(made)]
    our_views = [_view_of_row(job, study) for job, study in tx.execute(ours)]
    yield from sorted(made_views + our_views, key=lambda view: (-view.created_at, view.workitem_uid))


def subscribe(tx: Transaction, wanted: Subscription) -> None:
    """Enter a subscription, or change the one that is there."""
    values = {
        "has_deletion_lock": wanted.has_deletion_lock,
        "filter": None if wanted.filter is None else json.dumps(wanted.filter, sort_keys=True),
        "created_at": database_now(),
    }
    insert = insert_into(tx, WorkitemSubscription).values(
        workitem_uid=wanted.workitem_uid, subscriber=wanted.subscriber, **values
    )
    keys = [WorkitemSubscription.workitem_uid, WorkitemSubscription.subscriber]
    tx.execute(insert.on_conflict_do_update(index_elements=keys, set_=values))


def unsubscribe(tx: Transaction, workitem_uid: str, subscriber: str) -> None:
    """Remove a subscription; a global one takes those to single workitems with it.

    Source: PS3.4 CC.2.3.3.
    """
    statement = delete(WorkitemSubscription).where(WorkitemSubscription.subscriber == subscriber)
    if workitem_uid not in (GLOBAL, FILTERED):
        statement = statement.where(WorkitemSubscription.workitem_uid == workitem_uid)
    tx.execute(statement)


def suspend(tx: Transaction, workitem_uid: str, subscriber: str) -> None:
    """End a global subscription for workitems to come; those to single ones stay."""
    tx.execute(
        delete(WorkitemSubscription).where(
            WorkitemSubscription.subscriber == subscriber, WorkitemSubscription.workitem_uid == workitem_uid
        )
    )


def subscriptions_of(tx: Transaction, subscriber: str) -> list[Subscription]:
    """Return what a subscriber wants to hear of."""
    rows = tx.scalars(
        select(WorkitemSubscription)
        .where(WorkitemSubscription.subscriber == subscriber)
        .order_by(WorkitemSubscription.created_at)
    )
    return [
        Subscription(
            row.workitem_uid,
            row.subscriber,
            row.has_deletion_lock,
            json.loads(row.filter) if row.filter else None,
            row.created_at,
        )
        for row in rows
    ]


def _require(tx: Transaction, workitem_uid: str) -> WorkitemView:
    workitem = find_workitem(tx, workitem_uid)
    if workitem is None:
        raise WorkitemRefused(0xC307, REFUSALS[0xC307])
    return workitem


def _may_lock(tx: Transaction) -> bool:
    """Whether this transaction may write, on a database that locks rows."""
    connection = tx.connection()
    is_reading = connection.get_execution_options().get("is_reading", False)
    return connection.dialect.name == "postgresql" and not is_reading


def _update(tx: Transaction, workitem_uid: str, values: dict[str, Any]) -> None:
    tx.execute(
        update(Workitem)
        .where(Workitem.workitem_uid == workitem_uid)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def _view(tx: Transaction, row: Workitem) -> WorkitemView:
    job = None if row.job_id is None else tx.get(Job, row.job_id, populate_existing=True)
    study = None if job is None else tx.get(Study, job.study_instance_uid)
    finished_at = row.finished_at if job is None else job.finished_at
    started_at = row.started_at if job is None else job.started_at
    return WorkitemView(
        workitem_uid=row.workitem_uid,
        state=JobState(row.state if job is None else job.state),
        attributes=json.loads(row.attributes),
        transaction_uid=row.transaction_uid,
        job=job,
        study=study,
        cancel_requests=tuple(json.loads(row.cancel_requests or "[]")),
        created_at=row.created_at,
        started_at=started_at,
        finished_at=finished_at,
        changed_at=max(row.changed_at, started_at or 0.0, finished_at or 0.0),
    )


def _view_of_job(tx: Transaction, job: Job) -> WorkitemView:
    return _view_of_row(job, tx.get(Study, job.study_instance_uid))


def _view_of_row(job: Job, study: Study | None) -> WorkitemView:
    return WorkitemView(
        workitem_uid=uid_of_job(job.job_id),
        state=JobState(job.state),
        attributes=None,
        transaction_uid=None,
        job=job,
        study=study,
        cancel_requests=(),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        changed_at=max(job.created_at, job.started_at or 0.0, job.finished_at or 0.0),
    )


def _dump(attributes: Attributes) -> str:
    return json.dumps(attributes, sort_keys=True, ensure_ascii=False)
