"""Jobs and deliveries as an operator lists them: newest first, or those that wait for a person."""

from collections.abc import Sequence

from sqlalchemy import or_, select

from storage.database import Transaction
from storage.deliveries import DeliveryState
from storage.jobs import JobState
from storage.tables import Delivery, Job


def newest_jobs(
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


def newest_deliveries(
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
