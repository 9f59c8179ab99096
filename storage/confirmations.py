"""Storage Commitment of deliveries: what is to be asked for, what was asked, what the destination said.

A delivery is CONFIRMED only by a success in an N-EVENT-REPORT; what it names as failed is sent again. A
question that nobody answers is asked again under a new Transaction UID.

Source: PS3.4 annex J.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import null, select, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now
from storage.deliveries import DeliveryState
from storage.tables import Delivery, Instance
from storage.text import clean_text


@dataclass(frozen=True)
class Uncommitted:
    """An instance that a destination has, and has not committed to keeping."""

    delivery_id: str
    sop_class_uid: str
    sop_instance_uid: str


def claim_commitments(tx: Transaction, destination: str, ask_again_s: float, limit: int) -> list[Uncommitted]:
    """Take what is to be asked for now; nobody else asks for it during `ask_again_s` seconds."""
    chosen = (
        select(Delivery.delivery_id)
        .where(Delivery.destination == destination, Delivery.state == DeliveryState.DELIVERED)
        .where(Delivery.commitment_due_at <= database_now())
        .order_by(Delivery.delivered_at, Delivery.delivery_id)
        .limit(limit)
    )
    statement = (
        update(Delivery)
        .where(Delivery.delivery_id.in_(chosen))
        .where(Delivery.commitment_due_at <= database_now())
        .values({Delivery.commitment_due_at: database_now() + ask_again_s, Delivery.commitment_uid: null()})
        .returning(Delivery.delivery_id)
        .execution_options(synchronize_session=False)
    )
    ids = tx.scalars(statement).all()
    rows = (
        select(Delivery.delivery_id, Instance.sop_class_uid, Instance.sop_instance_uid)
        .join(Instance, Instance.sop_instance_uid == Delivery.sop_instance_uid)
        .where(Delivery.delivery_id.in_(ids))
        .order_by(Delivery.delivered_at, Delivery.delivery_id)
    )
    return [Uncommitted(*row) for row in tx.execute(rows)]


def note_commitment(tx: Transaction, delivery_ids: Sequence[str], transaction_uid: str) -> None:
    """Remember under which Transaction UID the destination was asked."""
    _update(tx, delivery_ids, {Delivery.commitment_uid: transaction_uid, Delivery.reason: null()})


def postpone_commitment(tx: Transaction, delivery_ids: Sequence[str], delay_s: float, reason: str) -> None:
    """The destination could not be asked: ask again after `delay_s` seconds."""
    values = {
        Delivery.commitment_due_at: database_now() + delay_s,
        Delivery.reason: clean_text(reason, 1000),
    }
    _update(tx, delivery_ids, values)


def open_commitments(tx: Transaction, destination: str) -> list[str]:
    """Return the Transaction UIDs whose answer decides about deliveries to this destination."""
    statement = (
        select(Delivery.commitment_uid)
        .where(Delivery.destination == destination, Delivery.state == DeliveryState.DELIVERED)
        .where(Delivery.commitment_uid.is_not(None))
        .distinct()
    )
    return [uid for uid in tx.scalars(statement) if uid is not None]


def settle_commitment(
    tx: Transaction, transaction_uid: str, failed: Mapping[str, str], reason: str, delay_s: float
) -> None:
    """Confirm what was asked for under this UID, and queue again what `failed` names with its status."""
    asked = (
        Delivery.commitment_uid == transaction_uid,
        Delivery.state == DeliveryState.DELIVERED,
    )
    for sop_instance_uid, status in failed.items():
        again = {
            Delivery.state: DeliveryState.QUEUED,
            Delivery.next_attempt_at: database_now() + delay_s,
            Delivery.commitment_uid: null(),
            Delivery.commitment_due_at: null(),
            Delivery.last_status: clean_text(status, 64),
            Delivery.reason: clean_text(reason, 1000),
        }
        denied = update(Delivery).where(*asked, Delivery.sop_instance_uid == sop_instance_uid)
        tx.execute(denied.values(again).execution_options(synchronize_session=False))
    confirmed = {
        Delivery.state: DeliveryState.CONFIRMED,
        Delivery.confirmed_at: database_now(),
        Delivery.commitment_due_at: null(),
        Delivery.reason: null(),
    }
    statement = update(Delivery).where(*asked).values(confirmed)
    tx.execute(statement.execution_options(synchronize_session=False))


def _update(
    tx: Transaction, delivery_ids: Sequence[str], values: Mapping[InstrumentedAttribute[Any], Any]
) -> None:
    statement = (
        update(Delivery)
        .where(Delivery.delivery_id.in_(delivery_ids), Delivery.state == DeliveryState.DELIVERED)
        .values(values)
        .execution_options(synchronize_session=False)
    )
    tx.execute(statement)
