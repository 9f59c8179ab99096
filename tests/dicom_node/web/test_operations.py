"""Health, metrics, the operator's JSON and page."""

import errno

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from dicom_node import readiness
from storage.deliveries import DeliveryState, Settled, claim_delivery, finish_delivery, queue_delivery
from storage.index import mark_complete, record_outcome
from storage.jobs import JobRequest, cancel_job, claim_job, complete_job, create_job
from tests.dicom_node.dimse.instances import SEGMENTATION, make_data_set, make_image
from tests.doors import make_receiver


@pytest.fixture
def studies(keep, database):
    """One study with a failed job and a delivery, one with a job that waits, one that is still coming in."""
    images = [make_image(PatientName=name) for name in ("<script>alert(1)</script>", "Beta", "Gamma")]
    for image in images:
        keep(image)
    failed, waiting, _coming = images
    with database.transaction() as tx:
        for image in (failed, waiting):
            mark_complete(tx, str(image.StudyInstanceUID), 1, {"reason": "quiet", "quiet_for_s": 10.5})
            record_outcome(tx, str(image.StudyInstanceUID), "1 job")
        job_id = create_job(tx, request_for(failed, "breast <b>"))
        create_job(tx, request_for(waiting, "heart"))
        job = claim_job(tx, job_id, "worker-1", 30, 3)
        cancel_job(tx, job_id, job.fence, "FAILED", "the model file <is> damaged")
        delivery = queue_delivery(tx, str(failed.SOPInstanceUID), "PACS", job_id)
        claimed = claim_delivery(tx, delivery, "worker-2", 30)
        finish_delivery(
            tx,
            delivery,
            claimed.fence,
            DeliveryState.FAILED,
            Settled("0x0122", "not taken", "Have <it> set up."),
        )
    return images, job_id


def request_for(image, rule):
    return JobRequest(
        str(image.StudyInstanceUID), 1, str(image.SeriesInstanceUID), rule, "sim4seg-s", "Where?"
    )


def test_alive_and_ready(client):
    assert client.get("/health/live").json() == {"status": "alive"}
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_model_that_cannot_be_opened_makes_the_node_not_ready(client, tmp_path):
    readiness.report(tmp_path, "worker-run", "model sim4seg-s: a file was changed")
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["model sim4seg-s: a file was changed"]
    readiness.report(tmp_path, "worker-run", None)
    assert client.get("/health/ready").status_code == 200


def test_a_node_that_cannot_look_after_itself_is_not_ready(client, monkeypatch):
    def none_left(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("dicom_node.web.health.readiness.problems", none_left)
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["system"])
    assert "EMFILE" in answer.json()["problems"][0]
    assert "dicom_node_ready 0.0" in client.get("/metrics").text


def test_an_old_schema_makes_the_node_not_ready(client, database):
    with database.transaction() as tx:
        tx.execute(text("DELETE FROM alembic_version"))
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "migrate" in answer.json()["problems"][0]
    assert client.get("/health/live").status_code == 200


class TestFullDisk:
    @pytest.fixture
    def sections(self):
        return {"limits": {"min_free_mb": 10**9}}

    def test_makes_the_node_not_ready(self, client):
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "min_free_mb" in answer.json()["problems"][0]


def test_without_a_database_requests_are_503_and_say_so(client, database):
    with database.transaction() as tx:
        for table in ("delivery_attempt", "delivery", "job_attempt", "job", "conflict", "instance", "series"):
            tx.execute(text(f"DROP TABLE {table}"))
    answer = client.get("/dicom-web/series")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "SELECT" not in answer.text


def test_metrics(client, studies):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["dicom_node_instances", "IMPORT"] == 3
    assert samples["dicom_node_studies", "complete"] == 2
    assert samples["dicom_node_studies", "receiving"] == 1
    assert samples["dicom_node_jobs", "CANCELED", "FAILED"] == 1
    assert samples["dicom_node_jobs", "", "SCHEDULED"] == 1
    assert samples["dicom_node_deliveries", "FAILED", "PACS"] == 1
    assert samples["dicom_node_conflicts",] == 0
    assert 0 <= samples["dicom_node_oldest_queued_job_age_seconds",] < 60


