"""A clock that jumps: nothing waits until it has caught up again, nothing is done twice."""

import pytest
from sqlalchemy import select, update

from storage.database import Database, database_now
from storage.deliveries import DeliveryState, Settled, claim_delivery, finish_delivery, queue_delivery
from storage.jobs import claim_job, complete_job, due_jobs, heartbeat_job
from storage.studies import quiet_studies
from storage.tables import Delivery, DeliveryAttempt, Job, JobAttempt, Study, Table
from tests.storage.builders import STUDY, Archive, make_dataset

DAY_S = 86400.0


def shift(db: Database, table: type[Table], column: str, seconds: float) -> None:
    """Write a time as it stands in the row after the clock was moved by `-seconds`."""
    with db.transaction() as tx:
        tx.execute(update(table).values({column: database_now() + seconds}))


@pytest.mark.parametrize("seconds", [DAY_S, 3 * DAY_S, 120.0])
def test_a_study_is_completed_although_the_clock_was_set_back(archive: Archive, seconds: float):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        assert quiet_studies(tx, 10) == []
    shift(archive.db, Study, "last_received_at", seconds)
    with archive.db.transaction() as tx:
        assert len(quiet_studies(tx, 10)) == 1


@pytest.mark.parametrize("column", ["next_attempt_at", "lease_expires_at"])
def test_work_does_not_wait_until_the_clock_has_caught_up(archive: Archive, column: str):
    job_id = archive.job()
    shift(archive.db, Job, column, 60)
    with archive.db.transaction() as tx:
        assert due_jobs(tx) == []
    shift(archive.db, Job, column, DAY_S + 60)
    with archive.db.transaction() as tx:
        assert due_jobs(tx) == [job_id]


def test_a_worker_whose_lease_a_jump_ended_is_fenced_off(archive: Archive):
    job_id = archive.job()
    with archive.db.transaction() as tx:
        first = claim_job(tx, job_id, "one", 30, 3)
    shift(archive.db, Job, "lease_expires_at", -DAY_S)
    with archive.db.transaction() as tx:
        second = claim_job(tx, job_id, "two", 30, 3)
    assert first is not None
    assert second is not None
    with archive.db.transaction() as tx:
        assert not heartbeat_job(tx, job_id, first.fence, 30)
        assert heartbeat_job(tx, job_id, second.fence, 30)


def test_nothing_ends_before_it_began(archive: Archive):
    job_id = archive.job()
    with archive.db.transaction() as tx:
        job = claim_job(tx, job_id, "one", 30, 3)
        delivery_id = queue_delivery(tx, f"{STUDY}.1.1", "PACS", job_id)
        assert delivery_id is not None
        delivery = claim_delivery(tx, delivery_id, "one", 30)
    assert job is not None
    assert delivery is not None
    for table in (Job, JobAttempt, DeliveryAttempt):
        shift(archive.db, table, "started_at", DAY_S)
    shift(archive.db, Delivery, "queued_at", DAY_S)
    with archive.db.transaction() as tx:
        complete_job(tx, job_id, job.fence, "RESULT", {})
        finish_delivery(tx, delivery_id, delivery.fence, DeliveryState.DELIVERED, Settled("0x0000"))
    spans = [
        (Job.started_at, Job.finished_at),
        (JobAttempt.started_at, JobAttempt.ended_at),
        (DeliveryAttempt.started_at, DeliveryAttempt.ended_at),
        (Delivery.queued_at, Delivery.delivered_at),
    ]
    with archive.db.reading() as tx:
        for begin, end in spans:
            assert tx.execute(select(end - begin)).scalars().all() == [0.0]


def test_what_was_asked_for_before_the_clock_was_set_back_is_not_put_last(archive: Archive):
    urgent = archive.job("urgent", priority=1)
    shift(archive.db, Job, "created_at", DAY_S)
    with archive.db.transaction() as tx:
        ordinary = archive.job_in(tx, "ordinary")
        assert due_jobs(tx) == [urgent, ordinary]
