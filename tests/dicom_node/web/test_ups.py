"""UPS-RS: the state table row by row, workitems that run a model, our jobs as workitems."""

import json

import pytest
from pydicom.uid import generate_uid

from storage.jobs import JobRequest, claim_job, complete_job, create_job, heartbeat_job, report_progress
from storage.workitems import uid_of_job
from tests.dicom_node.dimse.instances import make_image
from tests.dicom_node.web.ohif import JSON

WORKITEMS = "/dicom-web/workitems"
TRANSACTION, OTHER_TRANSACTION = "2.25.111", "2.25.222"
LABEL, STATE, PROGRESS, PERFORMED = "00741204", "00741000", "00741002", "00741216"


def cs(value, vr="CS"):
    return {"vr": vr, "Value": [value]}


def sequence(*items):
    return {"vr": "SQ", "Value": list(items)}


def workitem(**changes):
    """A workitem that somebody else is to perform."""
    return {
        STATE: cs("SCHEDULED"),
        "00741200": cs("MEDIUM"),
        LABEL: cs("Measure the lesion", "LO"),
        "00741202": cs("Ward 3", "LO"),
        "00404005": cs("20261122190000", "DT"),
        "00404041": cs("READY"),
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Ännchen"}]},
        "00100020": cs("MRN-1", "LO"),
        "00404018": sequence(
            {
                "00080100": cs("110005", "SH"),
                "00080102": cs("DCM", "SH"),
                "00080104": cs("Interpretation", "LO"),
            }
        ),
        **changes,
    }


def performed():
    code = sequence({"00080100": cs("1", "SH"), "00080102": cs("L", "SH"), "00080104": cs("x", "LO")})
    item = {
        "00404028": code, "00404019": code, "00404050": cs("20261122190000", "DT"),
        "00404051": cs("20261122191000", "DT"), "00404033": sequence(),
    }  # fmt: skip
    return {PERFORMED: sequence(item)}


@pytest.fixture
def ups(client):
    return Ups(client)


class Ups:
    """The transactions, by their names."""

    def __init__(self, client):
        self.client = client

    def send(self, method, address, content=None):
        body = None if content is None else json.dumps(content).encode()
        headers = {"content-type": JSON, "accept": JSON}
        return self.client.request(method, address, content=body, headers=headers)

    def create(self, uid, content=None):
        return self.send("POST", f"{WORKITEMS}?workitem={uid}", content or workitem())

    def state(self, uid, state, transaction=TRANSACTION):
        content = {STATE: cs(state)} | ({"00081195": cs(transaction, "UI")} if transaction else {})
        return self.send("PUT", f"{WORKITEMS}/{uid}/state", content)

    def update(self, uid, content, transaction=TRANSACTION):
        return self.send("POST", f"{WORKITEMS}/{uid}?transaction-uid={transaction}", content)

    def get(self, uid):
        answer = self.client.get(f"{WORKITEMS}/{uid}", JSON)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def cancel(self, uid):
        return self.send("POST", f"{WORKITEMS}/{uid}/cancelrequest", {"00741238": cs("not needed", "LT")})

    def made(self, state):
        """A workitem brought to a state by the rules."""
        uid = str(generate_uid(prefix=None))
        assert self.create(uid).status_code == 201
        if state == "SCHEDULED":
            return uid
        assert self.state(uid, "IN PROGRESS").status_code == 200
        assert self.update(uid, performed()).status_code == 200
        if state != "IN PROGRESS":
            assert self.state(uid, state).status_code == 200
        return uid


