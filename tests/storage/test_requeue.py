"""Dead letters, asking again, handing back, and the order in which jobs run."""

import random
from itertools import pairwise

import pytest
from sqlalchemy import update

from storage.database import Database, database_now
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.jobs import (
    ClaimedJob,
    JobState,
    cancel_job,
    claim_job,
    claim_next_job,
    due_jobs,
    failed_jobs,
    hand_back_job,
    heartbeat_job,
    requeue_job,
    retry_job_later,
)
from storage.tables import Job, Study
from tests.storage.builders import Archive

LEASE_S, TRIES = 30.0, 3


def claim_next(db: Database, *, aging_s: float = 60.0) -> ClaimedJob | None:
    with db.transaction() as tx:
        return claim_next_job(tx, "worker", LEASE_S, TRIES, aging_s=aging_s)


def job(db: Database, job_id: str) -> Job:
    with db.reading() as tx:
        return tx.get_one(Job, job_id)


def change(db: Database, job_id: str, **values: object) -> None:
    with db.transaction() as tx:
        tx.execute(update(Job).where(Job.job_id == job_id).values(**values))


def fail(db: Database, job_id: str) -> None:
    with db.transaction() as tx:
        claimed = claim_job(tx, job_id, "worker", LEASE_S, TRIES)
        assert claimed is not None
        cancel_job(tx, job_id, claimed.fence, "FAILED", "it crashed")


def dead_letters(db: Database) -> list[str]:
    with db.reading() as tx:
        return failed_jobs(tx)


def test_a_failed_job_is_a_dead_letter_until_it_is_asked_for_again(archive: Archive):
    job_id = archive.job(target="lesion", priority=7)
    fail(archive.db, job_id)
    assert dead_letters(archive.db) == [job_id]
    with archive.db.transaction() as tx:
        again = requeue_job(tx, job_id, "operator anna")
    assert dead_letters(archive.db) == []
    old, new = job(archive.db, job_id), job(archive.db, again)
    assert (old.state, old.outcome, old.reason) == ("CANCELED", "FAILED", "it crashed")
    assert (new.state, new.attempts, new.requeued_from, new.requeued_by) == (
        "SCHEDULED",
        0,
        job_id,
        "operator anna",
    )
    assert (new.query, new.target, new.priority, new.series_instance_uid) == (
        old.query,
        old.target,
        7,
        old.series_instance_uid,
    )
    assert claim_next(archive.db).job_id == again


def test_asking_twice_gives_one_job(archive: Archive):
    job_id = archive.job()
    fail(archive.db, job_id)
    with archive.db.transaction() as tx:
        first = requeue_job(tx, job_id, "a")
    with archive.db.transaction() as tx:
        assert requeue_job(tx, job_id, "b") == first
    fail(archive.db, first)
    with archive.db.transaction() as tx:
        assert requeue_job(tx, first, "c") not in {job_id, first}


def test_only_what_failed_is_asked_for_again(archive: Archive):
    job_id = archive.job()
    with archive.db.transaction() as tx, pytest.raises(IllegalTransition):
        requeue_job(tx, job_id, "a")
    with archive.db.transaction() as tx:
        claimed = claim_job(tx, job_id, "worker", LEASE_S, TRIES)
        cancel_job(tx, job_id, claimed.fence, "NOT SUITABLE", "no image")
    with archive.db.transaction() as tx, pytest.raises(IllegalTransition):
        requeue_job(tx, job_id, "a")
    with archive.db.transaction() as tx, pytest.raises(InstanceMissing):
        requeue_job(tx, "nothing", "a")
    assert dead_letters(archive.db) == []


def test_a_newer_version_of_the_study_has_its_own_jobs(archive: Archive):
    job_id = archive.job()
    fail(archive.db, job_id)
    with archive.db.transaction() as tx:
        tx.execute(update(Study).values(version=2))
    with archive.db.transaction() as tx, pytest.raises(IllegalTransition, match="older version"):
        requeue_job(tx, job_id, "a")


def test_an_attempt_handed_back_does_not_count(archive: Archive):
    job_id = archive.job()
    for number in range(1, 6):
        claimed = claim_next(archive.db)
        assert (claimed.attempt, claimed.tries) == (number, 1)
        with archive.db.transaction() as tx:
            hand_back_job(tx, job_id, claimed.fence)
    for tries in (1, 2, 3):
        claimed = claim_next(archive.db)
        assert claimed.tries == tries
        with archive.db.transaction() as tx:
            retry_job_later(tx, job_id, claimed.fence, "it crashed", 0.0)
    assert claim_next(archive.db) is None
    ended = job(archive.db, job_id)
    assert (ended.state, ended.outcome, ended.attempts) == (JobState.CANCELED, "FAILED", 8)
    assert "it crashed" in ended.reason


def test_who_lost_the_job_cannot_hand_it_back_or_hold_it(archive: Archive):
    job_id = archive.job()
    zombie = claim_next(archive.db)
    change(archive.db, job_id, lease_expires_at=0.0)
    assert claim_next(archive.db).fence == zombie.fence + 1
    with archive.db.transaction() as tx, pytest.raises(LeaseLost):
        hand_back_job(tx, job_id, zombie.fence)
    with archive.db.transaction() as tx:
        assert not heartbeat_job(tx, job_id, zombie.fence, LEASE_S)


def test_stat_is_next_and_the_others_in_order(archive: Archive):
    ordinary = [archive.job(f"query {number}") for number in range(40)]
    for age, job_id in enumerate(reversed(ordinary)):
        change(archive.db, job_id, created_at=database_now() - age)
    stat = archive.job("stat", priority=100)
    assert claim_next(archive.db).job_id == stat
    taken = [claim_next(archive.db).job_id for _ in ordinary]
    assert taken == ordinary


def test_nothing_starves_under_a_stream_of_urgent_jobs(archive: Archive):
    patient = archive.job("waits", priority=-5)
    for number in range(20):
        archive.job(f"urgent {number}", priority=5)
    change(archive.db, patient, created_at=database_now() - 1200)
    assert claim_next(archive.db, aging_s=60.0).job_id == patient


def test_a_thousand_studies_wait_and_stat_goes_first(archive: Archive):
    """JOB-16: the order of a long backlog, at the price of one query."""
    chosen = random.Random(5)
    first = archive.job("first")
    with archive.db.transaction() as tx:
        ids = [
            archive.job_in(tx, f"query {number}", priority=chosen.choice((0, 0, 0, 10)))
            for number in range(1000)
        ]
    with archive.db.reading() as tx:
        rows = {each: tx.get_one(Job, each) for each in [first, *ids]}
        order = due_jobs(tx, limit=2000)
    stat = archive.job("stat", priority=100)
    assert claim_next(archive.db).job_id == stat
    assert sorted(order) == sorted([first, *ids])
    urgencies = [rows[each].priority - rows[each].created_at / 60 for each in order]
    assert all(earlier >= later - 1e-6 for earlier, later in pairwise(urgencies))
