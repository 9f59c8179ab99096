"""Claim, fence and lease: how one worker at a time holds a job or a delivery.

The row is the truth, a Celery message only a wake-up. Whoever claims gets the next fence; every later
change must show that fence, so a worker that was thought dead (a zombie) cannot change anything once
another has claimed. Attempts are counted when work is claimed, before it begins, so that work which kills
its worker runs out of attempts too.
"""

from typing import Any

from sqlalchemy import ColumnElement, and_, null, or_
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import database_now
from storage.tables import CommitmentReport, Delivery, Job
from storage.text import clean_text

# The longest that the settings allow.
LONGEST_LEASE_S = 3600.0
LONGEST_DELAY_S = 86400.0

Leasable = type[Job] | type[Delivery] | type[CommitmentReport]


def is_due(table: Leasable, open_states: tuple[str, ...]) -> ColumnElement[bool]:
    """Not finished, not waiting for its next attempt, and held by nobody whose lease still runs."""
    return and_(
        table.state.in_(open_states),
        has_come(table.next_attempt_at, LONGEST_DELAY_S),
        has_come(table.lease_expires_at, LONGEST_LEASE_S),
    )


def has_come(at: InstrumentedAttribute[float | None], longest_s: float) -> ColumnElement[bool]:
    """Not set, past, or so far ahead that it was written before the clock was set back."""
    return or_(at.is_(None), at <= database_now(), at > database_now() + longest_s)


def granted(table: Leasable, worker: str, lease_s: float) -> dict[InstrumentedAttribute[Any], Any]:
    """Column values of a fresh claim: one attempt more, the next fence, a lease of `lease_s` seconds."""
    return {
        table.fence: table.fence + 1,
        table.attempts: table.attempts + 1,
        table.leased_by: clean_text(worker, 256),
        table.lease_expires_at: database_now() + lease_s,
        table.next_attempt_at: null(),
    }


def released(table: Leasable, delay_s: float | None = None) -> dict[InstrumentedAttribute[Any], Any]:
    """Column values of work that nobody holds; with `delay_s`, it is due again after so many seconds."""
    return {
        table.leased_by: null(),
        table.lease_expires_at: null(),
        table.next_attempt_at: null() if delay_s is None else database_now() + delay_s,
    }
