"""Results are confirmed by Storage Commitment, sent again when it fails, and kept until then."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import evt
from sqlalchemy import func, select, update

from dicom_node.deliver import DeliveryServices, deliver_to
from dicom_node.purge import purge
from dicom_node.settings import load_settings
from storage.commitment_ledger import record_answer
from storage.database import Database
from storage.deliveries import due_destinations, queue_delivery
from storage.files import DiskFiles
from storage.index import Origin, find_instance, index_instance, mark_complete, record_from_dataset
from storage.jobs import JobRequest, create_job
from storage.studies import record_outcome
from storage.tables import Conflict, Delivery, Instance, Job, Series, Study, Table, Workitem
from tests.builders import make_ultrasound
from tests.clock import Clock, moved_clock
from tests.fake_pacs import FakePacs, fake_pacs

COMMITMENT = "1.2.840.10008.1.20.1"
NO_SUCH_INSTANCE = 0x0112


class Asked:
    """A PACS's Storage Commitment SCP: takes every request and remembers it; answers when told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[str]]] = []
        self.status = 0x0000

    def take(self, event: evt.Event) -> tuple[int, None]:
        information: Any = event.action_information
        uids = [str(item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence]
        if self.status == 0x0000:
            self.requests.append((str(information.TransactionUID), uids))
        return self.status, None


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
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "commitment": True}
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([pacs]))
    monkeypatch.setenv("DICOM_NODE_RETENTION__DAYS", "30")
    return DeliveryServices(database, DiskFiles(tmp_path / "files"), load_settings(tmp_path), "worker")


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def pacs(port: int, asked: Asked) -> Iterator[FakePacs]:
    with fake_pacs(port, contexts={COMMITMENT: None}, handlers=[(evt.EVT_N_ACTION, asked.take)]) as opened:
        yield opened


def store(services: DeliveryServices, count: int = 3) -> list[str]:
    """A complete study of `count` instances, each queued for the PACS."""
    dataset = make_ultrasound()
    study = dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    uids = []
    with services.database.transaction() as tx:
        for _ in range(count):
            uids.append(_keep(services, tx, dataset))
            queue_delivery(tx, uids[-1], "pacs", None)
        mark_complete(tx, study, 1, {})
        record_outcome(tx, study, "no rule matched")
    return uids


def _keep(services: DeliveryServices, tx: Any, dataset: Dataset) -> str:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    with services.files.new_incoming() as incoming:
        incoming.write(file.getvalue())
        index_instance(tx, record_from_dataset(dataset, incoming.keep(), Origin("DIMSE", "SCANNER")))
    return str(dataset.SOPInstanceUID)


def states(services: DeliveryServices) -> list[str]:
    with services.database.reading() as tx:
        return sorted(tx.scalars(select(Delivery.state)))


def row(services: DeliveryServices, uid: str) -> Delivery:
    with services.database.reading() as tx:
        return tx.scalars(select(Delivery).where(Delivery.sop_instance_uid == uid)).one()


def report(services: DeliveryServices, asked: Asked, failed: dict[str, int]) -> None:
    """The PACS's N-EVENT-REPORT about its last request, as the listener takes it in."""
    transaction_uid, uids = asked.requests[-1]
    committed = [uid for uid in uids if uid not in failed]
    with services.database.transaction() as tx:
        assert record_answer(tx, transaction_uid, "PACS", committed, failed)


def size(services: DeliveryServices, table: type[Table]) -> int:
    with services.database.reading() as tx:
        return tx.scalar(select(func.count()).select_from(table)) or 0


def test_a_result_is_confirmed_only_by_the_report(
    services: DeliveryServices, pacs: FakePacs, asked: Asked
) -> None:
    uids = store(services)
    deliver_to("pacs", services)
    assert states(services) == ["DELIVERED"] * 3
    assert [sorted(named) for _, named in asked.requests] == [sorted(uids)]
    deliver_to("pacs", services)  # not asked twice while the answer is awaited
    assert len(asked.requests) == 1
    report(services, asked, {})
    deliver_to("pacs", services)
    assert states(services) == ["CONFIRMED"] * 3
    assert row(services, uids[0]).confirmed_at is not None
    assert set(pacs.times.values()) == {1}


def test_what_the_report_names_as_failed_is_sent_again_and_kept_until_it_is_confirmed(
    services: DeliveryServices, pacs: FakePacs, asked: Asked, clock: Clock
) -> None:
    uids = store(services)
    deliver_to("pacs", services)
    report(services, asked, {uids[1]: NO_SUCH_INSTANCE})
    deliver_to("pacs", services)
    assert states(services) == ["CONFIRMED", "CONFIRMED", "QUEUED"]
    again = row(services, uids[1])
    assert again.last_status == "NOT_COMMITTED 0x0112"
    assert "does not commit" in (again.reason or "")
    clock.pass_days(40)
    assert purge(services.database, services.files, services.settings) == []
    deliver_to("pacs", services)
    assert pacs.times[uids[1]] == 2
    assert len(pacs.kept[uids[1]]) == 1  # the same bytes
    assert asked.requests[-1][1] == [uids[1]]
    assert purge(services.database, services.files, services.settings) == []  # not confirmed yet
    report(services, asked, {})
    deliver_to("pacs", services)
    assert states(services) == ["CONFIRMED"] * 3
    (gone,) = purge(services.database, services.files, services.settings)
    assert gone.instances == 3


