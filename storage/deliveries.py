"""Outbox of results to send; one DeliveryAttempt row per try, written before anything is sent."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, null, select, union, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now, now_after
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.leases import LONGEST_LEASE_S, granted, has_come, is_due, released
from storage.tables import Delivery, DeliveryAttempt
from storage.text import clean_text
from storage.upsert import insert_into


class DeliveryState(StrEnum):
    """How far one instance is on its way to one destination."""

    QUEUED = "QUEUED"  # also while it is being sent, and between two attempts
    DELIVERED = "DELIVERED"  # the destination has it; where it commits to keeping it, that is still to come
    CONFIRMED = "CONFIRMED"  # by Storage Commitment
    FAILED = "FAILED"  # the dead letter: given up, an operator sees it and may requeue it
    WITHDRAWN = "WITHDRAWN"  # not to be sent any more: what it says is no longer true


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this worker holds while its lease runs; `fence` must be shown at every later step."""

    delivery_id: str
    sop_instance_uid: str
    destination: str
    job_id: str | None
    fence: int
    attempt: int
    age_s: float  # since it was queued, or requeued by an operator; database clock


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
            queued_at=database_now(),
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


def claim_deliveries(
    tx: Transaction, destination: str, worker: str, lease_s: float, limit: int
) -> list[ClaimedDelivery]:
    """Take up to `limit` due deliveries of one destination, the oldest first."""
    ids = tx.scalars(
        select(Delivery.delivery_id)
        .where(Delivery.destination == destination, is_due(Delivery, (DeliveryState.QUEUED,)))
        .order_by(Delivery.created_at, Delivery.delivery_id)
        .limit(limit)
    ).all()
    claims = (claim_delivery(tx, delivery_id, worker, lease_s) for delivery_id in ids)
    return [claimed for claimed in claims if claimed is not None]


def heartbeat_delivery(tx: Transaction, delivery_id: str, fence: int, lease_s: float) -> bool:
    """Hold the delivery for another `lease_s` seconds; False when it is no longer this worker's."""
    return _update_held(tx, delivery_id, fence, {Delivery.lease_expires_at: database_now() + lease_s})


@dataclass(frozen=True)
class Settled:
    """How one attempt ended: the answer in its short form, and what a person reads of it."""

    status: str
    detail: str = ""
    reason: str | None = None  # what an operator should do; None = nothing is wrong


def finish_delivery(
    tx: Transaction,
    delivery_id: str,
    fence: int,
    state: DeliveryState,
    settled: Settled,
    *,
    is_committed_later: bool = False,
) -> None:
    """End the delivery as DELIVERED or FAILED; with `is_committed_later`, commitment is asked for next.

    Raises
    ------
    LeaseLost
        If another worker claimed the delivery meanwhile.
    IllegalTransition
        If the delivery is finished already, or `state` is not one of the two.
    """
    if state not in {DeliveryState.DELIVERED, DeliveryState.FAILED}:
        raise IllegalTransition(f"delivery {delivery_id}", DeliveryState.QUEUED, state)
    is_delivered = state is DeliveryState.DELIVERED
    values = {
        Delivery.state: state,
        Delivery.delivered_at: now_after(Delivery.queued_at) if is_delivered else null(),
        Delivery.commitment_uid: null(),
        Delivery.commitment_due_at: database_now() if is_delivered and is_committed_later else null(),
        **_said(settled),
        **released(Delivery),
    }
    if not _update_held(tx, delivery_id, fence, values):
        _explain(tx, delivery_id, fence, state)
    _end_attempts(tx, delivery_id, settled.status, settled.detail)


def retry_delivery_later(
    tx: Transaction, delivery_id: str, fence: int, settled: Settled, delay_s: float
) -> None:
    """Let go of the delivery so that it is due again after `delay_s` seconds; raises as `finish_delivery`."""
    values = {**_said(settled), **released(Delivery, delay_s)}
    if not _update_held(tx, delivery_id, fence, values):
        _explain(tx, delivery_id, fence, DeliveryState.FAILED)
    _end_attempts(tx, delivery_id, settled.status, settled.detail)


def requeue_delivery(tx: Transaction, delivery_id: str) -> bool:
    """Send it again from now on, whatever became of it; its age counts anew. False when it is being sent."""
    return _requeue(tx, Delivery.delivery_id == delivery_id) == 1


def requeue_failed(tx: Transaction, destination: str | None = None) -> int:
    """Requeue every dead letter, of one destination or of all; returns how many."""
    conditions = [Delivery.state == DeliveryState.FAILED]
    if destination is not None:
        conditions.append(Delivery.destination == destination)
    return _requeue(tx, *conditions)


def withdraw_deliveries(tx: Transaction, sop_instance_uids: Sequence[str]) -> int:
    """Stop sending these instances; what has arrived stays there. Returns how many were still to be sent."""
    statement = (
        update(Delivery)
        .where(Delivery.sop_instance_uid.in_(sop_instance_uids))
        .where(Delivery.state.in_((DeliveryState.QUEUED, DeliveryState.FAILED)))
        .values({Delivery.state: DeliveryState.WITHDRAWN, Delivery.reason: null(), **released(Delivery)})
        .values({Delivery.fence: Delivery.fence + 1})
        .returning(Delivery.delivery_id)
        .execution_options(synchronize_session=False)
    )
    return len(tx.execute(statement).all())


def due_destinations(tx: Transaction) -> list[str]:
    """Return the destinations for which there is something to send, or a commitment to ask for."""
    to_send = select(Delivery.destination).where(is_due(Delivery, (DeliveryState.QUEUED,)))
    to_ask = select(Delivery.destination).where(*_unconfirmed(), Delivery.commitment_due_at <= database_now())
    return sorted(tx.scalars(union(to_send, to_ask)))


_CLAIMED = (
    Delivery.delivery_id,
    Delivery.sop_instance_uid,
    Delivery.destination,
    Delivery.job_id,
    Delivery.fence,
    Delivery.attempts.label("attempt"),
    (database_now() - Delivery.queued_at).label("age_s"),
)


def _said(settled: Settled) -> dict[InstrumentedAttribute[Any], Any]:
    reason = null() if settled.reason is None else clean_text(settled.reason, 1000)
    return {Delivery.last_status: clean_text(settled.status, 64), Delivery.reason: reason}


def _unconfirmed() -> tuple[ColumnElement[bool], ...]:
    return Delivery.state == DeliveryState.DELIVERED, Delivery.commitment_due_at.is_not(None)


def _requeue(tx: Transaction, *conditions: ColumnElement[bool]) -> int:
    is_free = has_come(Delivery.lease_expires_at, LONGEST_LEASE_S)
    values = {
        Delivery.state: DeliveryState.QUEUED,
        Delivery.queued_at: database_now(),
        Delivery.fence: Delivery.fence + 1,
        Delivery.commitment_uid: null(),
        Delivery.commitment_due_at: null(),
        Delivery.confirmed_at: null(),
        Delivery.reason: null(),
        **released(Delivery),
    }
    statement = (
        update(Delivery)
        .where(is_free, *conditions)
        .values(values)
        .returning(Delivery.delivery_id)
        .execution_options(synchronize_session=False)
    )
    return len(tx.execute(statement).all())


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
            ended_at=now_after(DeliveryAttempt.started_at),
            status=None if status is None else clean_text(status, 64),
            detail=clean_text(detail, 1000),
        )
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)
