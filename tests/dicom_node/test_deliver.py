"""Deliveries against destinations that answer everything that can be answered, late, or not at all."""

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from sqlalchemy import select, update

from dicom_node.answers import STATUSES, Verdict, meaning_of, of_status
from dicom_node.backoff import backoff_s
from dicom_node.deliver import DeliveryServices, deliver_to
from dicom_node.lanes import Lanes
from dicom_node.settings import load_settings
from storage.database import Database
from storage.deliveries import DeliveryState, due_destinations, queue_delivery, requeue_delivery
from storage.files import DiskFiles
from storage.index import Origin, find_instance, index_instance, record_from_dataset
from storage.tables import Delivery, DeliveryAttempt
from tests.builders import make_ultrasound
from tests.clock import Clock, moved_clock
from tests.damage import HARM, harm
from tests.fake_pacs import Cut, abortion, cutting_proxy, fake_pacs, raw_peer, rejection, uncut
from tests.flow.nodes import until
from tests.storage.builders import attempts_of_delivery

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def clock() -> Iterator[Clock]:
    with moved_clock() as clock:
        yield clock


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def services(
    clock: Clock, database: Database, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> DeliveryServices:
    del clock  # first: the database is opened with it
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([pacs_at(port)]))
    monkeypatch.setenv("DICOM_NODE_DELIVERY__RESPONSE_TIMEOUT_S", "30")  # a busy machine answers late
    monkeypatch.setenv("DICOM_NODE_DELIVERY__FIRST_RETRY_S", "30")
    return open_services(database, tmp_path)


def open_services(database: Database, home: Path) -> DeliveryServices:
    return DeliveryServices(database, DiskFiles(home / "files"), load_settings(home), "worker")


def pacs_at(port: int, name: str = "pacs", **more: object) -> dict[str, object]:
    return {"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": port, **more}


def queue(services: DeliveryServices, count: int = 1, destinations: Sequence[str] = ("pacs",)) -> list[str]:
    """Store `count` instances of one series and queue each for every destination; gives their UIDs."""
    dataset = make_ultrasound()
    uids = []
    for _ in range(count):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        with services.files.new_incoming() as incoming:
            incoming.write(file.getvalue())
            stored = incoming.keep()
        uids.append(str(dataset.SOPInstanceUID))
        with services.database.transaction() as tx:
            index_instance(tx, record_from_dataset(dataset, stored, Origin("DIMSE", "SCANNER")))
            for destination in destinations:
                queue_delivery(tx, uids[-1], destination, None)
    return uids


def rows(services: DeliveryServices) -> Sequence[Delivery]:
    with services.database.reading() as tx:
        return tx.scalars(select(Delivery).order_by(Delivery.created_at)).all()


def row(services: DeliveryServices) -> Delivery:
    (only,) = rows(services)
    return only


def tries(services: DeliveryServices) -> list[str | None]:
    with services.database.reading() as tx:
        return [attempt.status for attempt in attempts_of_delivery(tx, row(services).delivery_id)]


def make_due(services: DeliveryServices) -> None:
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(next_attempt_at=0.0))


def pause_s(services: DeliveryServices) -> float:
    """Seconds between the end of the last attempt and the next one."""
    with services.database.reading() as tx:
        ended_at = tx.scalars(select(DeliveryAttempt.ended_at).order_by(DeliveryAttempt.id.desc())).first()
    return float(row(services).next_attempt_at or 0) - float(ended_at or 0)


def test_the_pause_doubles_up_to_its_limit_with_jitter() -> None:
    for attempt, expected in [(1, 30), (2, 60), (5, 480), (6, 600), (500, 600)]:
        waits = {backoff_s(attempt, 30, 600) for _ in range(20)}
        assert len(waits) > 1
        assert all(0.8 * expected <= wait <= 1.2 * expected for wait in waits)


def test_instances_arrive_on_one_association_and_not_twice(services: DeliveryServices, port: int) -> None:
    uids = queue(services, 3)
    with fake_pacs(port) as pacs:
        deliver_to("pacs", services)
        deliver_to("pacs", services)
    assert [arrival.sop_instance_uid for arrival in pacs.arrivals] == uids
    assert pacs.associations == 1
    for delivered in rows(services):
        assert (delivered.state, delivered.last_status, delivered.attempts) == ("DELIVERED", "0x0000", 1)
        assert delivered.delivered_at is not None
        assert delivered.reason is None