def test_a_report_that_never_comes_is_asked_for_again(
    services: DeliveryServices, pacs: FakePacs, asked: Asked, clock: Clock
) -> None:
    del pacs
    uids = store(services, 1)
    deliver_to("pacs", services)
    clock.pass_days(1)
    with services.database.reading() as tx:
        assert due_destinations(tx) == ["pacs"]
    deliver_to("pacs", services)
    assert [named for _, named in asked.requests] == [uids, uids]
    assert asked.requests[0][0] != asked.requests[1][0]
    with services.database.transaction() as tx:  # the first answer, too late: another question is open
        record_answer(tx, asked.requests[0][0], "PACS", [], {uids[0]: NO_SUCH_INSTANCE})
    deliver_to("pacs", services)
    assert states(services) == ["DELIVERED"]
    report(services, asked, {})
    deliver_to("pacs", services)
    assert states(services) == ["CONFIRMED"]


def test_a_pacs_that_cannot_be_asked_is_told_to_the_operator(
    services: DeliveryServices, port: int, asked: Asked
) -> None:
    (uid,) = store(services, 1)
    with fake_pacs(port):  # stores, but offers no commitment
        deliver_to("pacs", services)
    waiting = row(services, uid)
    assert waiting.state == "DELIVERED"
    assert "Storage Commitment" in (waiting.reason or "")
    assert asked.requests == []


# ---- retention


@pytest.mark.parametrize("state", ["QUEUED", "DELIVERED", "FAILED"])
def test_nothing_goes_that_is_still_owed(services: DeliveryServices, clock: Clock, state: str) -> None:
    uids = store(services)
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(state="CONFIRMED"))
        last = update(Delivery).where(Delivery.sop_instance_uid == uids[2])
        tx.execute(last.values(state=state, commitment_due_at=0.0))
    clock.pass_days(365)
    assert purge(services.database, services.files, services.settings) == []
    with services.database.reading() as tx:
        found = find_instance(tx, uids[0])
        assert found is not None
        assert services.files.exists(found.path)


def test_what_is_delivered_and_old_goes_with_rows_and_files(services: DeliveryServices, clock: Clock) -> None:
    store(services)
    young = store(services)
    with services.database.transaction() as tx:
        old = tx.scalars(select(Series).order_by(Series.study_instance_uid)).first()
        assert old is not None
        uid, series_uid = old.study_instance_uid, old.series_instance_uid
        job_id = create_job(tx, JobRequest(uid, 1, series_uid, "rule", "stub", "What is it?"))
        tx.execute(update(Job).values(state="CANCELED"))
        tx.add(
            Workitem(
                workitem_uid="1.2.3", state="CANCELED", attributes="{}", job_id=job_id,
                created_at=0.0, changed_at=0.0,
            )
        )  # fmt: skip
        tx.execute(update(Delivery).values(state="CONFIRMED", commitment_due_at=None))
        clock.pass_days(31)
        fresh = select(Instance.study_instance_uid).where(Instance.sop_instance_uid == young[0])
        late = update(Study).where(Study.study_instance_uid.in_(fresh))
        tx.execute(late.values(last_received_at=Study.last_received_at + 2 * 86400))
    assert len(list(services.files.walk())) == 6
    (gone,) = purge(services.database, services.files, services.settings)
    assert gone.instances == 3
    assert len(list(services.files.walk())) == 3
    assert (size(services, Study), size(services, Instance), size(services, Delivery)) == (1, 3, 3)


def test_a_study_with_a_conflict_waits_for_its_operator(services: DeliveryServices, clock: Clock) -> None:
    (uid,) = store(services, 1)
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(state="CONFIRMED", commitment_due_at=None))
        other = Conflict(
            sop_instance_uid=uid, first_sha256="a", second_sha256="b", reason="other content", path="p",
            origin_kind="DIMSE", origin_detail="X", received_at=0.0, times_received=1,
        )  # fmt: skip
        tx.add(other)
    clock.pass_days(365)
    assert purge(services.database, services.files, services.settings) == []


def test_by_default_everything_is_kept(
    services: DeliveryServices, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(services)
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(state="CONFIRMED", commitment_due_at=None))
    clock.pass_days(10_000)
    monkeypatch.delenv("DICOM_NODE_RETENTION__DAYS")
    assert purge(services.database, services.files, load_settings(tmp_path)) == []


def test_a_full_disk_takes_the_oldest_that_may_go_and_no_other(
    services: DeliveryServices, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = store(services)
    clock.pass_days(1)
    store(services)
    owed = store(services)
    with services.database.transaction() as tx:
        tx.execute(update(Delivery).values(state="CONFIRMED", commitment_due_at=None))
        late = update(Delivery).where(Delivery.sop_instance_uid == owed[0])
        tx.execute(late.values(state="QUEUED"))
    clock.pass_days(1)
    monkeypatch.delenv("DICOM_NODE_RETENTION__DAYS")
    monkeypatch.setenv("DICOM_NODE_RETENTION__PURGE_WHEN_FULL", "true")
    monkeypatch.setenv("DICOM_NODE_LIMITS__LOW_FREE_MB", str(1 << 40))  # more than any disk has
    gone = purge(services.database, services.files, load_settings(tmp_path))
    assert len(gone) == 2
    assert size(services, Study) == 1
    with services.database.reading() as tx:
        assert find_instance(tx, oldest[0]) is None
        assert find_instance(tx, owed[0]) is not None