def test_create_and_retrieve(ups):
    answer = ups.create("2.25.7")
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{WORKITEMS}/2.25.7"
    found = ups.get("2.25.7")
    assert found[LABEL]["Value"] == ["Measure the lesion"]
    assert found["00080018"]["Value"] == ["2.25.7"]
    assert found[STATE]["Value"] == ["SCHEDULED"]
    assert ups.create("2.25.7").status_code == 409  # 0111
    assert ups.send("POST", f"{WORKITEMS}?2.25.8", workitem()).headers["location"].endswith("/2.25.8")
    named = ups.send("POST", WORKITEMS, workitem())
    assert ups.client.get(named.headers["location"], JSON).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({STATE: cs("IN PROGRESS")}, 400),
        ({STATE: {"vr": "CS"}}, 400),
        ({LABEL: {"vr": "LO"}}, 400),
        ({"00741200": cs("SOON")}, 400),
        ({"00404041": cs("MAYBE")}, 400),
        ({"00081195": cs("2.25.1", "UI")}, 400),
        ({PERFORMED: sequence({"00404050": cs("2026", "DT")})}, 400),
        ({"00420011": {"vr": "OB", "BulkDataURI": "http://169.254.169.254/"}}, 400),
        ({"no tag": cs("x")}, 400),
        ({"00741202": {"vr": "LO"}}, 201),
    ],
)
def test_what_a_new_workitem_must_be(ups, changes, status):
    answer = ups.create("2.25.9", workitem(**changes))
    assert answer.status_code == status, answer.text
    assert ("modifications" in answer.headers.get("warning", "")) == (status == 201)