def test_studies(client, studies):
    (failed, waiting, coming), job_id = studies
    lines = {line["study_instance_uid"]: line for line in client.get("/api/studies").json()["studies"]}
    assert lines[coming.StudyInstanceUID]["state"] == "RECEIVING"
    assert lines[waiting.StudyInstanceUID]["state"] == "ROUTED"
    line = lines[failed.StudyInstanceUID]
    assert line["evidence"] == {"reason": "quiet", "quiet_for_s": 10.5}
    assert line["jobs"][0]["job_id"] == job_id
    assert line["jobs"][0]["reason"] == "the model file <is> damaged"
    assert line["origins"] == [{"kind": "IMPORT", "from": "test", "instances": 1}]
    assert len(client.get("/api/studies?limit=1").json()["studies"]) == 1


def test_one_study(client, studies):
    (failed, _waiting, _coming), job_id = studies
    page = client.get(f"/api/studies/{failed.StudyInstanceUID}").json()
    (delivery,) = page["deliveries"]
    assert (delivery["destination"], delivery["state"], delivery["job_id"]) == ("PACS", "FAILED", job_id)
    assert delivery["attempts_made"][0]["detail"] == "not taken"
    assert page["series"][0]["modality"] == "CT"
    assert page["conflicts"] == []


def test_jobs(client, studies):
    (failed, _waiting, _coming), job_id = studies
    assert len(client.get("/api/jobs").json()["jobs"]) == 2
    (job,) = client.get("/api/jobs?state=CANCELED").json()["jobs"]
    assert job["job_id"] == job_id
    assert len(client.get(f"/api/jobs?study={failed.StudyInstanceUID}").json()["jobs"]) == 1
    page = client.get(f"/api/jobs/{job_id}").json()
    assert page["attempts_made"][0]["worker"] == "worker-1"
    assert page["deliveries"][0]["last_status"] == "0x0122"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/api/studies/1.2.3", 404),
        ("/api/studies/abc", 400),
        ("/api/jobs/0", 404),
        ("/api/jobs/..%2F", 404),
        ("/api/jobs?limit=x", 400),
        ("/api/studies?offset=-1", 400),
    ],
)
def test_what_is_not_there(client, address, status):
    answer = client.get(address)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_nothing_of_the_patient_leaves_by_the_operators_ways(client, studies):
    for address in ("/api/studies", "/api/jobs", "/operator", "/metrics", "/health/ready"):
        answer = client.get(address).text
        assert not [secret for secret in ("alert", "Beta", "Gamma", "MRN-1", "A-77") if secret in answer]


def test_the_page_is_inert_and_readable(client, studies):
    (failed, _waiting, _coming), _job = studies
    answer = client.get("/operator")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.headers["content-security-policy"]
    assert "the model file &lt;is&gt; damaged" in answer.text
    assert "breast &lt;b&gt;" in answer.text
    assert "<td>0x0122</td><td>1</td><td>Have &lt;it&gt; set up.</td>" in answer.text
    assert f"/viewer?StudyInstanceUIDs={failed.StudyInstanceUID}" in answer.text
    assert "Research use only" in answer.text
    assert client.get("/operator/style.css").headers["content-type"].startswith("text/css")


@pytest.fixture
def result(keep, database, files_root):
    """A study whose job ended with an overlay: its image and its segmentation."""
    image = make_image()
    keep(image)
    study = str(image.StudyInstanceUID)
    segmentation = make_data_set(SEGMENTATION, StudyInstanceUID=study, Modality="SEG")
    receiver = make_receiver(database, files_root)
    with database.transaction() as tx:
        job = claim_job(tx, create_job(tx, request_for(image, "breast")), "worker-1", 30, 3)
        (seg,) = receiver.receive_own_results(tx, [segmentation], job.job_id)
        said = {"diagnosis": "benign", "confidence": 0.756, "target": "breast lesion"}
        complete_job(tx, job.job_id, job.fence, "RESULT", said | {"sop_instance_uids": {"seg": seg}})
    return image, segmentation


def test_the_link_opens_the_viewer_with_the_overlay_on(client, result):
    image, segmentation = result
    (line,) = client.get("/api/studies").json()["studies"]
    overlay = f"initialSeriesInstanceUID={segmentation.SeriesInstanceUID}"
    assert line["viewer"] == f"/viewer?StudyInstanceUIDs={image.StudyInstanceUID}&{overlay}"


def test_the_page_says_what_the_model_said(client, result):
    assert "<td>benign (0.76), breast lesion outlined</td>" in client.get("/operator").text
