import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select, update

from dicom_node import completion
from dicom_node.completion import complete_studies
from dicom_node.settings import NodeSettings, load_settings
from storage.database import Database
from storage.index import Origin, QuietStudy, request_completion
from storage.tables import Job, Study
from tests.builders import make_ultrasound
from tests.doors import make_receiver

SENDER = Origin("DIMSE", "SCANNER")
Receive = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    monkeypatch.setenv("DICOM_NODE_COMPLETION__QUIET_PERIOD_S", "60")
    return load_settings(tmp_path)


@pytest.fixture
def receive(database: Database, files_root: Path) -> Receive:
    """A function that receives a data set and gives its study's UID."""
    receiver = make_receiver(database, files_root)

    def take(dataset: Dataset, origin: Origin = SENDER) -> str:
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return receiver.receive_part10([file.getvalue()], origin).study_instance_uid

    return take


def grow_old(database: Database, seconds: float = 61.0) -> None:
    """As if the last instance of every study had come `seconds` earlier."""
    with database.transaction() as tx:
        tx.execute(update(Study).values(last_received_at=Study.last_received_at - seconds))


def study_row(database: Database, uid: str) -> Study:
    with database.reading() as tx:
        return tx.get_one(Study, uid)


def job_rows(database: Database) -> list[Job]:
    with database.reading() as tx:
        return list(tx.scalars(select(Job).order_by(Job.study_version)))


def another(dataset: Dataset, **attributes: str) -> Dataset:
    """A further instance of the same study and series, unless `attributes` say otherwise."""
    copy = Dataset(dataset)
    copy.file_meta = Dataset(dataset.file_meta)
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in attributes.items():
        setattr(copy, keyword, value)
    return copy


def test_a_study_that_is_not_quiet_waits(
    database: Database, settings: NodeSettings, receive: Receive
) -> None:
    uid = receive(make_ultrasound())
    assert complete_studies(database, settings) == []
    assert study_row(database, uid).completed_at is None


def test_a_quiet_study_is_completed_once_with_its_evidence_and_job(
    database: Database, settings: NodeSettings, receive: Receive
) -> None:
    uid = receive(make_ultrasound())
    grow_old(database)
    job_ids = complete_studies(database, settings)
    assert complete_studies(database, settings) == []
    (job,) = job_rows(database)
    assert [job.job_id] == job_ids
    assert (job.rule, job.model, job.target, job.state) == (
        "breast-ultrasound", "sim4seg-s", "breast lesion", "SCHEDULED",
    )  # fmt: skip
    study = study_row(database, uid)
    evidence = json.loads(study.evidence or "")
    assert (evidence["kind"], evidence["instance_count"], evidence["quiet_period_s"]) == (
        "quiet period",
        1,
        60,
    )
    assert study.outcome == "1 job"


def test_a_request_completes_at_once(database: Database, settings: NodeSettings, receive: Receive) -> None:
    uid = receive(make_ultrasound(), Origin("STOW-RS", "web"))
    with database.transaction() as tx:
        request_completion(tx, uid, "STOW-RS request")
    assert len(complete_studies(database, settings)) == 1
    evidence = json.loads(study_row(database, uid).evidence or "")
    assert (evidence["kind"], evidence["requested_by"]) == ("requested", "STOW-RS request")


def test_no_rule_matched_is_an_outcome_that_says_why(
    database: Database, settings: NodeSettings, receive: Receive
) -> None:
    dataset = make_ultrasound()
    dataset.BodyPartExamined = "THYROID"
    dataset.SeriesDescription = "Canary text"
    uid = receive(dataset)
    grow_old(database)
    assert complete_studies(database, settings) == []
    outcome = study_row(database, uid).outcome or ""
    assert outcome.startswith("no rule matched")
    assert "breast-ultrasound: body part is not BREAST" in outcome
    assert "Canary" not in outcome


def test_a_late_instance_gives_a_job_for_the_new_version(
    database: Database, settings: NodeSettings, receive: Receive
) -> None:
    first = make_ultrasound()
    uid = receive(first)
    grow_old(database)
    complete_studies(database, settings)
    receive(another(first))
    assert study_row(database, uid).completed_at is None
    grow_old(database)
    assert len(complete_studies(database, settings)) == 1
    assert [job.study_version for job in job_rows(database)] == [1, 2]


def test_every_series_is_routed_for_itself(
    database: Database, settings: NodeSettings, receive: Receive
) -> None:
    first = make_ultrasound()
    receive(first)
    receive(another(first, SeriesInstanceUID=generate_uid()))
    receive(another(first, SeriesInstanceUID=generate_uid(), BodyPartExamined="NECK"))
    grow_old(database)
    assert len(complete_studies(database, settings)) == 2


def test_the_calling_ae_can_decide(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receive: Receive
) -> None:
    monkeypatch.setenv(
        "DICOM_NODE_ROUTES", '[{"name": "ours", "calling_ae": ["SCANNER"], "model": "m", "query": "q"}]'
    )
    receive(make_ultrasound())
    receive(make_ultrasound(), Origin("DIMSE", "OTHER"))
    grow_old(database)
    assert len(complete_studies(database, load_settings(tmp_path))) == 1


def test_a_study_that_cannot_be_completed_keeps_no_other_back(
    settings: NodeSettings, database: Database, receive: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_ultrasound()
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    bad, good = receive(image), receive(another(image, **uids))
    grow_old(database)
    real = completion._evidence

    def evidence(quiet: QuietStudy, quiet_period_s: float) -> dict[str, object]:
        if quiet.study_instance_uid == bad:
            raise LookupError("not foreseen")
        return real(quiet, quiet_period_s)

    with monkeypatch.context() as broken:
        broken.setattr(completion, "_evidence", evidence)
        complete_studies(database, settings)
    assert [job.study_instance_uid for job in job_rows(database)] == [good]
    complete_studies(database, settings)
    assert {job.study_instance_uid for job in job_rows(database)} == {good, bad}