@pytest.mark.parametrize(
    "status", [*sorted(set(STATUSES) - {0xFF00, 0xFF01}), 0xA7FF, 0xA9FF, 0xC123, 0xB123]
)
def test_every_status_is_followed(services: DeliveryServices, port: int, status: int) -> None:
    queue(services)
    meaning = meaning_of(of_status(status))
    with fake_pacs(port, [status]) as pacs:
        deliver_to("pacs", services)
        first = row(services)
        assert first.last_status == f"0x{status:04X}"
        if meaning.verdict.is_stored:
            assert first.state == "DELIVERED"
        else:  # nothing is given up before its time
            assert first.state == "QUEUED"
            is_seldom = meaning.verdict is Verdict.PERMANENT
            assert pause_s(services) == pytest.approx(3600 if is_seldom else 30, rel=0.25)
            assert first.reason == (meaning.sentence if is_seldom else None)
            make_due(services)
            deliver_to("pacs", services)
        assert row(services).state == "DELIVERED"
    assert len(pacs.arrivals) == (1 if meaning.verdict.is_stored else 2)
    assert all(len(digests) == 1 for digests in pacs.kept.values())


@pytest.mark.parametrize(
    ("answer", "status", "is_seldom"),
    [
        (rejection(2, 3, 2), "RJ 02/03/02", False),
        (rejection(2, 3, 1), "RJ 02/03/01", False),
        (rejection(1, 1, 7), "RJ 01/01/07", True),
        (rejection(1, 1, 3), "RJ 01/01/03", True),
        (rejection(1, 2, 2), "RJ 01/02/02", True),
        (abortion(2, 6), "ABORTED 2 6", False),
        (abortion(0, 0), "ABORTED 0 0", False),
        (b"", "LOST", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, False),
    ],
)
def test_every_refusal_of_an_association_is_followed(
    services: DeliveryServices, port: int, answer: bytes, status: str | None, is_seldom: bool
) -> None:
    queue(services)
    with raw_peer(port, answer):
        deliver_to("pacs", services)
    waiting = row(services)
    assert waiting.state == "QUEUED"
    assert status is None or waiting.last_status == status
    assert (waiting.reason is not None) == is_seldom
    assert pause_s(services) == pytest.approx(3600 if is_seldom else 30, rel=0.25)
    make_due(services)
    with fake_pacs(port):
        deliver_to("pacs", services)
    assert row(services).state == "DELIVERED"


def test_nobody_listens(services: DeliveryServices) -> None:
    queue(services)
    deliver_to("pacs", services)
    assert (row(services).state, row(services).last_status) == ("QUEUED", "NO_CONNECTION")


def test_a_host_without_a_name(
    services: DeliveryServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(services)
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([pacs_at(104) | {"host": "pacs.invalid"}]))
    deliver_to("pacs", open_services(services.database, tmp_path))
    assert (row(services).state, row(services).last_status) == ("QUEUED", "UNKNOWN_HOST")


