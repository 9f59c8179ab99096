"""G6: little room refuses new work politely, no room refuses it by status; what leaves the node goes on."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest
from sqlalchemy import select

from dicom_node.deliver import DeliveryServices, deliver_to
from dicom_node.dimse.listener import start_listener
from dicom_node.errors import StorageExhausted
from dicom_node.pressure import Pressure
from dicom_node.services import open_receiver
from dicom_node.settings import NodeSettings
from dicom_node.web.app import build_app
from storage.database import Database
from storage.files import DiskFiles
from storage.tables import Delivery, Instance
from tests.builders import part10
from tests.dicom_node.dimse.instances import make_settings
from tests.dicom_node.dimse.raw_peer import ASSOCIATE_RJ, CT, associate_rq, connect, context, receive_pdu
from tests.fake_pacs import fake_pacs
from tests.ward import SCANNER, Ward, stack

MORE_THAN_THERE_IS = 10**9  # MiB: any disk is below this mark

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Ask = Callable[..., httpx.Response]


@pytest.fixture
def limits() -> dict[str, int]:
    return {"min_free_mb": 0, "low_free_mb": MORE_THAN_THERE_IS}


@pytest.fixture
def settings(
    tmp_path: Path, database_url: str, limits: dict[str, int], free_port: Callable[[], int]
) -> NodeSettings:
    pacs = {"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    sections = {"limits": limits, "dimse": {"port": free_port()}, "destinations": [pacs]}
    return make_settings(tmp_path, database_url, tmp_path / "files", **sections)


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    """A node with a job to run: it came when there was room."""
    ward = Ward(database, tmp_path)
    ward.receive(*stack(2))
    return ward


@pytest.fixture
def association(settings: NodeSettings, database: Database) -> Iterator[Callable[[], tuple[int, ...]]]:
    """A function that asks for an association; gives the kind of the answer and its numbers."""
    listener = start_listener(settings, open_receiver(settings, database), database)

    def ask() -> tuple[int, ...]:
        with connect(settings.dimse.port) as peer:
            peer.sendall(associate_rq(context(1, CT)))
            kind, body = receive_pdu(peer)
        return kind, *body[1:4]

    yield ask
    listener.shutdown()


@pytest.fixture
def ask(settings: NodeSettings, database: Database) -> Iterator[Ask]:
    app = build_app(settings, database)

    def request(method: str, path: str, **options: object) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.request(method, path, **options)

        return anyio.run(send)

    yield request
    app.state.services.close()


def drain(ward: Ward, settings: NodeSettings, database: Database) -> None:
    """Run the job and deliver its results; all of them arrive."""
    services = DeliveryServices(database, DiskFiles(settings.storage.files_root), settings, "worker")
    ward.services = replace(ward.services, receiver=open_receiver(settings, database))  # by the watermarks
    ward.work()
    with fake_pacs(settings.destinations[0].port) as pacs:
        deliver_to("PACS", services)
    with database.reading() as tx:
        results = set(
            tx.scalars(select(Instance.sop_instance_uid).where(Instance.origin_kind == "OWN RESULT"))
        )
        states = set(tx.scalars(select(Delivery.state)))
    assert len(results) == 2
    assert (set(pacs.kept), states) == (results, {"DELIVERED"})


def test_little_room_refuses_associations_and_uploads_and_lets_work_go_on(
    ward: Ward,
    settings: NodeSettings,
    database: Database,
    association: Callable[[], tuple[int, ...]],
    ask: Ask,
) -> None:
    """RES-02."""
    assert association() == (ASSOCIATE_RJ, 2, 3, 1)
    ready = ask("GET", "/health/ready")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["disk"])
    assert "low_free_mb" in ready.json()["problems"][0]
    assert ask("GET", "/health/live").status_code == 200
    body, kind = part10(stack(1)[0]), {"Content-Type": "application/dicom"}
    upload = ask("POST", "/dicom-web/studies", content=body, headers=kind)
    assert (upload.status_code, upload.headers["retry-after"]) == (503, "30")
    drain(ward, settings, database)


class TestNoRoom:
    @pytest.fixture
    def limits(self) -> dict[str, int]:
        return {"min_free_mb": MORE_THAN_THERE_IS, "low_free_mb": MORE_THAN_THERE_IS}

    def test_the_reserve_is_for_results(
        self, ward: Ward, settings: NodeSettings, database: Database, ask: Ask
    ) -> None:
        with pytest.raises(StorageExhausted):
            open_receiver(settings, database).receive_part10([part10(stack(1)[0])], SCANNER)
        body, kind = part10(stack(1)[0]), {"Content-Type": "application/dicom"}
        upload = ask("POST", "/dicom-web/studies", content=body, headers=kind)
        assert upload.status_code == 507
        drain(ward, settings, database)


def test_nobody_is_refused_while_somebody_else_looks_at_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found, is_asked, may_go_on = os.statvfs(tmp_path), threading.Event(), threading.Event()

    def slow(_: Path) -> os.statvfs_result:
        if not is_asked.is_set():
            is_asked.set()
            assert may_go_on.wait(30)
        return found

    monkeypatch.setattr("os.statvfs", slow)
    pressure = Pressure(tmp_path, tmp_path, soft_bytes=1, hard_bytes=1)
    first = threading.Thread(target=pressure.hard_problem)
    first.start()
    try:
        assert is_asked.wait(30)
        assert pressure.hard_problem() is None
        assert pressure.soft_problem() is None
    finally:
        may_go_on.set()
        first.join()


def test_a_disk_that_does_not_even_take_the_report_of_its_failure_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr("dicom_node.pressure.readiness.report", full)
    pressure = Pressure(tmp_path, tmp_path, soft_bytes=0, hard_bytes=0)
    assert pressure.hard_problem() is None
    pressure.fsync_failed()
    for problem in (
        pressure.hard_problem(),
        pressure.hard_problem(may_use_reserve=True),
        pressure.soft_problem(),
    ):
        assert "not trusted" in (problem or "")
