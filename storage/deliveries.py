"""Outbox of results to send; one DeliveryAttempt row per try, written before anything is sent."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import null, select, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.leases import granted, is_due, released
from storage.tables import Delivery, DeliveryAttempt
from storage.text import clean_text
from storage.upsert import insert_into


class DeliveryState(StrEnum):
    """How far one instance is on its way to one destination."""

    QUEUED = "QUEUED"  # also while it is being sent, and between two attempts
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"  # given up; an operator sees it


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this worker holds while its lease runs; `fence` must be shown at every later step."""

    delivery_id: str
    sop_instance_uid: str
    destination: str
    job_id: str | None
    fence: int
    attempt: int
    age_s: float  # since it was queued, database clock


def queue_delivery(
    tx: Transaction, sop_instance_uid: str, destination: str, job_id: str | None
) -> str | None:
    """Queue an instance for a destination and return the delivery's id; None when it was queued before."""
    insert = (
        insert_into(tx, Delivery)
        .values(
            delivery_id=uuid.uuid4().hex,
            sop_instance_uid=sop_instance_uid,
            destination=destination,
            job_id=job_id,
            state=DeliveryState.QUEUED,
            fence=0,
            attempts=0,
            created_at=database_now(),
        )
        .on_conflict_do_nothing(index_elements=[Delivery.sop_instance_uid, Delivery.destination])
        .returning(Delivery.delivery_id)
    )
    return tx.scalar(insert)


def claim_delivery(tx: Transaction, delivery_id: str, worker: str, lease_s: float) -> ClaimedDelivery | None:
    """Take the delivery for `lease_s` seconds; None when it is finished, held or waiting."""
    statement = (
        update(Delivery)
        .where(Delivery.delivery_id == delivery_id, is_due(Delivery, (DeliveryState.QUEUED,)))
        .values(granted(Delivery, worker, lease_s))
        .returning(*_CLAIMED)
        .execution_options(synchronize_session=False)
    )
    row = tx.execute(statement).mappings().first()
    if row is None:
        return None
    claimed = ClaimedDelivery(**row)
    _end_attempts(tx, delivery_id, None, "the lease ran out: its worker died or hung")
    tx.execute(
        insert_into(tx, DeliveryAttempt).values(
            delivery_id=delivery_id,
            attempt=claimed.attempt,
            worker=clean_text(worker, 256),
            started_at=database_now(),
        )
    )
    return claimed


def heartbeat_delivery(tx: Transaction, delivery_id: str, fence: int, lease_s: float) -> bool:
    """Hold the delivery for another `lease_s` seconds; False when it is no longer this worker's."""
    return _update_held(tx, delivery_id, fence, {Delivery.lease_expires_at: database_now() + lease_s})


def finish_delivery(
    tx: Transaction, delivery_id: str, fence: int, state: DeliveryState, status: str, *, detail: str = ""
) -> None:
    """End the delivery as DELIVERED or FAILED, with the destination's answer as `status`.

    Raises
    ------
    LeaseLost
        If another worker claimed the delivery meanwhile.
    IllegalTransition
        If the delivery is finished already, or `state` is QUEUED.
    """
    if state is DeliveryState.QUEUED:
        raise IllegalTransition(f"delivery {delivery_id}", DeliveryState.QUEUED, state)
    is_delivered = state is DeliveryState.DELIVERED
    values = {
        Delivery.state: state,
        Delivery.delivered_at: database_now() if is_delivered else null(),
        Delivery.last_status: clean_text(status, 64),
        **released(Delivery),
    }
    if not _update_held(tx, delivery_id, fence, values):
        _explain(tx, delivery_id, fence, state)
    _end_attempts(tx, delivery_id, status, detail)


def retry_delivery_later(
    tx: Transaction, delivery_id: str, fence: int, status: str, delay_s: float, *, detail: str = ""
) -> None:
    """Let go of the delivery so that it is due again after `delay_s` seconds; raises as `finish_delivery`."""
    values = {Delivery.last_status: clean_text(status, 64), **released(Delivery, delay_s)}
    if not _update_held(tx, delivery_id, fence, values):
        _explain(tx, delivery_id, fence, DeliveryState.FAILED)
    _end_attempts(tx, delivery_id, status, detail)


def due_deliveries(tx: Transaction, limit: int = 100) -> list[str]:
    """Return the ids of deliveries that somebody should claim now, the oldest first."""
    statement = select(Delivery.delivery_id).where(is_due(Delivery, (DeliveryState.QUEUED,)))
    return list(tx.scalars(statement.order_by(Delivery.created_at).limit(limit)))


_CLAIMED = (
    Delivery.delivery_id,
    Delivery.sop_instance_uid,
    Delivery.destination,
    Delivery.job_id,
    Delivery.fence,
    Delivery.attempts.label("attempt"),
    (database_now() - Delivery.created_at).label("age_s"),
)


def _update_held(
    tx: Transaction, delivery_id: str, fence: int, values: Mapping[InstrumentedAttribute[Any], Any]
) -> bool:
    held = (
        Delivery.delivery_id == delivery_id,
        Delivery.fence == fence,
        Delivery.state == DeliveryState.QUEUED,
        Delivery.leased_by.is_not(None),
    )
    statement = (
        update(Delivery)
        .where(*held)
        .values(values)
        .returning(Delivery.delivery_id)
        .execution_options(synchronize_session=False)
    )
    return tx.execute(statement).first() is not None


def _explain(tx: Transaction, delivery_id: str, fence: int, requested: DeliveryState) -> None:
    statement = select(Delivery.state, Delivery.fence).where(Delivery.delivery_id == delivery_id)
    row = tx.execute(statement).first()
    if row is None:
        raise InstanceMissing(f"no delivery {delivery_id}")
    if row.fence == fence and row.state != DeliveryState.QUEUED:
        raise IllegalTransition(f"delivery {delivery_id}", row.state, requested)
    raise LeaseLost(f"delivery {delivery_id}", fence)


def _end_attempts(tx: Transaction, delivery_id: str, status: str | None, detail: str) -> None:
    statement = (
        update(DeliveryAttempt)
        .where(DeliveryAttempt.delivery_id == delivery_id, DeliveryAttempt.ended_at.is_(None))
        .values(
            ended_at=database_now(),
            status=None if status is None else clean_text(status, 64),
            detail=clean_text(detail, 1000),
        )
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)