# PS3.4 Table CC.1.1-2, row by row: requested state, with the right Transaction UID?, code by present state
STATES = ("SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED")
ROWS = [
    ("IN PROGRESS", TRANSACTION, dict(zip(STATES, ("", "C302", "C300", "C300"), strict=True))),
    ("IN PROGRESS", "", dict.fromkeys(STATES, "C301")),
    ("SCHEDULED", TRANSACTION, dict.fromkeys(STATES, "C303")),
    ("COMPLETED", TRANSACTION, dict(zip(STATES, ("C310", "", "B306", "C300"), strict=True))),
    ("COMPLETED", OTHER_TRANSACTION, dict.fromkeys(("IN PROGRESS", "COMPLETED", "CANCELED"), "C301")),
    ("COMPLETED", "", dict.fromkeys(STATES, "C301")),
    ("CANCELED", TRANSACTION, dict(zip(STATES, ("C310", "", "C300", "B304"), strict=True))),
    ("CANCELED", OTHER_TRANSACTION, dict.fromkeys(("IN PROGRESS", "COMPLETED", "CANCELED"), "C301")),
    ("CANCELED", "", dict.fromkeys(STATES, "C301")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("requested", "transaction", "present", "code"),
    [(requested, uid, present, code) for requested, uid, row in ROWS for present, code in row.items()],
)
def test_the_state_table(ups, requested, transaction, present, code):
    uid = ups.made(present)
    answer = ups.state(uid, requested, transaction)
    if not code or code.startswith("B"):
        assert answer.status_code == 200
        assert ("already in the requested state" in answer.headers.get("warning", "")) == bool(code)
        assert ups.get(uid)[STATE]["Value"] == [requested]
    else:
        assert (answer.status_code, answer.json()["code"]) == (409, code)
        assert ups.get(uid)[STATE]["Value"] == [present]


def test_what_is_not_here_is_404(ups):
    for answer in (
        ups.state("2.25.404", "IN PROGRESS"),
        ups.update("2.25.404", {LABEL: cs("x", "LO")}),
        ups.cancel("2.25.404"),
        ups.client.get(f"{WORKITEMS}/2.25.404", JSON),
        ups.send("POST", f"{WORKITEMS}/2.25.404/subscribers/WATCHER"),
    ):
        assert answer.status_code == 404


def test_a_workitem_is_not_completed_before_it_says_what_was_done(ups):
    uid = ups.made("SCHEDULED")
    ups.state(uid, "IN PROGRESS")
    answer = ups.state(uid, "COMPLETED")
    assert (answer.status_code, answer.json()["code"]) == (409, "C304")
    assert ups.update(uid, performed()).status_code == 200
    assert ups.state(uid, "COMPLETED").status_code == 200


def test_updates_need_the_lock_once_somebody_has_it(ups):
    uid = ups.made("SCHEDULED")
    assert ups.update(uid, {LABEL: cs("Before", "LO")}, "").status_code == 200
    ups.state(uid, "IN PROGRESS")
    refused = ups.update(uid, {LABEL: cs("Stolen", "LO")}, OTHER_TRANSACTION)
    assert (refused.status_code, refused.json()["code"]) == (409, "C301")
    assert ups.update(uid, {LABEL: cs("After", "LO")}).status_code == 200
    found = ups.get(uid)
    assert found[LABEL]["Value"] == ["After"]
    assert TRANSACTION not in json.dumps(found)  # the lock is never shown
    assert ups.update(uid, {STATE: cs("COMPLETED")}).status_code == 400
    ups.update(uid, performed())
    ups.state(uid, "COMPLETED")
    assert ups.update(uid, {LABEL: cs("Late", "LO")}).json()["code"] == "C300"


def test_requests_to_cancel(ups):
    scheduled, running, done = (ups.made(state) for state in ("SCHEDULED", "IN PROGRESS", "COMPLETED"))
    assert ups.cancel(scheduled).status_code == 202
    found = ups.get(scheduled)
    assert found[STATE]["Value"] == ["CANCELED"]
    assert "0074100E" in found[PROGRESS]["Value"][0]
    again = ups.cancel(scheduled)
    assert (again.status_code, "CANCELED" in again.headers["warning"]) == (202, True)
    assert ups.cancel(running).status_code == 202
    assert ups.get(running)[STATE]["Value"] == ["IN PROGRESS"]  # its performer is told, and decides
    refused = ups.cancel(done)
    assert (refused.status_code, refused.json()["code"]) == (409, "C311")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["b", "a"]),
        ("ProcedureStepLabel=Meas*", ["b", "a"]),
        ("00741204=Second", ["b"]),
        ("ProcedureStepState=SCHEDULED", ["b"]),
        ("ProcedureStepState=IN+PROGRESS", ["a"]),
        ("PatientID=MRN-2", ["b"]),
        ("PatientName=m%C3%BCller*", ["b", "a"]),
        ("ScheduledWorkitemCodeSequence.CodeValue=110005", ["b", "a"]),
        ("00404018.00080100=1", []),
        ("ScheduledProcedureStepStartDateTime=20261122-20261122", ["b", "a"]),
        ("ScheduledProcedureStepStartDateTime=20261123-", []),
        ("limit=1", ["b"]),
        ("limit=1&offset=1", ["a"]),
        ("NoSuchName=1", ["b", "a"]),
    ],
)
def test_search(ups, query, found):
    ups.create("2.25.10")
    ups.create(
        "2.25.11", workitem(**{LABEL: {"vr": "LO", "Value": ["Second", "Measured"]}, "00100020": cs("MRN-2")})
    )
    ups.state("2.25.10", "IN PROGRESS")
    answer = ups.client.get(f"{WORKITEMS}?{query}", JSON)
    assert answer.status_code == 200
    names = {"2.25.10": "a", "2.25.11": "b"}
    assert [names[item["00080018"]["Value"][0]] for item in answer.json()] == found


@pytest.fixture
def image(keep):
    made = make_image(Modality="US", BodyPartExamined="BREAST")
    keep(made)
    return made


def asking_for_a_model(image, **texts):
    """A workitem whose processing parameters hold our words."""
    parameters = [
        {
            "0040A040": cs("TEXT"),
            "0040A043": sequence({"00080100": cs(name, "SH"), "00080102": cs("99SIM4SEG", "SH")}),
            "0040A160": cs(text, "UT"),
        }
        for name, text in texts.items()
    ]
    source = {
        "0020000D": cs(str(image.StudyInstanceUID), "UI"),
        "0020000E": cs(str(image.SeriesInstanceUID), "UI"),
    }
    return workitem(
        **{"00741210": sequence(*parameters), "00404021": sequence(source), "00741200": cs("HIGH")}
    )


