"""Jobs: states, claims, fences, leases, attempts."""

import json
import time

import pytest

from storage.database import Database
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.jobs import (
    TRANSITIONS,
    ClaimedJob,
    JobRequest,
    JobState,
    cancel_job,
    check_transition,
    claim_job,
    complete_job,
    create_job,
    due_jobs,
    heartbeat_job,
    retry_job_later,
)
from storage.tables import Job
from storage.worklist import newest_jobs
from tests.storage.builders import STUDY, Archive, attempts_of_job

LEASE_S = 30.0


def claim(
    db: Database, job_id: str, worker: str = "worker", *, lease_s: float = LEASE_S, max_attempts: int = 3
) -> ClaimedJob | None:
    with db.transaction() as tx:
        return claim_job(tx, job_id, worker, lease_s, max_attempts)


def held(db: Database, job_id: str, **options: float) -> ClaimedJob:
    claimed = claim(db, job_id, **options)
    assert claimed is not None
    return claimed


def row(db: Database, job_id: str) -> Job:
    with db.reading() as tx:
        found = tx.get(Job, job_id)
    assert found is not None
    return found


def due(db: Database) -> list[str]:
    with db.reading() as tx:
        return due_jobs(tx)


def test_transitions_are_those_of_the_unified_procedure_step():
    allowed = {(old, new) for old, news in TRANSITIONS.items() for new in news}
    assert allowed == {
        ("SCHEDULED", "IN PROGRESS"),
        ("IN PROGRESS", "COMPLETED"),
        ("IN PROGRESS", "CANCELED"),
    }
    check_transition("1", JobState.SCHEDULED, JobState.IN_PROGRESS)
    with pytest.raises(IllegalTransition, match="job 1 is COMPLETED; it cannot become CANCELED"):
        check_transition("1", JobState.COMPLETED, JobState.CANCELED)


def test_a_new_job_is_scheduled_and_due(archive: Archive):
    job_id = archive.job(target="lesion", priority=5)
    job = row(archive.db, job_id)
    assert (job.state, job.fence, job.attempts, job.priority, job.target) == ("SCHEDULED", 0, 0, 5, "lesion")
    assert job.outcome is None
    assert due(archive.db) == [job_id]


def test_the_same_request_is_one_job_and_the_next_version_another(archive: Archive):
    archive.job("query")
    with archive.db.transaction() as tx:
        assert create_job(tx, JobRequest(STUDY, 1, f"{STUDY}.1", "other rule", "sim4seg-s", "query")) is None
        assert create_job(tx, JobRequest(STUDY, 2, f"{STUDY}.1", "rule", "sim4seg-s", "query")) is not None
        assert create_job(tx, JobRequest(STUDY, 1, f"{STUDY}.1", "rule", "sim4seg-s", "query 2")) is not None


