from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node import pipeline
from dicom_node.air.gate import Broken, check_together
from dicom_node.forms.form import Recipient
from dicom_node.frames import FrameLimits
from dicom_node.outcomes import end_without_result
from dicom_node.pipeline import Services, run_job
from inference.contract import Image, Prediction, Prompt
from inference.errors import InputRejected
from storage.database import Database
from storage.files import DiskFiles
from storage.index import Origin, instances_of_study
from storage.jobs import ClaimedJob, JobRequest, claim_job, create_job
from storage.worklist import newest_deliveries, newest_jobs
from tests import builders
from tests.doors import make_receiver

BOTH = (Recipient("PACS"), Recipient("ARCHIVE"))
SUMMARY = "CAD Processing and Findings Summary"


@pytest.fixture
def services(database: Database, files_root: Path) -> Services:
    receiver = make_receiver(database, files_root)
    stub = builders.MaskPredictor()
    files = DiskFiles(files_root)
    return Services(database, receiver, files, lambda _name: stub, FrameLimits(), BOTH)


def claimed(services: Services, datasets: Sequence[Dataset]) -> ClaimedJob:
    for dataset in datasets:
        services.receiver.receive_part10([builders.part10(dataset)], Origin("IMPORT", "test"))
    uids = str(datasets[0].StudyInstanceUID), str(datasets[0].SeriesInstanceUID)
    with services.database.transaction() as tx:
        job_id = create_job(tx, JobRequest(uids[0], 1, uids[1], "rule", "stub", "Outline it."))
        job = claim_job(tx, job_id or "", "worker", 30.0, 3)
    assert job is not None
    return job


def own_objects(services: Services, job: ClaimedJob) -> list[Dataset]:
    with services.database.reading() as tx:
        rows = [
            row for row in instances_of_study(tx, job.study_instance_uid) if row.origin_kind == "OWN RESULT"
        ]
    with_files = []
    for row in rows:
        with services.files.local(row.path) as path:
            with_files.append(dcmread(path))
    return with_files


def summary_of(report: Dataset) -> str:
    container = report.ContentSequence[-1]
    (item,) = [
        each for each in container.ContentSequence if each.ConceptNameCodeSequence[0].CodeMeaning == SUMMARY
    ]
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def test_what_is_not_suitable_is_told_to_every_destination(services: Services, tmp_path: Path) -> None:
    dataset = builders.make_ultrasound()
    del dataset.PixelData
    job = claimed(services, [dataset])
    run_job(job, services)
    (report,) = own_objects(services, job)
    assert summary_of(report) == "No algorithms succeeded; without findings"
    text = builders.report_text(tmp_path, report)
    assert "Not analysed, the images are not suitable: the pixels of an instance cannot be decoded" in text
    assert "does not mean that the images are normal" in text
    assert builders.standard_errors(tmp_path, report) == []
    assert check_together([report], [dataset]) == []
    path = tmp_path / "sr.dcm"
    report.save_as(path)
    assert highdicom.sr.srread(path).content is not None
    with services.database.reading() as tx:
        destinations = {each.destination for each in newest_deliveries(tx, job_id=job.job_id)}
    assert destinations == {"PACS", "ARCHIVE"}


class Refusing(builders.MaskPredictor):
    """Cannot answer, now or later."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        raise InputRejected("the image is 1 pixel high; send a larger one")


def test_the_same_end_is_the_same_report(services: Services) -> None:
    dataset = builders.make_ultrasound()
    refusing = replace(services, open_predictor=lambda _name: Refusing())
    job = claimed(services, [dataset])
    run_job(job, refusing)
    before = [str(each.SOPInstanceUID) for each in own_objects(services, job)]
    run_job(_again(services, job), refusing)
    assert [str(each.SOPInstanceUID) for each in own_objects(services, job)] == before


def _again(services: Services, job: ClaimedJob) -> ClaimedJob:
    request = JobRequest(job.study_instance_uid, 2, job.series_instance_uid, "rule", "stub", "Outline it.")
    with services.database.transaction() as tx:
        claimed_again = claim_job(tx, create_job(tx, request) or "", "worker", 30.0, 3)
    assert claimed_again is not None
    return claimed_again


def test_another_reason_is_another_report(services: Services) -> None:
    job = claimed(services, [builders.make_ultrasound()])
    for reason in ("the model broke", "the model broke", "gave up after 3 attempts"):
        with services.database.transaction() as tx:
            end_without_result(tx, services, job, outcome="FAILED", reason=reason)
    texts = [
        str(each.ContentSequence[-1].ContentSequence[1].TextValue) for each in own_objects(services, job)
    ]
    assert sorted(texts) == [
        "Not analysed, the analysis failed: gave up after 3 attempts",
        "Not analysed, the analysis failed: the model broke",
    ]


def test_a_large_series_that_cannot_be_read_is_told_quickly(services: Services) -> None:
    """From rows alone: nothing of the files is touched."""
    stack = builders.make_stack([np.zeros((8, 8), bool)] * 40)
    job = claimed(services, stack)
    unreadable = replace(services, files=None)  # type: ignore[arg-type]
    with services.database.transaction() as tx:
        (uid,) = end_without_result(tx, unreadable, job, outcome="FAILED", reason="the disk is gone")
    (report,) = own_objects(services, job)
    assert report.SOPInstanceUID == uid
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 40


def test_nothing_found_is_said_and_is_not_normal(services: Services, tmp_path: Path) -> None:
    stub = builders.MaskPredictor(diagnosis=None)
    quiet = replace(services, open_predictor=lambda _name: stub)
    job = claimed(services, [builders.make_ultrasound(np.zeros((60, 81), bool))])
    run_job(job, quiet)
    (report,) = own_objects(services, job)
    assert summary_of(report) == "All algorithms succeeded; without findings"
    text = builders.report_text(tmp_path, report)
    assert "Analysed without finding." in text
    assert "does not mean that the images are normal" in text


def test_a_result_that_breaks_a_rule_is_not_sent_and_the_outcome_says_so(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.analyse

    def spoiled(*arguments: object) -> object:
        result = original(*arguments)  # type: ignore[arg-type]
        for dataset in result.segmentations:
            del dataset.TimezoneOffsetFromUTC
        return result

    monkeypatch.setattr(pipeline, "analyse", spoiled)
    job = claimed(services, [builders.make_ultrasound()])
    run_job(job, services)
    (report,) = own_objects(services, job)
    assert report.Modality == "SR"
    assert "the result breaks a rule: dates and time zone" in builders.report_text(tmp_path, report)
    with services.database.reading() as tx:
        (row,) = newest_jobs(tx)
        sent = {each.sop_instance_uid for each in newest_deliveries(tx, job_id=job.job_id)}
    assert (row.outcome, row.state) == ("FAILED", "CANCELED")
    assert "dates and time zone" in (row.reason or "")
    assert sent == {str(report.SOPInstanceUID)}
    assert str(Broken("rule", "detail")) == "rule: detail"
