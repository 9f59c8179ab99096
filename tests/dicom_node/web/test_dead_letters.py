"""Dead letters over HTTP: seen, asked for once more, by nobody's page but ours."""

import re

import pytest
from sqlalchemy import select, update

from storage.deliveries import DeliveryState, Settled, claim_delivery, finish_delivery, queue_delivery
from storage.index import mark_complete
from storage.jobs import JobRequest, cancel_job, claim_job, create_job
from storage.tables import Delivery, Job, Study
from tests.dicom_node.dimse.instances import make_image

NOBODY = "0" * 32
FROM_ELSEWHERE = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://node"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
]
FROM_HERE = [{}, {"origin": "http://node"}, {"sec-fetch-site": "same-origin", "origin": "http://node"}]


@pytest.fixture
def job_id(keep, database):
    """A job that failed."""
    image = make_image(PatientName="Canary^Secret")
    keep(image)
    study, series = str(image.StudyInstanceUID), str(image.SeriesInstanceUID)
    with database.transaction() as tx:
        mark_complete(tx, study, 1, {"reason": "quiet"})
        made = create_job(tx, JobRequest(study, 1, series, "breast", "sim4seg-s", "Where?"))
        cancel_job(tx, made, claim_job(tx, made, "worker", 30, 3).fence, "FAILED", "it <broke>")
    return made


@pytest.fixture
def delivery_id(keep, database):
    """A delivery that was given up."""
    image = make_image()
    keep(image)
    with database.transaction() as tx:
        made = queue_delivery(tx, str(image.SOPInstanceUID), "PACS", None)
        fence = claim_delivery(tx, made, "worker", 30).fence
        finish_delivery(tx, made, fence, DeliveryState.FAILED, Settled("0x0122", "", "Have it <set> up."))
    return made


def post(client, address, headers=None):
    return client.post(address, headers=headers or {})


def jobs(database):
    with database.reading() as tx:
        return tx.scalars(select(Job).order_by(Job.repeat)).all()


def state_of(database, delivery_id):
    with database.reading() as tx:
        return tx.get_one(Delivery, delivery_id).state


def test_dead_letters_are_listed(client, job_id, delivery_id):
    answer = client.get("/api/dead-letters")
    listed = answer.json()
    assert [(job["job_id"], job["reason"]) for job in listed["jobs"]] == [(job_id, "it <broke>")]
    assert [row["delivery_id"] for row in listed["deliveries"]] == [delivery_id]
    assert "Canary" not in answer.text
    assert client.get("/api/dead-letters?offset=1").json() == {"jobs": [], "deliveries": []}


@pytest.mark.parametrize("headers", FROM_HERE)
def test_a_failed_job_is_asked_for_again_once(client, database, job_id, headers):
    answers = [post(client, f"/api/jobs/{job_id}/requeue", headers) for _ in range(2)]
    failed, again = jobs(database)
    for answer in answers:
        assert (answer.status_code, answer.json()) == (201, {"job_id": again.job_id, "requeued_from": job_id})
        assert answer.headers["location"] == f"/api/jobs/{again.job_id}"
    assert (failed.state, again.state, again.requeued_from) == ("CANCELED", "SCHEDULED", job_id)
    assert again.requeued_by.startswith("web, ")
    assert client.get("/api/dead-letters").json()["jobs"] == []


def test_a_delivery_is_sent_again(client, database, delivery_id):
    answer = post(client, f"/api/deliveries/{delivery_id}/redeliver")
    assert (answer.status_code, answer.json()["state"]) == (202, "QUEUED")
    assert state_of(database, delivery_id) == "QUEUED"
    assert client.get("/api/dead-letters").json()["deliveries"] == []


@pytest.mark.parametrize("headers", FROM_ELSEWHERE)
def test_a_page_of_another_site_changes_nothing(client, database, job_id, delivery_id, headers):
    for address in (f"/api/jobs/{job_id}/requeue", f"/api/deliveries/{delivery_id}/redeliver"):
        answer = post(client, address, headers)
        assert (answer.status_code, "another site" in answer.json()["error"]) == (403, True)
    assert len(jobs(database)) == 1
    assert state_of(database, delivery_id) == "FAILED"


@pytest.mark.parametrize("name", [NOBODY, "0", "x" * 32])
@pytest.mark.parametrize("address", ["/api/jobs/{}/requeue", "/api/deliveries/{}/redeliver"])
def test_what_is_not_there_is_said(client, address, name):
    answer = post(client, address.format(name))
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("there is no")


def test_what_cannot_be_repeated_is_said(client, database, job_id, delivery_id):
    with database.transaction() as tx:
        tx.execute(update(Study).values(version=2))
    outdated = post(client, f"/api/jobs/{job_id}/requeue")
    with database.transaction() as tx:
        tx.execute(update(Study).values(version=1))
        tx.execute(update(Job).values(outcome="RESULT", state="COMPLETED"))
    done = post(client, f"/api/jobs/{job_id}/requeue")
    post(client, f"/api/deliveries/{delivery_id}/redeliver")
    with database.transaction() as tx:
        assert claim_delivery(tx, delivery_id, "worker", 30) is not None
    sending = post(client, f"/api/deliveries/{delivery_id}/redeliver")
    answers = (outdated, done, sending)
    assert [answer.status_code for answer in answers] == [409, 409, 409]
    words = ("older version", "RESULT", "being sent now")
    assert all(word in answer.json()["error"] for word, answer in zip(words, answers, strict=True))
    assert client.get(f"/api/jobs/{job_id}/requeue").status_code in (404, 405)
    assert len(jobs(database)) == 1


def test_the_page_shows_them_with_a_button_that_works(client, database, job_id, delivery_id):
    page = client.get("/operator")
    assert "form-action 'self'" in page.headers["content-security-policy"]
    assert "it &lt;broke&gt;" in page.text
    assert "Have it &lt;set&gt; up." in page.text
    actions = re.findall(r'<form method="post" action="([^"]+)"><button>', page.text)
    assert actions == [f"/api/jobs/{job_id}/requeue", f"/api/deliveries/{delivery_id}/redeliver"]
    browser = {"accept": "text/html", "sec-fetch-site": "same-origin", "origin": "http://node"}
    for action in actions:
        answer = post(client, action, browser)
        assert (answer.status_code, answer.headers["location"]) == (303, "/operator")
    assert [job.state for job in jobs(database)] == ["CANCELED", "SCHEDULED"]
    assert state_of(database, delivery_id) == "QUEUED"
    assert "<form" not in client.get("/operator").text