def test_a_pacs_that_says_nothing_in_the_middle_of_a_store_is_left(
    services: DeliveryServices, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_DELIVERY__RESPONSE_TIMEOUT_S", "1")
    services = open_services(services.database, tmp_path)
    queue(services)
    is_over = threading.Event()
    with fake_pacs(port, before=lambda _: is_over.wait(60)):
        deliver_to("pacs", services)
        is_over.set()
    assert (row(services).state, row(services).last_status) == ("QUEUED", "RESPONSE_TIMEOUT")


def test_a_pacs_that_aborts_in_the_middle_of_a_store(services: DeliveryServices, port: int) -> None:
    queue(services, 2)
    with fake_pacs(port, before=lambda event: event.assoc.abort()):
        deliver_to("pacs", services)
    assert {each.state for each in rows(services)} == {"QUEUED"}
    assert rows(services)[0].last_status in {"ABORTED", "LOST"}


def test_a_destination_that_hangs_delays_no_other(
    services: DeliveryServices, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, quick = free_port(), free_port()
    monkeypatch.setenv(
        "DICOM_NODE_DESTINATIONS", json.dumps([pacs_at(hung, "hung"), pacs_at(quick, "quick")])
    )
    monkeypatch.setenv("DICOM_NODE_DELIVERY__RESPONSE_TIMEOUT_S", "60")
    opened = open_services(services.database, tmp_path)
    uids = queue(opened, 5, ("hung", "quick"))
    is_over = threading.Event()
    with (
        fake_pacs(hung, before=lambda _: is_over.wait(60)) as silent,
        fake_pacs(quick) as pacs,
    ):
        lanes = Lanes(lambda name: deliver_to(name, opened), opened.threads_of, look_again_s=0.1)
        for name in ("hung", "quick"):
            lanes.wake(name)
        until(lambda: sorted(pacs.times) == sorted(uids), "the quick one to have all")
        assert silent.arrivals == []  # it still holds the first
        is_over.set()
        until(lambda: sorted(silent.times) == sorted(uids), "the other one to have all")
        assert lanes.stop(30)
    until(lambda: {each.state for each in rows(opened)} == {"DELIVERED"}, "all to be delivered")


def test_as_many_associations_as_are_configured_and_no_more(
    services: DeliveryServices, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([pacs_at(port, concurrency=2)]))
    monkeypatch.setenv("DICOM_NODE_DELIVERY__BATCH", "1")
    opened = open_services(services.database, tmp_path)
    queue(opened, 6)
    both, most, open_now = threading.Barrier(2), [0], [0]

    def store(event: evt.Event) -> None:
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        both.wait(30)  # breaks unless two are open at the same time
        open_now[0] -= 1

    with fake_pacs(port, before=store):
        lanes = Lanes(lambda name: deliver_to(name, opened), opened.threads_of, look_again_s=0.1)
        lanes.wake("pacs")
        until(lambda: {each.state for each in rows(opened)} == {"DELIVERED"}, "all to be delivered")
        assert lanes.stop(30)
    assert most == [2]


def test_the_answer_is_lost_after_the_pacs_stored_it(
    services: DeliveryServices, port: int, free_port: Callable[[], int]
) -> None:
    (uid,) = queue(services)
    behind = free_port()

    def cuts() -> Iterator[Cut]:
        yield Cut(after_received=300)  # in the A-ASSOCIATE-AC or right behind it, so that no answer passes
        yield from uncut()

    with fake_pacs(behind) as pacs, cutting_proxy(port, behind, cuts()):
        for _ in range(2):
            make_due(services)
            deliver_to("pacs", services)
    assert row(services).state == "DELIVERED"
    assert len(pacs.kept[uid]) == 1


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_pacs_with_one_transfer_syntax_gets_a_lossless_copy(
    services: DeliveryServices, port: int, is_implicit: bool
) -> None:
    queue(services, 2)
    syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    with fake_pacs(port, syntaxes=[syntax]) as pacs:
        deliver_to("pacs", services)
    assert {each.state for each in rows(services)} == {"DELIVERED"}
    assert {arrival.transfer_syntax_uid for arrival in pacs.arrivals} == {str(syntax)}
    assert list((services.settings.home / "run").iterdir()) == []  # no copy stays


def test_a_pacs_that_does_not_take_the_class_is_a_dead_letter_that_names_it(
    services: DeliveryServices, port: int
) -> None:
    queue(services)
    with fake_pacs(port, classes=[CTImageStorage]) as pacs:
        deliver_to("pacs", services)
    dead = row(services)
    assert (dead.state, dead.last_status) == ("FAILED", "NO_CONTEXT")
    assert "SOP class" in (dead.reason or "")
    with services.database.reading() as tx:
        (attempt,) = attempts_of_delivery(tx, dead.delivery_id)
    assert "Ultrasound Image Storage (1.2.840.10008.5.1.4.1.1.6.1)" in (attempt.detail or "")
    assert pacs.arrivals == []
    with fake_pacs(port):  # set up there, requeued here
        with services.database.transaction() as tx:
            assert requeue_delivery(tx, dead.delivery_id)
        deliver_to("pacs", services)
    assert row(services).state == "DELIVERED"


def test_a_pacs_that_is_down_for_days_gets_everything_when_it_is_back(
    services: DeliveryServices, port: int, clock: Clock
) -> None:
    uids = queue(services, 3)
    for _ in range(13):
        clock.pass_days(0.5)
        deliver_to("pacs", services)
        assert {each.state for each in rows(services)} == {"QUEUED"}
        assert all((each.next_attempt_at or 0) > 0 for each in rows(services))
    clock.pass_days(0.49)
    with fake_pacs(port) as pacs:
        deliver_to("pacs", services)
    assert [arrival.sop_instance_uid for arrival in pacs.arrivals] == uids
    assert {each.state for each in rows(services)} == {"DELIVERED"}


def test_after_seven_days_it_is_a_dead_letter_that_can_be_requeued(
    services: DeliveryServices, port: int, clock: Clock
) -> None:
    queue(services)
    clock.pass_days(6.99)
    deliver_to("pacs", services)
    assert row(services).state == "QUEUED"
    clock.pass_days(0.02)
    deliver_to("pacs", services)
    dead = row(services)
    assert (dead.state, dead.last_status) == ("FAILED", "NO_CONNECTION")
    assert "Nobody listens" in (dead.reason or "")
    with services.database.reading() as tx:
        assert due_destinations(tx) == []
    clock.pass_days(30)
    with services.database.transaction() as tx:
        assert requeue_delivery(tx, dead.delivery_id)
    deliver_to("pacs", services)
    assert row(services).state == "QUEUED"  # its age counts from when it was requeued
    make_due(services)
    with fake_pacs(port):
        deliver_to("pacs", services)
    assert row(services).state == "DELIVERED"


def test_a_clock_that_goes_back_stops_nothing(services: DeliveryServices, port: int, clock: Clock) -> None:
    queue(services)
    clock.pass_days(-1)
    with fake_pacs(port):
        deliver_to("pacs", services)
    assert row(services).state == "DELIVERED"


def test_pauses_grow_to_ten_minutes_and_never_beyond(services: DeliveryServices, clock: Clock) -> None:
    queue(services)
    pauses = []
    for _ in range(8):
        deliver_to("pacs", services)
        pauses.append(pause_s(services))
        clock.offset_s += pauses[-1] + 1
    assert pauses[0] < 40
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[:4]))
    assert all(400 <= pause <= 725 for pause in pauses[5:])


