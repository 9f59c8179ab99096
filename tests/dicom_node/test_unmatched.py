"""Studies that no rule matches: an outcome always, a report to those destinations that ask for one."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node.air.gate import check_together
from dicom_node.forms.form import Form, Recipient
from dicom_node.settings_network import Destination
from dicom_node.web.ups_view import render_workitem
from storage.database import Database
from storage.deliveries import DeliveryState
from storage.workitems import find_workitem, uid_of_job
from storage.worklist import newest_deliveries
from tests import builders
from tests.ward import KEY_OBJECT, Ward, derived, stack

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
REASON = "everything: modality is not MR"
TELLING = Destination(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=104, reports_unmatched=True)


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    """Its rule takes MR; of two destinations one asks to be told of everything else."""
    ward = Ward(database, tmp_path)
    ward.settings = ward.settings.model_copy(update={"destinations": (TELLING,)})
    told = (Recipient("PACS"), Recipient("archive", hears_of_unmatched=True))
    ward.services = replace(ward.services, destinations=told)
    return ward


def deliveries(ward: Ward) -> list[tuple[str, str]]:
    with ward.database.reading() as tx:
        return sorted((each.destination, each.state) for each in newest_deliveries(tx))


def test_it_is_told_where_that_is_asked_for(ward: Ward, tmp_path: Path) -> None:
    image = builders.make_ultrasound()
    ward.receive(image)
    ward.work()
    (job,) = ward.jobs()
    assert (job.state, job.outcome, job.reason) == ("CANCELED", "NOT ROUTED", REASON)
    report = ward.read(ward.results(image)["SR"])
    text = builders.report_text(tmp_path, report)
    assert f"Not analysed, no rule asks for it: {REASON}" in text
    assert "does not mean that the images are normal" in text
    assert builders.standard_errors(tmp_path, report) == []
    assert check_together([report], [image]) == []
    assert deliveries(ward) == [("archive", DeliveryState.QUEUED)]
    with ward.database.reading() as tx:
        view = find_workitem(tx, uid_of_job(job.job_id))
        assert view is not None
        assert render_workitem(tx, view)["00741000"]["Value"] == ["CANCELED"]


def test_by_default_nobody_is_told_and_the_outcome_says_why(database: Database, tmp_path: Path) -> None:
    ward, image = Ward(database, tmp_path), builders.make_ultrasound()
    ward.receive(image)
    ward.work()
    assert ward.jobs() == []
    assert ward.study(image).outcome == f"no rule matched: {REASON}"
    assert deliveries(ward) == []


def test_what_was_told_goes_when_a_rule_matches(ward: Ward) -> None:
    image = builders.make_ultrasound()
    ward.receive(image)
    ward.work()
    ward.receive(*stack(3, str(image.StudyInstanceUID)))
    ward.work()
    assert {job.outcome for job in ward.jobs()} == {"NOT ROUTED", "RESULT"}
    assert list(ward.results(image, retired_as="SUPERSEDED")) == ["SR"]
    assert sorted(ward.results(image)) == ["SEG", "SR"]
    sent = deliveries(ward)
    assert sent.count(("archive", DeliveryState.WITHDRAWN)) == 1
    assert sent.count(("archive", DeliveryState.QUEUED)) == 2


def test_of_a_study_that_grew_meanwhile_only_the_newest_state_is_told(ward: Ward) -> None:
    image = builders.make_ultrasound()
    ward.receive(image)
    ward.complete()
    ward.receive(another_series(image))
    ward.work()
    assert sorted(job.outcome or "" for job in ward.jobs()) == ["NOT ROUTED", "OUTDATED"]
    assert deliveries(ward) == [("archive", DeliveryState.QUEUED)]


def test_the_same_state_again_is_told_once(ward: Ward) -> None:
    image = builders.make_ultrasound()
    for _ in range(2):
        ward.receive(image)
        ward.work()
    assert deliveries(ward) == [("archive", DeliveryState.QUEUED)]


@pytest.mark.parametrize(("sop_class", "modality"), [(KEY_OBJECT, "KO"), (ENCAPSULATED_PDF, "DOC")])
def test_a_study_without_images_is_not_told(ward: Ward, sop_class: str, modality: str) -> None:
    ward.receive(derived(builders.make_ultrasound(), sop_class, modality))
    ward.work()
    assert ward.jobs() == []


def another_series(image: Dataset) -> Dataset:
    other = builders.make_ultrasound()
    other.StudyInstanceUID, other.SeriesInstanceUID = image.StudyInstanceUID, generate_uid()
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return other


def test_who_is_to_be_told_takes_reports() -> None:
    with pytest.raises(ValidationError, match="reports_unmatched needs SR among forms"):
        Destination.model_validate(TELLING.model_dump() | {"forms": (Form.SC,)})
