import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from pydicom.uid import generate_uid
from sqlalchemy import select, update

from dicom_node import tasks
from dicom_node.__main__ import main
from dicom_node.completion import complete_studies
from dicom_node.lanes import Lanes
from dicom_node.lease import Lease
from dicom_node.model_process import ModelStopped
from dicom_node.pipeline import Services
from dicom_node.predictors import WorkerModels
from dicom_node.services import open_receiver
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.sweep import Sweep
from dicom_node.tasks import RunWorker, WakeUps, build_app
from inference.contract import Predictor
from inference.errors import EngineRejected
from storage.database import Database, upgrade
from storage.errors import LeaseLost, StorageUnavailable
from storage.files import DiskFiles
from storage.index import Origin, instances_of_series, request_completion
from storage.jobs import ClaimedJob, cancel_job, claim_job, failed_jobs
from storage.tables import Instance, Job
from tests.builders import make_ultrasound
from tests.damage import harm
from tests.stub_engine import StubPredictor

EIO_FILE = Path("/proc/self/mem")  # nothing is mapped where it begins: it opens, and reading it is EIO


class SentWakeUps(WakeUps):
    """Keeps what would be sent; `is_down` plays a broker that does not answer."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.is_down = False

    def run_jobs(self) -> None:
        self._send("run", "")

    def deliver(self, delivery_id: str) -> None:
        self._send("deliver", delivery_id)

    def _send(self, queue: str, work_id: str) -> None:
        if self.is_down:
            raise OperationalError("no broker")
        self.sent.append((queue, work_id))


class FakeModels(WorkerModels):
    """One predictor of this process under every name."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.problem: Exception | None = None
        self.stops = 0

    def open(self, name: str, job_id: str = "", priority: float = 0.0) -> Predictor:
        if self.problem is not None:
            raise self.problem
        return self.predictor

    def stop(self, job_id: str) -> None:
        self.stops += 1

    def stop_all(self) -> None:
        self.stops += 1

    def forget(self, job_id: str) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Node:
    """The parts of a node in this process."""

    settings: NodeSettings
    database: Database
    wake_ups: SentWakeUps
    models: "FakeModels"
    workers: list[RunWorker] = field(default_factory=list)

    def worker(self) -> RunWorker:
        made = RunWorker(self.settings, self.database, self.wake_ups, self.models)
        self.workers.append(made)
        return made

    def receive(self, *, is_new: bool = False) -> str:
        """Receive one ultrasound image, always the same or a new one, and route it; gives its job's id."""
        file, dataset = io.BytesIO(), make_ultrasound()
        if is_new:
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(file, enforce_file_format=True)
        receiver = open_receiver(self.settings, self.database)
        study = receiver.receive_part10([file.getvalue()], Origin("DIMSE", "SCANNER")).study_instance_uid
        with self.database.transaction() as tx:
            request_completion(tx, study, "test")
        (job_id,) = complete_studies(self.database, self.settings)
        return job_id

    def image_of(self, job_id: str) -> str:
        """Where the stored file of the job's image is."""
        with self.database.reading() as tx:
            (row,) = instances_of_series(tx, self.job(job_id).series_instance_uid)
        return row.path

    def job(self, job_id: str) -> Job:
        with self.database.reading() as tx:
            return tx.get_one(Job, job_id)

    def make_due(self) -> None:
        with self.database.transaction() as tx:
            tx.execute(update(Job).values(next_attempt_at=0.0, lease_expires_at=None))

    def own_results(self) -> int:
        with self.database.reading() as tx:
            return len(tx.scalars(select(Instance).where(Instance.origin_kind == "OWN RESULT")).all())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for key, value in {
        "LIMITS__MIN_FREE_MB": "0",
        "JOBS__FIRST_RETRY_S": "60",
        "JOBS__STOP_GRACE_S": "200",
    }.items():
        monkeypatch.setenv(f"DICOM_NODE_{key}", value)
    monkeypatch.setenv(
        "DICOM_NODE_DESTINATIONS", '[{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 1}]'
    )
    settings = load_settings(tmp_path)
    upgrade(settings.storage.database_url)
    database = Database(settings.storage.database_url)
    made = Node(settings, database, SentWakeUps(), FakeModels(StubPredictor()))
    yield made
    for worker in made.workers:
        worker.close()
    database.close()


@pytest.fixture
def stub(node: Node) -> StubPredictor:
    """The predictor without weights in place of the model package."""
    return node.models.predictor


def test_a_job_ends_with_stored_results_and_woken_deliveries(node: Node, stub: StubPredictor) -> None:
    job_id = node.receive()
    node.worker().run_next()
    job = node.job(job_id)
    assert (job.state, job.outcome, job.attempts, job.reason) == ("COMPLETED", "RESULT", 1, None)
    assert json.loads(job.summary or "")["diagnosis"] == "benign"
    assert node.own_results() == 2
    assert [queue for queue, _ in node.wake_ups.sent] == ["deliver"]


