"""Results that stay here until somebody has them sent: held back as they are queued, let go on request."""

import json
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select, update

from storage.database import Transaction
from storage.deliveries import DeliveryState, requeue_delivery
from storage.jobs import JobState
from storage.tables import Delivery, Instance, Job

HELD: Final = "It stays here until somebody has it sent."


def hold_results(tx: Transaction, job_id: str) -> None:
    """Hold back what the job has queued, where it was asked to; in the transaction that queued it."""
    job = tx.get(Job, job_id, populate_existing=True)
    if job is None or not job.is_kept_here:
        return
    queued = update(Delivery).where(Delivery.job_id == job_id, Delivery.state == DeliveryState.QUEUED)
    held = queued.values(state=DeliveryState.WITHDRAWN, reason=HELD)
    tx.execute(held.execution_options(synchronize_session=False))


def answering_job(tx: Transaction, job: Job) -> Job:
    """The job that gives the answer: that of another series, where this one is a slice of its stack."""
    leader = json.loads(job.summary or "{}").get("analysed_with")
    statement = select(Job).where(
        Job.study_instance_uid == job.study_instance_uid,
        Job.study_version == job.study_version,
        Job.series_instance_uid == leader,
        Job.model == job.model,
        Job.query == job.query,
    )
    found = tx.scalars(statement.order_by(Job.repeat.desc())).first()
    return job if leader is None or found is None else found


def send_results(tx: Transaction, job_id: str) -> int:
    """Have the results of a job sent, once it has any; gives how many deliveries were let go."""
    makers = _makers(tx, job_id)
    kept = update(Job).where(Job.job_id.in_(makers)).values(is_kept_here=False)
    tx.execute(kept.execution_options(synchronize_session=False))
    statement = (
        select(Delivery.delivery_id)
        .join(Instance, Instance.sop_instance_uid == Delivery.sop_instance_uid)
        .where(Delivery.job_id.in_(makers), Instance.retired_as.is_(None))
        .where(Delivery.state == DeliveryState.WITHDRAWN, Delivery.reason == HELD)
    )
    return sum(requeue_delivery(tx, delivery_id) for delivery_id in tx.scalars(statement).all())


def send_repeated(tx: Transaction, job_id: str) -> None:
    """Where a job that is not to be kept here ends with the result of one that was, have that sent."""
    job = tx.get(Job, job_id, populate_existing=True)
    if job is not None and not job.is_kept_here:
        send_results(tx, job_id)


def send_alike(tx: Transaction, series_instance_uid: str, model: str, query: str) -> None:
    """Have sent what somebody asked before a rule asked the same of the same series."""
    statement = select(Job.job_id).where(
        Job.series_instance_uid == series_instance_uid, Job.model == model, Job.query == query
    )
    for job_id in tx.scalars(statement.where(Job.is_kept_here.is_(True))).all():
        send_results(tx, job_id)


def put_first(tx: Transaction, job_id: str, priority: int) -> None:
    """Let a job that still waits go before others."""
    waiting = update(Job).where(
        Job.job_id == job_id, Job.state == JobState.SCHEDULED, Job.priority < priority
    )
    tx.execute(waiting.values(priority=priority).execution_options(synchronize_session=False))


def deliveries_of_result(tx: Transaction, job_id: str) -> Sequence[Delivery]:
    """Return the deliveries of what a job ended with, also where an earlier job had made it."""
    statement = select(Delivery).where(Delivery.job_id.in_(_makers(tx, job_id)))
    order = (Delivery.destination, Delivery.delivery_id)
    return tx.scalars(statement.order_by(*order).execution_options(populate_existing=True)).all()


def is_held(delivery: Delivery) -> bool:
    """Whether the delivery waits for somebody who has it sent."""
    return delivery.state == DeliveryState.WITHDRAWN and delivery.reason == HELD


def _makers(tx: Transaction, job_id: str) -> list[str]:
    """The job, and those that made the objects it ended with: the same may have been asked before."""
    summary = tx.scalar(select(Job.summary).where(Job.job_id == job_id))
    uids = [uid for uid in (json.loads(summary or "{}").get("sop_instance_uids") or {}).values() if uid]
    made = select(Instance.origin_detail).where(
        Instance.sop_instance_uid.in_(uids), Instance.origin_kind == "OWN RESULT"
    )
    return sorted({job_id, *tx.scalars(made)})
