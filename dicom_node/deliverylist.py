"""The deliveries of a node as plain values, and as a table for people; dead letters sent again."""

from collections.abc import Sequence
from typing import Any

from storage import worklist
from storage.database import Database
from storage.deliveries import DeliveryState, requeue_delivery, requeue_failed
from storage.tables import Delivery

MAX_DELIVERIES = 10_000
WIDTHS = (34, 11, 17, 18, 7, 0)


def plain_deliveries(database: Database, *, is_failed: bool = False) -> list[dict[str, Any]]:
    """Every delivery, newest first; with `is_failed`, the dead letters only. No patient attribute."""
    state = DeliveryState.FAILED if is_failed else None
    with database.reading() as tx:
        rows = worklist.newest_deliveries(tx, state=state, limit=MAX_DELIVERIES)
    return [{column.key: getattr(row, column.key) for column in Delivery.__table__.columns} for row in rows]


def redeliver(
    database: Database, delivery_ids: Sequence[str], *, is_failed: bool, destination: str | None
) -> tuple[int, list[str]]:
    """Send again: the deliveries named, or every dead letter; gives how many, and the ids that could not."""
    with database.transaction() as tx:
        count = requeue_failed(tx, destination) if is_failed or destination is not None else 0
        refused = [delivery_id for delivery_id in delivery_ids if not requeue_delivery(tx, delivery_id)]
    return count + len(delivery_ids) - len(refused), refused


def table_of_deliveries(rows: Sequence[dict[str, Any]]) -> str:
    """One line a delivery; the last column says what to do, where something is wrong."""
    head = _line("DELIVERY", "STATE", "DESTINATION", "ANSWER", "TRIES", "INSTANCE / WHAT TO DO")
    return "\n".join([head, *map(_line_of, rows)])


def _line_of(row: dict[str, Any]) -> str:
    what = row["sop_instance_uid"] + (f" / {row['reason']}" if row["reason"] else "")
    answer = row["last_status"] or "-"
    return _line(row["delivery_id"], row["state"], row["destination"], answer, str(row["attempts"]), what)


def _line(*cells: str) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
