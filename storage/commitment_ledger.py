"""Storage Commitment on the wire: what we asked of peers and what they said, and the reports we owe them.

Source: PS3.4 J.3 (Transaction UID, Referenced and Failed SOP Sequence).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, select, update

from storage.database import Transaction, database_now
from storage.leases import granted, is_due, released
from storage.tables import CommitmentReport, CommitmentRequest

_QUEUED = ("QUEUED",)
_NO_REASON = 0x0110


class CommitmentState(StrEnum):
    """How a request of ours stands."""

    PENDING = "PENDING"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"


class ReportState(StrEnum):
    """How a report that we owe stands."""

    QUEUED = "QUEUED"
    REPORTED = "REPORTED"
    FAILED = "FAILED"  # given up: too old


@dataclass(frozen=True)
class Reference:
    """One instance that a commitment is about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentOutcome:
    """How a request of ours stands, and the Failure Reason of each instance that was not committed."""

    state: CommitmentState
    failed: Mapping[str, int]


@dataclass(frozen=True)
class ClaimedReport:
    """A report that this worker holds."""

    report_id: str
    fence: int
    attempt: int
    age_s: float
    transaction_uid: str
    ae_title: str
    is_duplicate: bool
    references: tuple[Reference, ...]


def record_request(
    tx: Transaction, transaction_uid: str, ae_title: str, references: Sequence[Reference]
) -> None:
    """Remember a request of ours before it goes out: the answer may come at once."""
    tx.add(
        CommitmentRequest(
            transaction_uid=transaction_uid,
            ae_title=ae_title,
            state=CommitmentState.PENDING,
            references=_written(references),
            created_at=database_now(),
        )
    )
    tx.flush()


def forget_request(tx: Transaction, transaction_uid: str) -> None:
    """Take back a request that the peer refused."""
    tx.execute(delete(CommitmentRequest).where(CommitmentRequest.transaction_uid == transaction_uid))


def record_answer(
    tx: Transaction,
    transaction_uid: str,
    ae_title: str,
    committed: Sequence[str],
    failed: Mapping[str, int],
) -> bool:
    """Enter what the peer reported; False when we never asked this AE under this Transaction UID.

    An instance that the report does not name counts as failed. The first answer stays.
    """
    row = tx.get(CommitmentRequest, transaction_uid, with_for_update=True)
    if row is None or row.ae_title != ae_title:
        return False
    if row.state != CommitmentState.PENDING:
        return True
    asked = [reference.sop_instance_uid for reference in _read(row.references)]
    missing = {uid: failed.get(uid, _NO_REASON) for uid in asked if uid in failed or uid not in committed}
    changes: dict[Any, Any] = {
        CommitmentRequest.state: CommitmentState.FAILED if missing else CommitmentState.COMMITTED,
        CommitmentRequest.failed: json.dumps(missing),
        CommitmentRequest.answered_at: database_now(),
    }
    tx.execute(
        update(CommitmentRequest)
        .where(CommitmentRequest.transaction_uid == transaction_uid)
        .values(changes)
        .execution_options(synchronize_session=False)
    )
    return True


def commitment_outcome(tx: Transaction, transaction_uid: str) -> CommitmentOutcome | None:
    """How a request of ours stands, None when there is none."""
    row = tx.get(CommitmentRequest, transaction_uid, populate_existing=True)
    if row is None:
        return None
    failed = {uid: int(reason) for uid, reason in json.loads(row.failed or "{}").items()}
    return CommitmentOutcome(CommitmentState(row.state), failed)


def queue_report(
    tx: Transaction, transaction_uid: str, ae_title: str, references: Sequence[Reference]
) -> None:
    """Owe a peer a report. The same request again changes nothing while its report is still owed.

    A Transaction UID in use with other references is a report of its own, all of whose instances fail.
    """
    written = _written(references)
    open_reports = tx.scalars(
        select(CommitmentReport.references).where(
            CommitmentReport.ae_title == ae_title,
            CommitmentReport.transaction_uid == transaction_uid,
            CommitmentReport.state == ReportState.QUEUED,
        )
    ).all()
    if written in open_reports:
        return
    tx.add(
        CommitmentReport(
            report_id=uuid.uuid4().hex,
            transaction_uid=transaction_uid,
            ae_title=ae_title,
            state=ReportState.QUEUED,
            is_duplicate=bool(open_reports),
            references=written,
            created_at=database_now(),
        )
    )
    tx.flush()


def due_reports(tx: Transaction, limit: int = 100) -> Sequence[str]:
    """Ids of the reports that are due, oldest first."""
    statement = (
        select(CommitmentReport.report_id)
        .where(is_due(CommitmentReport, _QUEUED))
        .order_by(CommitmentReport.created_at)
        .limit(limit)
    )
    return tx.scalars(statement).all()


def claim_report(tx: Transaction, report_id: str, worker: str, lease_s: float) -> ClaimedReport | None:
    """Take a report for `lease_s` seconds; None when it is not due or somebody else holds it."""
    statement = (
        update(CommitmentReport)
        .where(CommitmentReport.report_id == report_id, is_due(CommitmentReport, _QUEUED))
        .values(granted(CommitmentReport, worker, lease_s))
        .returning(CommitmentReport, (database_now() - CommitmentReport.created_at).label("age_s"))
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    found = tx.execute(statement).one_or_none()
    if found is None:
        return None
    row, age_s = found
    return ClaimedReport(
        row.report_id,
        row.fence,
        row.attempts,
        float(age_s),
        row.transaction_uid,
        row.ae_title,
        row.is_duplicate,
        tuple(_read(row.references)),
    )


def extend_report(tx: Transaction, claimed: ClaimedReport, lease_s: float) -> bool:
    """Hold on to a claimed report; False when it is somebody else's now."""
    return _change(tx, claimed, {CommitmentReport.lease_expires_at: database_now() + lease_s})


def finish_report(tx: Transaction, claimed: ClaimedReport, state: ReportState, status: str) -> bool:
    """Note that the report arrived, or is given up."""
    changes: dict[Any, Any] = {
        CommitmentReport.state: state,
        CommitmentReport.last_status: status[:64],
        CommitmentReport.reported_at: database_now(),
        **released(CommitmentReport),
    }
    return _change(tx, claimed, changes)


def retry_report_later(tx: Transaction, claimed: ClaimedReport, status: str, delay_s: float) -> bool:
    """Let go of a report that did not arrive; it is due again after `delay_s` seconds."""
    changes: dict[Any, Any] = {
        CommitmentReport.last_status: status[:64],
        **released(CommitmentReport, delay_s),
    }
    return _change(tx, claimed, changes)


def _change(tx: Transaction, claimed: ClaimedReport, changes: dict[Any, Any]) -> bool:
    statement = (
        update(CommitmentReport)
        .where(CommitmentReport.report_id == claimed.report_id, CommitmentReport.fence == claimed.fence)
        .values(changes)
        .returning(CommitmentReport.report_id)
        .execution_options(synchronize_session=False)
    )
    return tx.execute(statement).one_or_none() is not None


def _written(references: Sequence[Reference]) -> str:
    return json.dumps([[reference.sop_class_uid, reference.sop_instance_uid] for reference in references])


def _read(written: str) -> list[Reference]:
    return [Reference(*pair) for pair in json.loads(written)]
