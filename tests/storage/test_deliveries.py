"""Deliveries: the outbox, its claims and attempts."""

import pytest

from storage.database import Database
from storage.deliveries import (
    ClaimedDelivery,
    DeliveryState,
    Settled,
    claim_deliveries,
    claim_delivery,
    due_destinations,
    finish_delivery,
    heartbeat_delivery,
    queue_delivery,
    requeue_delivery,
    requeue_failed,
    retry_delivery_later,
    withdraw_deliveries,
)
from storage.errors import IllegalTransition, InstanceMissing, LeaseLost
from storage.tables import Delivery
from storage.worklist import newest_deliveries
from tests.storage.builders import Archive, attempts_of_delivery, make_dataset

LEASE_S = 30.0
SOP = make_dataset().SOPInstanceUID


@pytest.fixture
def delivery_id(archive: Archive) -> str:
    return queued(archive, "PACS")


def queued(archive: Archive, destination: str) -> str:
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        delivery_id = queue_delivery(tx, SOP, destination, None)
    assert delivery_id is not None
    return delivery_id


def claim(db: Database, delivery_id: str, *, lease_s: float = LEASE_S) -> ClaimedDelivery | None:
    with db.transaction() as tx:
        return claim_delivery(tx, delivery_id, "worker", lease_s)


def held(db: Database, delivery_id: str, *, lease_s: float = LEASE_S) -> ClaimedDelivery:
    claimed = claim(db, delivery_id, lease_s=lease_s)
    assert claimed is not None
    return claimed


def row(db: Database, delivery_id: str) -> Delivery:
    with db.reading() as tx:
        found = tx.get(Delivery, delivery_id)
    assert found is not None
    return found


def due(db: Database) -> list[str]:
    with db.reading() as tx:
        return due_destinations(tx)


def test_an_instance_is_queued_once_for_each_destination(archive: Archive, delivery_id: str):
    with archive.db.transaction() as tx:
        assert queue_delivery(tx, SOP, "PACS", None) is None
        other = queue_delivery(tx, SOP, "ARCHIVE", None)
    assert other is not None
    assert due(archive.db) == ["ARCHIVE", "PACS"]


def test_a_claim_counts_the_attempt_and_tells_the_age(archive: Archive, delivery_id: str):
    claimed = held(archive.db, delivery_id)
    assert (claimed.sop_instance_uid, claimed.destination, claimed.attempt) == (SOP, "PACS", 1)
    assert 0 <= claimed.age_s < 60
    assert row(archive.db, delivery_id).state == "QUEUED"
    assert claim(archive.db, delivery_id) is None
    assert due(archive.db) == []


@pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.FAILED])
def test_a_finished_delivery_keeps_the_answer_and_stays_finished(
    archive: Archive, delivery_id: str, state: DeliveryState
):
    claimed = held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, state, Settled("0x0000", "stored"))
    delivery = row(archive.db, delivery_id)
    assert (delivery.state, delivery.last_status) == (state, "0x0000")
    assert (delivery.delivered_at is not None) == (state is DeliveryState.DELIVERED)
    with archive.db.reading() as tx:
        (attempt,) = attempts_of_delivery(tx, delivery_id)
    assert (attempt.status, attempt.detail) == ("0x0000", "stored")
    assert attempt.ended_at is not None
    assert due(archive.db) == []
    with pytest.raises(IllegalTransition), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, DeliveryState.FAILED, Settled(""))


def test_a_delivery_cannot_be_finished_as_queued(archive: Archive, delivery_id: str):
    claimed = held(archive.db, delivery_id)
    with pytest.raises(IllegalTransition), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, DeliveryState.QUEUED, Settled(""))


def test_an_unclaimed_delivery_cannot_be_finished(archive: Archive, delivery_id: str):
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, 0, DeliveryState.DELIVERED, Settled("0x0000"))


def test_an_unknown_delivery_cannot_be_finished(archive: Archive):
    with pytest.raises(InstanceMissing), archive.db.transaction() as tx:
        finish_delivery(tx, "nothing", 0, DeliveryState.DELIVERED, Settled("0x0000"))


def test_a_delivery_to_be_retried_waits_and_keeps_every_attempt(archive: Archive, delivery_id: str):
    first = held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        retry_delivery_later(tx, delivery_id, first.fence, Settled("0xA700", "out of resources"), 3600)
    assert due(archive.db) == []
    assert claim(archive.db, delivery_id) is None
    assert row(archive.db, delivery_id).last_status == "0xA700"