def jobs_of(client):
    return client.get("/api/jobs").json()["jobs"]


def test_a_workitem_with_a_query_runs_a_model(ups, client, image, database):
    asked = asking_for_a_model(image, query="Where is the lesion?", target="breast lesion")
    assert ups.create("2.25.20", asked).status_code == 201
    (job,) = jobs_of(client)
    assert (job["query"], job["target"], job["model"]) == (
        "Where is the lesion?",
        "breast lesion",
        "sim4seg-s",
    )
    assert (job["rule"], job["state"], job["priority"]) == ("UPS-RS", "SCHEDULED", 10)
    with database.transaction() as tx:
        claimed = claim_job(tx, job["job_id"], "worker", 30, 3)
    assert ups.get("2.25.20")[STATE]["Value"] == ["IN PROGRESS"]
    for answer in (ups.state("2.25.20", "COMPLETED"), ups.update("2.25.20", {LABEL: cs("x", "LO")})):
        assert (answer.status_code, answer.json()["code"]) == (409, "C301")  # the node holds the lock
    summary = {"sop_instance_uids": {"SR": str(image.SOPInstanceUID)}}
    with database.transaction() as tx:
        complete_job(tx, claimed.job_id, claimed.fence, "RESULT", summary)
    found = ups.get("2.25.20")
    assert found[STATE]["Value"] == ["COMPLETED"]
    (output,) = found[PERFORMED]["Value"][0]["00404033"]["Value"]
    assert output["00081199"]["Value"][0]["00081155"]["Value"] == [str(image.SOPInstanceUID)]
    assert len(client.get(WORKITEMS, JSON).json()) == 1  # the job is not listed a second time


def test_a_workitem_of_our_code_leaves_the_question_to_the_rules(ups, client, image):
    code = sequence({"00080100": cs("sim4seg-s", "SH"), "00080102": cs("99SIM4SEG", "SH")})
    assert ups.create("2.25.21", asking_for_a_model(image) | {"00404018": code}).status_code == 201
    (job,) = jobs_of(client)
    assert job["target"] == "breast lesion"


def test_the_same_request_again_is_the_same_job(ups, client, image):
    for uid in ("2.25.22", "2.25.23"):
        assert ups.create(uid, asking_for_a_model(image, query="Where?")).status_code == 201
    assert len(jobs_of(client)) == 1


@pytest.mark.parametrize(
    ("texts", "status"),
    [({"model": "unknown", "query": "x"}, 400), ({"query": "x" * 401}, 400)],
)
def test_a_model_or_query_that_cannot_be_run_is_refused(ups, client, image, texts, status):
    assert ups.create("2.25.24", asking_for_a_model(image, **texts)).status_code == status
    assert jobs_of(client) == []


def test_images_that_are_not_here_are_409_with_advice(ups, image):
    image.SeriesInstanceUID = generate_uid()
    answer = ups.create("2.25.25", asking_for_a_model(image, query="x"))
    assert answer.status_code == 409
    assert "send its images first" in answer.json()["error"]


@pytest.fixture
def job_id(image, database):
    request = JobRequest(
        str(image.StudyInstanceUID), 1, str(image.SeriesInstanceUID), "breast", "sim4seg-s", "Where?"
    )
    with database.transaction() as tx:
        return create_job(tx, request)


def test_our_jobs_are_workitems(ups, client, image, job_id):
    (listed,) = client.get(f"{WORKITEMS}?PatientID={image.PatientID}", JSON).json()
    assert listed["00080018"]["Value"] == [uid_of_job(job_id)]
    found = ups.get(uid_of_job(job_id))
    assert found[STATE]["Value"] == ["SCHEDULED"]
    source = found["00404021"]["Value"][0]
    assert source["0020000E"]["Value"] == [str(image.SeriesInstanceUID)]
    assert source["00081199"]["Value"][0]["00081155"]["Value"] == [str(image.SOPInstanceUID)]
    assert found["00100020"]["Value"] == [image.PatientID]