def test_a_claim_counts_the_attempt_before_the_work(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    assert (claimed.attempt, claimed.fence, claimed.query) == (1, 1, "Outline the lesion.")
    assert claimed.series_instance_uid == f"{STUDY}.1"
    assert claimed.lease_expires_at == pytest.approx(time.time() + LEASE_S, abs=5)
    job = row(archive.db, job_id)
    assert (job.state, job.attempts, job.leased_by) == ("IN PROGRESS", 1, "worker")
    assert job.started_at == pytest.approx(time.time(), abs=5)
    with archive.db.reading() as tx:
        (attempt,) = attempts_of_job(tx, job_id)
    assert (attempt.attempt, attempt.worker, attempt.ended_at) == (1, "worker", None)


def test_a_held_job_is_neither_due_nor_claimed_again(archive: Archive):
    job_id = archive.job()
    held(archive.db, job_id)
    assert due(archive.db) == []
    assert claim(archive.db, job_id, "second") is None
    assert row(archive.db, job_id).attempts == 1


def test_an_unknown_job_is_not_claimed(archive: Archive):
    assert claim(archive.db, "nothing") is None


def test_completing_records_result_and_attempt(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        complete_job(tx, job_id, claimed.fence, "RESULT", {"diagnosis": "benign"}, model_version="0.1.0")
    job = row(archive.db, job_id)
    assert (job.state, job.outcome, job.model_version) == ("COMPLETED", "RESULT", "0.1.0")
    assert json.loads(job.summary or "") == {"diagnosis": "benign"}
    assert (job.leased_by, job.lease_expires_at, job.next_attempt_at) == (None, None, None)
    assert job.finished_at is not None
    with archive.db.reading() as tx:
        (attempt,) = attempts_of_job(tx, job_id)
    assert attempt.ended_at is not None
    assert attempt.error is None
    assert due(archive.db) == []
    assert claim(archive.db, job_id) is None


def test_a_finished_job_cannot_finish_again(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        cancel_job(tx, job_id, claimed.fence, "NOT SUITABLE", "no pixel data")
    with pytest.raises(IllegalTransition), archive.db.transaction() as tx:
        complete_job(tx, job_id, claimed.fence, "RESULT", {})
    job = row(archive.db, job_id)
    assert (job.state, job.outcome, job.reason) == ("CANCELED", "NOT SUITABLE", "no pixel data")


def test_a_scheduled_job_cannot_be_completed(archive: Archive):
    job_id = archive.job()
    with pytest.raises(IllegalTransition), archive.db.transaction() as tx:
        complete_job(tx, job_id, 0, "RESULT", {})
    assert row(archive.db, job_id).state == "SCHEDULED"


def test_an_unknown_job_cannot_be_completed(archive: Archive):
    with pytest.raises(InstanceMissing), archive.db.transaction() as tx:
        complete_job(tx, "nothing", 0, "RESULT", {})


def test_an_expired_lease_lets_another_worker_in_and_the_fence_refuses_the_zombie(archive: Archive):
    job_id = archive.job()
    zombie = held(archive.db, job_id, lease_s=0)
    assert due(archive.db) == [job_id]
    second = claim(archive.db, job_id, "second")
    assert second is not None
    assert (second.attempt, second.fence) == (2, zombie.fence + 1)

    with archive.db.transaction() as tx:
        assert heartbeat_job(tx, job_id, zombie.fence, LEASE_S) is False
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        complete_job(tx, job_id, zombie.fence, "RESULT", {"by": "zombie"})
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        cancel_job(tx, job_id, zombie.fence, "FAILED", "zombie")
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        retry_job_later(tx, job_id, zombie.fence, "zombie", 0)

    with archive.db.transaction() as tx:
        complete_job(tx, job_id, second.fence, "RESULT", {"by": "second"})
    assert json.loads(row(archive.db, job_id).summary or "") == {"by": "second"}
    with archive.db.reading() as tx:
        first_attempt, second_attempt = attempts_of_job(tx, job_id)
    assert "lease ran out" in (first_attempt.error or "")
    assert second_attempt.error is None


def test_a_slow_worker_whose_job_nobody_took_may_still_complete(archive: Archive):
    job_id = archive.job()
    slow = held(archive.db, job_id, lease_s=0)
    with archive.db.transaction() as tx:
        complete_job(tx, job_id, slow.fence, "RESULT", {})
    assert row(archive.db, job_id).state == "COMPLETED"


def test_a_heartbeat_extends_the_lease(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id, lease_s=0)
    with archive.db.transaction() as tx:
        assert heartbeat_job(tx, job_id, claimed.fence, LEASE_S) is True
    assert claim(archive.db, job_id, "second") is None
    assert (row(archive.db, job_id).lease_expires_at or 0) > claimed.lease_expires_at + LEASE_S / 2


def test_a_job_to_be_retried_waits_for_its_time(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        retry_job_later(tx, job_id, claimed.fence, "out of memory", 3600)
    job = row(archive.db, job_id)
    assert (job.state, job.leased_by, job.lease_expires_at) == ("IN PROGRESS", None, None)
    assert due(archive.db) == []
    assert claim(archive.db, job_id) is None


def test_a_job_to_be_retried_at_once_is_due_and_claimed_again(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        retry_job_later(tx, job_id, claimed.fence, "out of memory", 0)
    assert due(archive.db) == [job_id]
    again = held(archive.db, job_id)
    assert again.attempt == 2
    assert row(archive.db, job_id).next_attempt_at is None


def test_a_late_heartbeat_does_not_hold_a_job_that_was_let_go(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        retry_job_later(tx, job_id, claimed.fence, "out of memory", 0)
        assert heartbeat_job(tx, job_id, claimed.fence, LEASE_S) is False
    assert due(archive.db) == [job_id]
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        complete_job(tx, job_id, claimed.fence, "RESULT", {})


def test_a_job_out_of_attempts_ends_canceled_as_failed_with_its_last_error(archive: Archive):
    job_id = archive.job()
    for number in (1, 2, 3):
        claimed = held(archive.db, job_id)
        with archive.db.transaction() as tx:
            retry_job_later(tx, job_id, claimed.fence, f"error {number}", 0)
    assert due(archive.db) == [job_id]
    assert claim(archive.db, job_id) is None
    job = row(archive.db, job_id)
    assert (job.state, job.outcome) == ("CANCELED", "FAILED")
    assert job.reason == "gave up after 3 attempts: error 3"
    assert job.finished_at is not None
    assert due(archive.db) == []


def test_a_job_that_kills_its_worker_runs_out_of_attempts_too(archive: Archive):
    job_id = archive.job()
    last = [held(archive.db, job_id, lease_s=0) for _ in range(3)][-1]
    assert claim(archive.db, job_id) is None
    job = row(archive.db, job_id)
    assert (job.state, job.outcome) == ("CANCELED", "FAILED")
    assert job.reason == "gave up after 3 attempts: the lease ran out, its worker died or hung"
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        complete_job(tx, job_id, last.fence, "RESULT", {})


def test_a_long_error_is_cut(archive: Archive):
    job_id = archive.job()
    claimed = held(archive.db, job_id)
    with archive.db.transaction() as tx:
        retry_job_later(tx, job_id, claimed.fence, "x" * 5000, 0)
    assert claim(archive.db, job_id, max_attempts=1) is None
    assert len(row(archive.db, job_id).reason or "") == 1000


def test_a_rolled_back_claim_leaves_the_job_due(archive: Archive):
    job_id = archive.job()

    def claim_and_fail() -> None:
        with archive.db.transaction() as tx:
            assert claim_job(tx, job_id, "worker", LEASE_S, 3) is not None
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        claim_and_fail()
    assert row(archive.db, job_id).attempts == 0
    assert due(archive.db) == [job_id]


def test_due_jobs_come_most_urgent_first_then_oldest_first(archive: Archive):
    first, second = archive.job("first"), archive.job("second")
    urgent = archive.job("urgent", priority=1)
    assert due(archive.db) == [urgent, first, second]
    with archive.db.reading() as tx:
        assert due_jobs(tx, limit=1) == [urgent]


def test_jobs_are_listed_newest_first_and_by_state_and_study(archive: Archive):
    first, second = archive.job("first"), archive.job("second")
    held(archive.db, first)
    with archive.db.reading() as tx:
        assert [job.job_id for job in newest_jobs(tx)] == [second, first]
        assert [job.job_id for job in newest_jobs(tx, state=JobState.IN_PROGRESS)] == [first]
        assert [job.job_id for job in newest_jobs(tx, study_instance_uid=STUDY, limit=1, offset=1)] == [first]
        assert newest_jobs(tx, study_instance_uid="1.2.3") == []