def test_the_fence_refuses_a_zombie(archive: Archive, delivery_id: str):
    zombie = held(archive.db, delivery_id, lease_s=0)
    second = held(archive.db, delivery_id)
    assert second.attempt == 2
    with archive.db.transaction() as tx:
        assert heartbeat_delivery(tx, delivery_id, zombie.fence, LEASE_S) is False
        assert heartbeat_delivery(tx, delivery_id, second.fence, LEASE_S) is True
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, zombie.fence, DeliveryState.FAILED, Settled("0xC000"))
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        retry_delivery_later(tx, delivery_id, zombie.fence, Settled("0xA700"), 0)
    with archive.db.reading() as tx:
        first_attempt, _ = attempts_of_delivery(tx, delivery_id)
    assert "lease ran out" in (first_attempt.detail or "")


def test_a_worker_that_let_go_cannot_finish(archive: Archive, delivery_id: str):
    claimed = held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        retry_delivery_later(tx, delivery_id, claimed.fence, Settled("no answer"), 0)
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, DeliveryState.DELIVERED, Settled("0x0000"))
    assert due(archive.db) == ["PACS"]


def test_deliveries_are_listed_newest_first_and_by_state_and_job(archive: Archive):
    job_id = archive.job()
    first = queued(archive, "PACS")
    with archive.db.transaction() as tx:
        second = queue_delivery(tx, SOP, "ARCHIVE", job_id)
    claimed = held(archive.db, first)
    with archive.db.transaction() as tx:
        finish_delivery(tx, first, claimed.fence, DeliveryState.DELIVERED, Settled("0x0000"))
    with archive.db.reading() as tx:
        assert [entry.delivery_id for entry in newest_deliveries(tx)] == [second, first]
        assert [entry.delivery_id for entry in newest_deliveries(tx, state=DeliveryState.DELIVERED)] == [
            first
        ]
        assert [entry.delivery_id for entry in newest_deliveries(tx, job_id=job_id)] == [second]


def finished(archive: Archive, delivery_id: str, state: DeliveryState) -> None:
    claimed = held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, state, Settled("0xC000", reason="See its log."))


def test_a_destination_gets_its_deliveries_oldest_first_and_in_parts(archive: Archive):
    ids = []
    for number in range(3):
        dataset = make_dataset(SOPInstanceUID=f"1.2.3.{number}")
        archive.receive(dataset)
        with archive.db.transaction() as tx:
            ids.append(queue_delivery(tx, dataset.SOPInstanceUID, "PACS", None))
            queue_delivery(tx, dataset.SOPInstanceUID, "ARCHIVE", None)
    with archive.db.transaction() as tx:
        first = claim_deliveries(tx, "PACS", "worker", LEASE_S, 2)
    with archive.db.transaction() as tx:
        rest = claim_deliveries(tx, "PACS", "worker", LEASE_S, 2)
    assert [claimed.delivery_id for claimed in first + rest] == ids
    assert due(archive.db) == ["ARCHIVE"]


@pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.FAILED])
def test_an_operator_may_have_it_sent_again(archive: Archive, delivery_id: str, state: DeliveryState):
    finished(archive, delivery_id, state)
    assert row(archive.db, delivery_id).reason == "See its log."
    with archive.db.transaction() as tx:
        assert requeue_delivery(tx, delivery_id)
    again = row(archive.db, delivery_id)
    assert (again.state, again.reason) == ("QUEUED", None)
    assert held(archive.db, delivery_id).age_s < 60


def test_what_is_being_sent_cannot_be_requeued(archive: Archive, delivery_id: str):
    held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        assert not requeue_delivery(tx, delivery_id)
        assert not requeue_delivery(tx, "nothing")


def test_dead_letters_are_requeued_by_destination_or_all(archive: Archive, delivery_id: str):
    other = queued(archive, "ARCHIVE")
    for each in (delivery_id, other):
        finished(archive, each, DeliveryState.FAILED)
    with archive.db.transaction() as tx:
        assert requeue_failed(tx, "ARCHIVE") == 1
        assert requeue_failed(tx) == 1
        assert requeue_failed(tx) == 0


def test_a_withdrawn_delivery_is_not_sent_and_its_worker_loses_it(archive: Archive, delivery_id: str):
    claimed = held(archive.db, delivery_id)
    with archive.db.transaction() as tx:
        assert withdraw_deliveries(tx, [SOP]) == 1
        assert withdraw_deliveries(tx, [SOP]) == 0
    with pytest.raises(LeaseLost), archive.db.transaction() as tx:
        finish_delivery(tx, delivery_id, claimed.fence, DeliveryState.DELIVERED, Settled("0x0000"))
    assert row(archive.db, delivery_id).state == "WITHDRAWN"
    assert due(archive.db) == []
