import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt
from sqlalchemy import select, update

from dicom_node.backoff import backoff_s
from dicom_node.deliver import DeliveryServices, Verdict, classify, deliver
from dicom_node.receive import ReceiveLimits, Receiver
from dicom_node.settings import load_settings
from storage.database import Database
from storage.deliveries import due_deliveries, queue_delivery
from storage.index import Origin
from storage.tables import Delivery
from storage.worklist import attempts_of_delivery
from tests.builders import make_ultrasound


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, Verdict.DELIVERED),
        (0xB000, Verdict.DELIVERED),
        (0xB006, Verdict.DELIVERED),
        (0xB007, Verdict.DELIVERED),
        (0xA700, Verdict.RETRY),
        (0xA7FF, Verdict.RETRY),
        (0x0110, Verdict.RETRY),
        (None, Verdict.RETRY),
        (0xA900, Verdict.REFUSED),
        (0xC000, Verdict.REFUSED),
        (0x0122, Verdict.REFUSED),
        (0x0111, Verdict.REFUSED),
        (0x0124, Verdict.REFUSED),
        (0xB001, Verdict.REFUSED),
    ],
)
def test_what_a_status_means(status: int | None, verdict: Verdict) -> None:
    assert classify(status) is verdict


def test_the_pause_doubles_up_to_its_limit_with_jitter() -> None:
    for attempt, expected in [(1, 30), (2, 60), (5, 480), (6, 600), (500, 600)]:
        waits = {backoff_s(attempt, 30, 600) for _ in range(20)}
        assert len(waits) > 1
        assert all(0.8 * expected <= wait <= 1.2 * expected for wait in waits)


@contextmanager
def pacs(port: int, statuses: list[int]) -> Iterator[list[str]]:
    """A PACS that answers with `statuses` one after the other; gives the UIDs it got."""
    got: list[str] = []

    def store(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return statuses.pop(0) if statuses else 0x0000

    ae = AE("PACS")
    ae.supported_contexts = AllStoragePresentationContexts
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield got
    finally:
        server.shutdown()


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def services(
    database: Database, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> DeliveryServices:
    monkeypatch.setenv(
        "DICOM_NODE_DESTINATIONS",
        f'[{{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": {port}}}]',
    )
    return DeliveryServices(database, load_settings(tmp_path), "worker")


@pytest.fixture
def delivery_id(database: Database, files_root: Path) -> str:
    """A queued delivery of an instance to "pacs"."""
    file = io.BytesIO()
    make_ultrasound().save_as(file, enforce_file_format=True)
    receiver = Receiver(database, files_root, ReceiveLimits(min_free_bytes=0))
    received = receiver.receive_part10([file.getvalue()], Origin("DIMSE", "SCANNER"))
    with database.transaction() as tx:
        queued = queue_delivery(tx, received.sop_instance_uid, "pacs", None)
    assert queued is not None
    return queued


def row(database: Database) -> Delivery:
    with database.reading() as tx:
        return tx.scalars(select(Delivery)).one()


def tries(database: Database, delivery_id: str) -> list[str | None]:
    with database.reading() as tx:
        return [attempt.status for attempt in attempts_of_delivery(tx, delivery_id)]


def make_due(database: Database) -> None:
    with database.transaction() as tx:
        tx.execute(update(Delivery).values(next_attempt_at=0.0))


def test_an_instance_arrives_and_is_not_sent_twice(
    services: DeliveryServices, delivery_id: str, port: int
) -> None:
    with pacs(port, []) as got:
        deliver(delivery_id, services)
        deliver(delivery_id, services)
    assert len(got) == 1
    delivered = row(services.database)
    assert (delivered.state, delivered.last_status, delivered.attempts) == ("DELIVERED", "0x0000", 1)
    assert delivered.delivered_at is not None


def test_a_pacs_out_of_resources_gets_it_later(
    services: DeliveryServices, delivery_id: str, port: int
) -> None:
    with pacs(port, [0xA700]) as got:
        deliver(delivery_id, services)
        with services.database.reading() as tx:
            assert due_deliveries(tx) == []  # the pause
        make_due(services.database)
        deliver(delivery_id, services)
    assert len(got) == 2
    assert row(services.database).state == "DELIVERED"
    assert tries(services.database, delivery_id) == ["0xA700", "0x0000"]


def test_a_pacs_that_is_down_is_tried_again(services: DeliveryServices, delivery_id: str) -> None:
    deliver(delivery_id, services)
    waiting = row(services.database)
    assert (waiting.state, waiting.last_status) == ("QUEUED", "no answer")
    assert waiting.next_attempt_at is not None


def test_a_refusal_is_not_tried_again(services: DeliveryServices, delivery_id: str, port: int) -> None:
    with pacs(port, [0xC000]) as got:
        deliver(delivery_id, services)
        make_due(services.database)
        deliver(delivery_id, services)
    assert len(got) == 1
    assert (row(services.database).state, row(services.database).last_status) == ("FAILED", "0xC000")


def test_it_is_given_up_after_its_greatest_age(services: DeliveryServices, delivery_id: str) -> None:
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(created_at=Delivery.created_at - 8 * 86400))
    deliver(delivery_id, services)
    assert row(services.database).state == "FAILED"


def test_a_destination_that_was_taken_from_the_configuration_waits(
    services: DeliveryServices, delivery_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DICOM_NODE_DESTINATIONS")
    deliver(delivery_id, DeliveryServices(services.database, load_settings(tmp_path), "worker"))
    assert row(services.database).state == "QUEUED"


def test_a_missing_file_is_a_failure_with_a_reason(
    services: DeliveryServices, delivery_id: str, files_root: Path
) -> None:
    for path in files_root.rglob("*.dcm"):
        path.unlink()
    deliver(delivery_id, services)
    assert (row(services.database).state, row(services.database).last_status) == ("FAILED", "0x0112")


def test_two_workers_send_it_once(services: DeliveryServices, delivery_id: str, port: int) -> None:
    with pacs(port, []) as got:
        threads = [threading.Thread(target=deliver, args=(delivery_id, services)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 1
