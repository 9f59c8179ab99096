"""Jobs, deliveries and conflicts as an operator lists them: newest first, with every attempt."""

from collections.abc import Sequence

from sqlalchemy import or_, select

from storage.database import Transaction
from storage.deliveries import DeliveryState
from storage.jobs import JobState
from storage.tables import Conflict, Delivery, DeliveryAttempt, Job, JobAttempt


def list_jobs(
    tx: Transaction,
    *,
    state: JobState | None = None,
    study_instance_uid: str | None = None,
    limit: int = 100,
    offset: int = 0,
) -> Sequence[Job]:
    """Return jobs, the newest first."""
    statement = select(Job).order_by(Job.created_at.desc(), Job.job_id).limit(limit).offset(offset)
    if state is not None:
        statement = statement.where(Job.state == state)
    if study_instance_uid is not None:
        statement = statement.where(Job.study_instance_uid == study_instance_uid)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def attempts_of_job(tx: Transaction, job_id: str) -> Sequence[JobAttempt]:
    """Return every try at the job, the first one first."""
    statement = select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.attempt)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def list_deliveries(
    tx: Transaction,
    *,
    state: DeliveryState | None = None,
    job_id: str | None = None,
    limit: int = 100,
    offset: int = 0,
) -> Sequence[Delivery]:
    """Return deliveries, the newest first."""
    order = (Delivery.created_at.desc(), Delivery.delivery_id)
    statement = select(Delivery).order_by(*order).limit(limit).offset(offset)
    if state is not None:
        statement = statement.where(Delivery.state == state)
    if job_id is not None:
        statement = statement.where(Delivery.job_id == job_id)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def stuck_deliveries(tx: Transaction, limit: int = 100) -> Sequence[Delivery]:
    """Return the deliveries that wait for a person, with the reason: dead letters, and answers that stay."""
    statement = (
        select(Delivery)
        .where(Delivery.reason.is_not(None))
        .where(Delivery.state.in_((DeliveryState.QUEUED, DeliveryState.FAILED, DeliveryState.DELIVERED)))
        .where(or_(Delivery.state != DeliveryState.DELIVERED, Delivery.commitment_due_at.is_not(None)))
        .order_by(Delivery.created_at, Delivery.delivery_id)
        .limit(limit)
    )
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def attempts_of_delivery(tx: Transaction, delivery_id: str) -> Sequence[DeliveryAttempt]:
    """Return every try at the delivery, the first one first."""
    condition = DeliveryAttempt.delivery_id == delivery_id
    statement = select(DeliveryAttempt).where(condition).order_by(DeliveryAttempt.attempt)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def list_conflicts(tx: Transaction, *, limit: int = 100, offset: int = 0) -> Sequence[Conflict]:
    """Return the quarantined contents, the newest first; their files are kept until somebody decides."""
    statement = select(Conflict).order_by(Conflict.id.desc()).limit(limit).offset(offset)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()