def test_a_destination_that_was_taken_from_the_configuration_waits_and_says_so(
    services: DeliveryServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(services)
    monkeypatch.delenv("DICOM_NODE_DESTINATIONS")
    deliver_to("pacs", open_services(services.database, tmp_path))
    assert row(services).state == "QUEUED"
    assert "no destination of this name" in (row(services).reason or "")


def test_a_missing_file_is_a_dead_letter_with_a_reason(services: DeliveryServices, tmp_path: Path) -> None:
    queue(services)
    for path in (tmp_path / "files").rglob("*.dcm"):
        path.unlink()
    deliver_to("pacs", services)
    assert (row(services).state, row(services).last_status) == ("FAILED", "NO_INSTANCE")
    assert "fsck" in (row(services).reason or "")


def test_two_workers_send_it_once(services: DeliveryServices, port: int) -> None:
    queue(services, 2)
    with fake_pacs(port) as pacs:
        threads = [threading.Thread(target=deliver_to, args=("pacs", services)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(pacs.times.values()) == {1}
    assert {DeliveryState(each.state) for each in rows(services)} == {DeliveryState.DELIVERED}


FLAPPING = 40


def test_a_link_that_breaks_half_of_the_time_delivers_everything(
    services: DeliveryServices, port: int, free_port: Callable[[], int], clock: Clock
) -> None:
    uids = queue(services, FLAPPING)
    behind = free_port()
    sizes = itertools.cycle((None, 700, None, 4000, None, 90_000, None, 20_000))
    cuts = (Cut(after_sent=size, at_once=number % 10 == 9) for number, size in enumerate(sizes))
    with fake_pacs(behind) as pacs, cutting_proxy(port, behind, cuts):
        for _ in range(60):
            deliver_to("pacs", services)
            clock.pass_days(0.01)
            if {each.state for each in rows(services)} == {"DELIVERED"}:
                break
    assert {each.state for each in rows(services)} == {"DELIVERED"}
    assert sorted(pacs.kept) == sorted(uids)
    assert all(len(digests) == 1 for digests in pacs.kept.values())


@pytest.mark.parametrize("kind", HARM)
def test_a_damaged_file_is_not_sent_and_keeps_no_other_back(
    services: DeliveryServices, port: int, kind: str
) -> None:
    damaged, *sound = queue(services, 3)
    with services.database.reading() as tx:
        instance = find_instance(tx, damaged)
        assert instance is not None
    path = services.settings.home / "files" / instance.path
    whole = path.read_bytes()
    harm(path, kind)
    with fake_pacs(port) as pacs:
        deliver_to("pacs", services)
        assert sorted(pacs.kept) == sorted(sound)
        first, *others = rows(services)
        assert (first.state, first.last_status) == ("FAILED", "DAMAGED")
        assert "fsck" in (first.reason or "")
        assert {each.state for each in others} == {"DELIVERED"}
        path.write_bytes(whole)  # from the backup
        with services.database.transaction() as tx:
            requeue_delivery(tx, first.delivery_id)
        deliver_to("pacs", services)
    assert {each.state for each in rows(services)} == {"DELIVERED"}


def test_a_lane_goes_on_after_what_nobody_expected() -> None:
    passes = []

    def work(name: str) -> bool:
        passes.append(name)
        if len(passes) == 1:
            raise LookupError("not foreseen")
        return False

    lanes = Lanes(work, lambda _: 1, look_again_s=0.01)
    lanes.wake("pacs")
    until(lambda: len(passes) > 2, "the lane to go on")
    assert lanes.stop(10)