def test_a_second_wake_up_runs_nothing(node: Node, stub: StubPredictor) -> None:
    job_id = node.receive()
    worker = node.worker()
    worker.run_next()
    worker.run_next()
    assert (node.job(job_id).attempts, len(stub.asked)) == (1, 1)


def test_a_failed_attempt_is_made_again_and_the_last_one_cancels(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: ClaimedJob, services: Services) -> None:
        raise RuntimeError("the canary DOE^JOHN")

    monkeypatch.setattr(tasks, "run_job", fail)
    job_id = node.receive()
    worker = node.worker()
    worker.run_next()
    waiting = node.job(job_id)
    assert (waiting.state, waiting.attempts, waiting.outcome) == ("IN PROGRESS", 1, None)
    worker.run_next()  # not due yet
    assert node.job(job_id).attempts == 1
    for _ in range(2):
        node.make_due()
        worker.run_next()
    failed = node.job(job_id)
    assert (failed.state, failed.outcome, failed.attempts) == ("CANCELED", "FAILED", 3)
    assert failed.reason == "RuntimeError"  # its text may carry patient values


def test_an_attempt_after_a_failed_one_ends_well(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.receive()
    worker = node.worker()
    with monkeypatch.context() as broken:
        broken.setattr(tasks, "run_job", lambda *_: (_ for _ in ()).throw(StorageUnavailable("locked")))
        worker.run_next()
    node.make_due()
    worker.run_next()
    assert (node.job(job_id).state, node.job(job_id).attempts, node.own_results()) == ("COMPLETED", 2, 2)


def fail_for_good(node: Node, lost: str, other: str) -> Job:
    """Let a worker make every attempt at both jobs; gives the lost one."""
    worker = node.worker()
    for _ in range(4):
        node.make_due()
        worker.run_next()
    assert (node.job(other).state, node.job(other).outcome) == ("COMPLETED", "RESULT"), "the worker goes on"
    with node.database.reading() as tx:
        assert failed_jobs(tx) == [lost]
    return node.job(lost)


def test_a_job_does_not_run_on_an_image_that_is_gone(
    node: Node, stub: StubPredictor, capsys: pytest.CaptureFixture[str]
) -> None:
    """DUR-13."""
    lost = node.receive()
    path = node.image_of(lost)
    (node.settings.storage.files_root / path).unlink()
    job = fail_for_good(node, lost, node.receive(is_new=True))
    assert (job.state, job.outcome, job.attempts) == ("CANCELED", "FAILED", 3)
    assert (job.reason or "").startswith("INPUT_UNREADABLE: the file objects/")
    assert len(stub.asked) == 1, "the model was asked about the other image only"
    assert main(["fsck", "--json", "--home", str(node.settings.home)]) == 1
    assert json.loads(capsys.readouterr().out)["missing"] == [path]


def test_a_job_does_not_run_on_an_image_that_the_disk_changed(node: Node, stub: StubPredictor) -> None:
    lost = node.receive()
    path = node.image_of(lost)
    harm(node.settings.storage.files_root / path, "one other bit at the end")
    job = fail_for_good(node, lost, node.receive(is_new=True))
    assert (job.state, job.outcome, job.attempts) == ("CANCELED", "FAILED", 3)
    assert (job.reason or "").startswith(f"INPUT_UNREADABLE: the file {path} is not what was stored")
    assert len(stub.asked) == 1, "the model was asked about the other image only"


def test_an_image_that_the_disk_does_not_give_costs_its_own_job(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RES-09: the file opens, and reading it is EIO."""
    lost = node.receive()
    path = node.image_of(lost)
    real = DiskFiles.local

    def local(files: DiskFiles, asked: str) -> AbstractContextManager[Path]:
        return nullcontext(EIO_FILE) if asked == path else real(files, asked)

    monkeypatch.setattr(DiskFiles, "local", local)
    job = fail_for_good(node, lost, node.receive(is_new=True))
    assert (job.state, job.outcome, job.attempts) == ("CANCELED", "FAILED", 3)
    assert job.reason == "INPUT_UNREADABLE: the file mem cannot be read (EIO)"
    assert len(stub.asked) == 1


def test_a_lost_lease_leaves_the_job_to_who_has_it(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(job: ClaimedJob, services: Services) -> None:
        node.make_due()
        with node.database.transaction() as tx:
            assert claim_job(tx, job.job_id, "another worker", 60, 3) is not None
        raise LeaseLost(job.job_id, job.fence)

    monkeypatch.setattr(tasks, "run_job", lose)
    job_id = node.receive()
    node.worker().run_next()
    assert (node.job(job_id).state, node.job(job_id).leased_by) == ("IN PROGRESS", "another worker")


def test_a_model_that_cannot_be_opened_fails_the_job_at_once(node: Node) -> None:
    node.models.problem = EngineRejected("the graph has no output logits; export the model again")
    worker = node.worker()
    worker.open_models()
    job_id = node.receive()
    worker.run_next()
    job = node.job(job_id)
    assert (job.state, job.outcome, job.attempts) == ("CANCELED", "FAILED", 1)
    assert job.reason == "the graph has no output logits; export the model again"


def test_a_worker_told_to_end_hands_its_job_back(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JOB-13: the model is stopped, the attempt does not count, the next worker starts at once."""
    is_running = threading.Event()

    def work(job: ClaimedJob, services: Services) -> None:
        is_running.set()
        until(lambda: node.models.stops > 0)
        raise ModelStopped("the model's process: signal 9")

    monkeypatch.setattr(tasks, "run_job", work)
    monkeypatch.setenv("DICOM_NODE_JOBS__STOP_GRACE_S", "0.05")
    job_id = node.receive()
    worker = RunWorker(load_settings(node.settings.home), node.database, node.wake_ups, node.models)
    lanes = Lanes(lambda _: worker.run_next(), lambda _: 1)
    lanes.wake("run")
    assert is_running.wait(20)
    worker.end(lanes)
    job = node.job(job_id)
    assert (job.state, job.leased_by, job.next_attempt_at) == ("IN PROGRESS", None, None)
    assert job.attempts - job.handed_back == 0
    monkeypatch.undo()
    node.worker().run_next()
    assert node.job(job_id).state == "COMPLETED"


def test_a_job_that_is_soon_done_is_done_before_the_worker_ends(
    node: Node, stub: StubPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.receive()
    worker = node.worker()
    lanes = Lanes(lambda _: worker.run_next(), lambda _: 1)
    lanes.wake("run")
    until(lambda: node.job(job_id).state != "SCHEDULED")
    worker.end(lanes)
    job = node.job(job_id)
    assert (job.state, job.handed_back, node.models.stops) == ("COMPLETED", 0, 0)


def test_no_broker_after_a_job_harms_nothing(node: Node, stub: StubPredictor) -> None:
    job_id = node.receive()
    node.wake_ups.is_down = True
    node.worker().run_next()
    assert node.job(job_id).state == "COMPLETED"


def test_a_canceled_job_is_not_run(node: Node, stub: StubPredictor) -> None:
    job_id = node.receive()
    with node.database.transaction() as tx:
        job = claim_job(tx, job_id, "operator", 60, 3)
        assert job is not None
        cancel_job(tx, job_id, job.fence, "FAILED", "an operator ended it")
    node.worker().run_next()
    assert stub.asked == []


def test_the_sweep_wakes_what_is_due_and_not_more_often_than_set(node: Node, stub: StubPredictor) -> None:
    node.receive()
    sweep = Sweep(node.database, node.settings, node.wake_ups)
    sweep.run_once()
    sweep.run_once()
    assert node.wake_ups.sent == [("run", "")]
    node.worker().run_next()
    node.wake_ups.sent.clear()
    sweep.run_once()
    assert [queue for queue, _ in node.wake_ups.sent] == ["deliver"]


def test_the_sweep_goes_on_without_a_broker(node: Node) -> None:
    node.receive()
    sweep = Sweep(node.database, node.settings, node.wake_ups)
    node.wake_ups.is_down = True
    sweep.run_once()
    node.wake_ups.is_down = False
    sweep.run_once()
    assert node.wake_ups.sent == [("run", "")]


def test_the_sweep_goes_on_without_a_database(node: Node) -> None:
    node.database.close()
    path = node.settings.home / "node.sqlite"
    shutil.move(path, path.with_suffix(".away"))
    sweep = Sweep(node.database, node.settings, node.wake_ups)
    sweep.run_once()
    assert node.wake_ups.sent == []


def test_a_message_of_the_embedded_broker_lies_under_home(node: Node) -> None:
    WakeUps(build_app(node.settings)).run_jobs()
    (message,) = (node.settings.home / "broker" / "messages").iterdir()
    assert json.loads(message.read_text())["properties"]["delivery_info"]["routing_key"] == "run"
    assert not (Path.cwd() / "control").exists()


@pytest.mark.parametrize(
    "setting", ["accept_content", "task_serializer", "task_acks_late", "worker_prefetch_multiplier"]
)
def test_celery_takes_json_one_at_a_time(node: Node, setting: str) -> None:
    expected = {
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
    }
    assert build_app(node.settings).conf[setting] == expected[setting]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_beats_until_the_block_ends() -> None:
    beats: list[float] = []
    with Lease(lambda: bool(beats.append(time.monotonic()) or True), 0.06):
        until(lambda: len(beats) >= 3)
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count


def test_a_lease_that_is_lost_beats_no_more() -> None:
    beats: list[int] = []
    lost: list[int] = []
    with Lease(lambda: bool(beats.append(1)), 0.03, lost=lambda: lost.append(1)):
        time.sleep(0.2)
    assert (beats, lost) == ([1], [1])


def test_a_busy_database_does_not_end_the_beating() -> None:
    beats: list[int] = []

    def beat() -> bool:
        beats.append(1)
        raise StorageUnavailable("locked")

    with Lease(beat, 0.03):
        until(lambda: len(beats) >= 3)


def test_work_that_takes_too_long_is_ended_once() -> None:
    ended: list[int] = []
    with Lease(lambda: True, 60, time_limit_s=0.05, end_overdue=lambda: ended.append(1)):
        time.sleep(0.3)
    assert ended == [1]