def test_a_job_at_work_says_how_far_it_is(ups, client, job_id, database):
    def said():
        (found,) = ups.get(uid_of_job(job_id))[PROGRESS]["Value"]
        return found["00741004"]["Value"], found.get("00741006", {}).get("Value")

    with database.transaction() as tx:
        claimed = claim_job(tx, job_id, "worker", 30, 3)
    assert said() == (["0"], None)
    with database.transaction() as tx:
        assert report_progress(tx, job_id, claimed.fence, 8, 20)
    assert said() == (["40"], ["8 of 20 images"])
    assert client.get(f"/api/jobs/{job_id}").json()["images_done"] == 8
    assert "8 of 20 images" in client.get("/operator").text + client.get(f"/api/ask/{job_id}").text
    with database.transaction() as tx:
        assert not report_progress(tx, job_id, claimed.fence - 1, 9, 20)
        complete_job(tx, job_id, claimed.fence, "RESULT", {})
    assert said()[0] == ["100"]


def test_a_canceled_job_is_lost_to_its_worker(ups, job_id, database):
    with database.transaction() as tx:
        claimed = claim_job(tx, job_id, "worker", 30, 3)
    assert ups.cancel(uid_of_job(job_id)).status_code == 202
    found = ups.get(uid_of_job(job_id))
    assert found[STATE]["Value"] == ["CANCELED"]
    assert "not needed" in found[PROGRESS]["Value"][0]["00741238"]["Value"][0]
    with database.transaction() as tx:
        assert not heartbeat_job(tx, job_id, claimed.fence, 30)


@pytest.mark.parametrize(
    ("method", "address", "content", "headers", "status"),
    [
        ("POST", WORKITEMS, b"{", {"content-type": JSON}, 400),
        ("POST", WORKITEMS, b"[]", {"content-type": JSON}, 400),
        ("POST", WORKITEMS, b"[1, 2]", {"content-type": JSON}, 400),
        ("POST", WORKITEMS, b"<x/>", {"content-type": "application/dicom+xml"}, 415),
        ("POST", WORKITEMS, b"[" * 100_000, {"content-type": JSON}, 400),
        ("POST", WORKITEMS, b" " * (5 * 1024 * 1024), {"content-type": JSON}, 413),
        ("POST", WORKITEMS, b'{"00741210": {"vr": "SQ", "Value": [1]}}', {"content-type": JSON}, 400),
        ("POST", WORKITEMS, b'{"00741000": {"vr": "CS", "Value": [{"a": 1}]}}', {"content-type": JSON}, 400),
        ("PUT", f"{WORKITEMS}/2.25.1/state", b'{"00741000": {}}', {"content-type": JSON}, 400),
        ("PUT", f"{WORKITEMS}/abc/state", b"{}", {"content-type": JSON}, 400),
        ("GET", WORKITEMS, None, {"accept": "application/dicom+xml"}, 406),
        ("GET", f"{WORKITEMS}?limit=-1", None, {}, 400),
        ("DELETE", f"{WORKITEMS}/2.25.1", None, {}, 405),
        ("POST", f"{WORKITEMS}/{'1' * 65}/cancelrequest", b"", {}, 400),
    ],
)
def test_hostile_requests(client, method, address, content, headers, status):
    assert client.request(method, address, content=content, headers=headers).status_code == status


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}])
def test_a_page_of_another_site_changes_nothing(client, ups, headers):
    uid = ups.made("SCHEDULED")
    for address in (f"{WORKITEMS}/{uid}/cancelrequest", "/dicom-web/studies"):
        assert client.request("POST", address, headers=headers).status_code == 403
    assert ups.get(uid)[STATE]["Value"] == ["SCHEDULED"]
    own = {"sec-fetch-site": "same-origin", "origin": "http://node"}
    assert client.request("POST", f"{WORKITEMS}/{uid}/cancelrequest", headers=own).status_code in {202, 409}
