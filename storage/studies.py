"""The life of a study: quiet or asked for, complete, and what became of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarSelect, func, or_, select, update

from storage.database import Transaction, database_now
from storage.notes import DERIVED_MODALITIES
from storage.tables import Instance, Series, Study
from storage.text import clean_text

CLOCK_SET_BACK_S = 60.0  # an arrival so far ahead was written before the clock was set back


@dataclass(frozen=True)
class QuietStudy:
    """A study that may be called complete now; the caller writes the evidence."""

    study_instance_uid: str
    version: int
    last_received_at: float  # UTC epoch seconds, database clock
    instance_count: int  # received images; own results and other derived objects do not count
    requested_by: str | None
    quiet_for_s: float
    expected_count: int | None = None  # how many there are, as its sender says

    @property
    def is_incomplete(self) -> bool:
        """Whether the sender announced more than has come."""
        return self.expected_count is not None and self.instance_count < self.expected_count


def request_completion(
    tx: Transaction, study_instance_uid: str, requested_by: str, *, missing: int = 0
) -> None:
    """Note that whoever sent the study says it is whole; a study that is complete already stays so.

    `missing` are the instances that he sent and that were not taken: the study has so many more than came.
    """
    _update_study(
        tx,
        study_instance_uid,
        Study.completed_at.is_(None),
        complete_requested_by=clean_text(requested_by, 256),
        expected_instances=_image_count() + missing,
    )


def arrived_and_expected(tx: Transaction, study_instance_uid: str) -> tuple[int, int | None]:
    """Return how many images of the study have come, hidden ones included, and how many there are."""
    statement = select(_image_count(), Study.expected_instances)
    row = tx.execute(statement.where(Study.study_instance_uid == study_instance_uid)).first()
    return (0, None) if row is None else (row[0] or 0, row[1])


def quiet_studies(tx: Transaction, quiet_period_s: float, limit: int = 100) -> Sequence[QuietStudy]:
    """Return the incomplete studies that nothing arrived for during `quiet_period_s`, or that were asked for.

    On PostgreSQL the rows stay locked until the transaction ends, so nothing can arrive between this
    and `mark_complete`; rows that another sweep or an arrival holds are left for the next time.
    """
    quiet_for_s = database_now() - Study.last_received_at
    statement = (
        select(
            Study.study_instance_uid,
            Study.version,
            Study.last_received_at,
            _image_count(),
            Study.complete_requested_by,
            quiet_for_s,
            Study.expected_instances,
        )
        .where(Study.completed_at.is_(None))
        .where(
            or_(
                quiet_for_s >= quiet_period_s,
                quiet_for_s < -CLOCK_SET_BACK_S,  # or the study would wait until the clock has caught up
                Study.complete_requested_by.is_not(None),
            )
        )
        .order_by(Study.last_received_at)
        .limit(limit)
        .with_for_update(of=Study, skip_locked=True)
    )
    return [QuietStudy(*row) for row in tx.execute(statement)]


def mark_complete(
    tx: Transaction,
    study_instance_uid: str,
    version: int,
    evidence: Mapping[str, Any],
    *,
    last_received_at: float | None = None,
) -> bool:
    """Call this version of the study complete, once; False if another did.

    With the `last_received_at` that `quiet_studies` gave in an earlier transaction, also False if an
    instance arrived since: the evidence would no longer be true.
    """
    unchanged = () if last_received_at is None else (Study.last_received_at == last_received_at,)
    return _update_study(
        tx,
        study_instance_uid,
        Study.completed_at.is_(None),
        Study.version == version,
        *unchanged,
        completed_at=database_now(),
        evidence=json.dumps(evidence, sort_keys=True),
    )


def record_outcome(tx: Transaction, study_instance_uid: str, outcome: str) -> None:
    """Write down in a sentence what routing decided, so that silence never means two things."""
    _update_study(tx, study_instance_uid, outcome=clean_text(outcome, 1000))


def _image_count() -> ScalarSelect[int]:
    """How many received instances a study has that are images, not objects made from them."""
    return (
        select(func.count())
        .select_from(Instance)
        .join(Series, Series.series_instance_uid == Instance.series_instance_uid)
        .where(Instance.study_instance_uid == Study.study_instance_uid, Series.is_own_result.is_(False))
        .where(Series.modality.not_in(DERIVED_MODALITIES))
        .correlate(Study)
        .scalar_subquery()
    )


def _update_study(tx: Transaction, study_instance_uid: str, *conditions: Any, **values: Any) -> bool:
    statement = (
        update(Study)
        .where(Study.study_instance_uid == study_instance_uid, *conditions)
        .values(**values)
        .returning(Study.study_instance_uid)
        .execution_options(synchronize_session=False)
    )
    return tx.execute(statement).first() is not None
