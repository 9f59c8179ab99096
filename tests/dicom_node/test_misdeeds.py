"""What a model breaks costs its own process: every misdeed of the stub, in a worker."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from dicom_node import readiness
from dicom_node.__main__ import main
from dicom_node.model_process import ModelAttempt, ModelProcess, ModelStopped
from dicom_node.plausible import require_plausible
from dicom_node.predictors import WorkerModels
from dicom_node.services import open_receiver
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.tasks import RunWorker
from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.errors import DeviceOutOfMemory, InputRejected, OutputInvalid, PackageTampered
from inference.runtime.stub_predictor import darkest_part
from inference.settings import InferenceSettings
from storage.database import Database, upgrade
from storage.index import Origin
from storage.jobs import JobRequest, claim_next_job, create_job, failed_jobs
from storage.tables import Instance, Job
from tests.builders import make_ultrasound
from tests.dicom_node.test_tasks import SentWakeUps
from tests.stub_engine import write_stub_package

MIB = 1024 * 1024
IMAGE = Image(np.tile(np.arange(40, dtype=np.uint8)[:, None, None], (1, 30, 3)))
PLAIN = "Is there a lesion?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stub_package(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def process(models: Path) -> Iterator[ModelProcess]:
    settings = InferenceSettings(model_repository=models, test_mode=True, threads=1)
    opened = ModelProcess("sim4seg-s", settings, 400 * MIB)
    yield opened
    opened.close()


@pytest.fixture
def model(process: ModelProcess) -> ModelAttempt:
    process.open()
    return ModelAttempt(process)


def test_a_model_in_a_process_says_what_it_says_here(process: ModelProcess, model: ModelAttempt) -> None:
    here = darkest_part(IMAGE)
    for there in (model.predict(IMAGE, Prompt(PLAIN)), *model.segment([IMAGE] * 3, Prompt(PLAIN), here)):
        assert (there.mask == here.mask).all()
        assert there.similarity.dtype == np.float32
        assert (there.diagnosis, there.text, there.target) == (here.diagnosis, here.text, here.target)
    assert (model.name, model.version, len(model.digest)) == ("sim4seg-s", "0.0.1", 64)
    assert process.open() is False


@pytest.mark.parametrize("deed", ["segfault", "exhaust memory"])
def test_a_model_that_breaks_is_stopped_and_starts_again(
    process: ModelProcess, model: ModelAttempt, deed: str
) -> None:
    with pytest.raises(ModelStopped):
        model.predict(IMAGE, Prompt(f"stub {deed}"))
    assert process.open() is True
    assert model.predict(IMAGE, Prompt(PLAIN)).has_region


def test_a_model_that_spins_is_ended_in_time(model: ModelAttempt) -> None:
    model.left_s = 0.5
    with pytest.raises(ModelStopped, match="longer than"):
        model.predict(IMAGE, Prompt("stub spin"))


@pytest.mark.parametrize("deed", ["nan", "wrong shape", "nonsense"])
def test_what_cannot_be_meant_is_refused(model: ModelAttempt, deed: str) -> None:
    with pytest.raises(OutputInvalid, match="OUTPUT_INVALID"):
        model.segment([IMAGE], Prompt(f"stub {deed}"), None)


def test_errors_of_inference_keep_their_kind(model: ModelAttempt) -> None:
    with pytest.raises(InputRejected, match="fail first"):
        model.predict(IMAGE, Prompt("stub fly"))
    with pytest.raises(DeviceOutOfMemory):
        model.predict(Image(IMAGE.pixels + 1), Prompt("stub fail first"))


RIGHT = darkest_part(IMAGE)
DOUBTFUL: list[tuple[str, Callable[[], Prediction]]] = [
    ("booleans", lambda: replace(RIGHT, mask=RIGHT.mask.astype(np.uint8))),
    ("41 x 30", lambda: replace(RIGHT, mask=np.ones((41, 30), bool))),
    ("without a region", lambda: replace(RIGHT, has_region=False)),
    ("no grid", lambda: replace(RIGHT, region=np.ones(16, bool))),
    ("same grid", lambda: replace(RIGHT, region=np.ones((8, 8), bool))),
    ("between 0 and 1", lambda: replace(RIGHT, similarity=RIGHT.similarity * 3)),
    ("between 0 and 1", lambda: replace(RIGHT, similarity=np.full((16, 16), np.inf, np.float32))),
    ("overlap", lambda: replace(RIGHT, predicted_iou=float("inf"))),
    ("time", lambda: replace(RIGHT, seconds={"total": float("nan")})),
    ("no text", lambda: replace(RIGHT, text="long " * 9000)),
    ("control characters", lambda: replace(RIGHT, reasoning="a\x1b[31m")),
    ("target", lambda: replace(RIGHT, target="the doctor")),
    ("modality", lambda: replace(RIGHT, modality="dream")),
    ("diagnosis", lambda: replace(RIGHT, diagnosis=Diagnosis("doomed", 0.5, ()))),
    ("diagnosis", lambda: replace(RIGHT, diagnosis=Diagnosis("benign", 0.5, (("doomed", 0.1),)))),
    ("probability", lambda: replace(RIGHT, diagnosis=Diagnosis("benign", float("nan"), ()))),
    ("sum", lambda: replace(RIGHT, diagnosis=Diagnosis("benign", 0.9, (("malignant", 0.9),)))),
]


@pytest.mark.parametrize(("words", "doubtful"), DOUBTFUL)
def test_every_doubtful_prediction_is_refused(words: str, doubtful: Callable[[], Prediction]) -> None:
    with pytest.raises(OutputInvalid, match=words):
        require_plausible(doubtful(), IMAGE)
    assert require_plausible(RIGHT, IMAGE) is RIGHT


def test_a_package_that_was_changed_makes_the_node_unready_until_it_is_right_again(
    models: Path, tmp_path: Path
) -> None:
    repository = write_stub_package(tmp_path / "models")
    settings = load_settings(tmp_path / "home").model_copy(
        update={"inference": InferenceSettings(model_repository=repository, test_mode=True)}
    )
    opened = WorkerModels(settings)
    text = (repository / "sim4seg-s" / "README.md").read_bytes()
    (repository / "sim4seg-s" / "README.md").write_bytes(b"other weights")
    with pytest.raises(PackageTampered):
        opened.open("sim4seg-s")
    (problem,) = readiness.problems(settings.home)
    assert problem.sentence.startswith("model sim4seg-s: ")
    (repository / "sim4seg-s" / "README.md").write_bytes(text)
    assert opened.open("sim4seg-s").version == "0.0.1"
    assert readiness.problems(settings.home) == []
    opened.close()


# --- the same through jobs -------------------------------------------------------------------------


@dataclass
class Bench:
    """A database with one ultrasound series, and a worker."""

    settings: NodeSettings
    database: Database
    worker: RunWorker
    series: tuple[str, str]

    def ask(self, query: str) -> str:
        with self.database.transaction() as tx:
            job_id = create_job(tx, JobRequest(self.series[0], 1, self.series[1], "r", "sim4seg-s", query))
        assert job_id is not None
        return job_id

    def job(self, job_id: str) -> Job:
        with self.database.reading() as tx:
            return tx.get_one(Job, job_id)

    def run(self, query: str) -> Job:
        """All attempts at a job that asks `query`, without the pauses between them."""
        job_id = self.ask(query)
        while self.worker.run_next():
            with self.database.transaction() as tx:
                tx.execute(update(Job).where(Job.job_id == job_id).values(next_attempt_at=None))
        return self.job(job_id)

    def results_of(self, job_id: str) -> int:
        with self.database.reading() as tx:
            mine = (Instance.origin_kind == "OWN RESULT", Instance.origin_detail == job_id)
            return len(tx.scalars(select(Instance.sop_class_uid).where(*mine)).all())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("home")
    (home / "node.toml").write_text(
        f"[inference]\nmodel_repository = '{models}'\ntest_mode = true\nthreads = 1\n"
        "[jobs]\ntime_limit_s = 2.0\nmodel_memory_mb = 400\n[limits]\nmin_free_mb = 0\n"
    )
    settings = load_settings(home)
    upgrade(settings.storage.database_url)
    database = Database(settings.storage.database_url)
    file = io.BytesIO()
    make_ultrasound().save_as(file, enforce_file_format=True)
    received = open_receiver(settings, database).receive_part10([file.getvalue()], Origin("DIMSE", "US"))
    worker_models = WorkerModels(settings)
    worker = RunWorker(settings, database, SentWakeUps(), worker_models)
    worker.open_models()
    yield Bench(settings, database, worker, (received.study_instance_uid, received.series_instance_uid))
    worker.close()
    database.close()


def test_a_plain_question_gives_a_result(bench: Bench) -> None:
    job = bench.run(PLAIN)
    assert (job.state, job.outcome, job.attempts) == ("COMPLETED", "RESULT", 1)
    assert bench.results_of(job.job_id) == 2


@pytest.mark.parametrize(
    ("deed", "attempts", "reason"),
    [
        ("crash", 3, "RuntimeError"),
        ("segfault", 3, "signal 11"),
        ("exhaust memory", 3, "memory"),
        ("spin", 3, "longer than"),
        ("nan", 1, "OUTPUT_INVALID"),
        ("wrong shape", 1, "OUTPUT_INVALID"),
        ("nonsense", 1, "OUTPUT_INVALID"),
    ],
)
def test_a_misdeed_ends_as_a_dead_letter_with_its_reason(
    bench: Bench, deed: str, attempts: int, reason: str
) -> None:
    """G4, RES-08, JOB-10, JOB-12."""
    job = bench.run(f"stub {deed}")
    assert (job.state, job.outcome, job.attempts) == ("CANCELED", "FAILED", attempts)
    assert reason in (job.reason or "")
    with bench.database.reading() as tx:
        assert job.job_id in failed_jobs(tx)
    after = bench.run(f"And after {deed}?")
    assert (after.state, after.attempts) == ("COMPLETED", 1)


def test_what_fails_the_first_time_ends_well_the_second(bench: Bench) -> None:
    """JOB-11."""
    job = bench.run("stub fail first")
    assert (job.state, job.outcome, job.attempts) == ("COMPLETED", "RESULT", 2)


def test_who_was_taken_for_dead_publishes_nothing(bench: Bench) -> None:
    """A zombie: its lease was another's while it slept, so its model is stopped and its result dropped."""
    job_id = bench.ask("stub sleep 1.2")
    stolen = []

    def steal(database: Database) -> None:
        with database.transaction() as tx:
            tx.execute(update(Job).where(Job.job_id == job_id).values(lease_expires_at=0.0))
        with database.transaction() as tx:
            stolen.append(claim_next_job(tx, "another worker", 60.0, 3))

    thief = threading.Timer(0.4, steal, [bench.database])
    thief.start()
    bench.worker.run_next()
    thief.join()
    job = bench.job(job_id)
    assert stolen[0] is not None
    assert (job.state, job.leased_by, job.fence) == ("IN PROGRESS", "another worker", 2)
    assert bench.results_of(job_id) == 0


def test_an_operator_sees_dead_letters_and_asks_again(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """JOB-14: it runs once, and who asked is recorded."""
    home = ["--home", str(bench.settings.home)]
    failed = bench.run("stub nan 1")
    assert main(["jobs", "--failed", "--json", *home]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert failed.job_id in [row["job_id"] for row in listed]
    assert {row["outcome"] for row in listed} == {"FAILED"}
    assert main(["requeue", *home]) == 2
    assert main(["requeue", "nothing", *home]) == 1
    capsys.readouterr()
    assert main(["requeue", failed.job_id, *home]) == 0
    ((old, again),) = [line.split(" -> ") for line in capsys.readouterr().out.splitlines()]
    assert old == failed.job_id
    assert bench.job(again).requeued_by.startswith("dicom-node requeue, ")
    while bench.worker.run_next():
        pass
    assert bench.job(again).outcome == "FAILED"
    assert main(["requeue", "--all-failed", *home]) == 0
    assert again in capsys.readouterr().out
