"""What HTTP requests leave in the trail: stored, searched, read, changed, turned away."""

import base64
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from dicom_node.audit.keeper import Keeper
from dicom_node.audit.trail import AUDIT, spool_of, trail_of
from dicom_node.audit.web import CHANGES, Audited
from dicom_node.web import app
from dicom_node.web.app import build_app
from dicom_node.web.login.who import KEY, Login
from tests.dicom_node.audit.conftest import told_in
from tests.dicom_node.audit.disks import files_end_at
from tests.dicom_node.dimse.instances import CT, make_image, part10
from tests.dicom_node.web.conftest import Client, address_of, keep
from tests.dicom_node.web.ohif import upload
from tests.dicom_node.web.test_dead_letters import delivery_id, job_id

__all__ = ["delivery_id", "job_id", "keep"]  # fixtures
ADDRESS = "127.0.0.1"  # of httpx on an app without a socket


class Site:
    """The web server of a node, and what it told."""

    def __init__(self, settings, database):
        self.settings = settings
        self.app = build_app(settings, database)
        self.client = Client(self.app)

    @property
    def told(self):
        return told_in(self.settings)

    def get(self, address, **options):
        return self.client.get(address, **options)

    def post(self, address, **options):
        return self.client.post(address, **options)

    def metrics(self):
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.fixture
def site(settings_of, database):
    opened = []

    def start(**sections):
        settings = settings_of(**{"http": {"allowed_hosts": ["node"]}, **sections})
        opened.append(Site(settings, database))
        return opened[-1]

    yield start
    for each in opened:
        each.app.state.services.close()


def query_of(message):
    return base64.b64decode(message.root.findtext(".//ParticipantObjectQuery")).decode()


def test_an_upload_is_one_record_for_each_study(site):
    node = site()
    first, other = make_image(), make_image()
    second = make_image(StudyInstanceUID=first.StudyInstanceUID)
    assert node.post("/dicom-web/studies", **upload(*map(part10, (first, other, second)))).status_code == 200
    one, two = node.told
    assert {each.event for each in (one, two)} == {"DICOM Instances Transferred"}
    assert {each.objects[0]: each.counts for each in (one, two)} == {
        str(first.StudyInstanceUID): {CT: 2}, str(other.StudyInstanceUID): {CT: 1},
    }  # fmt: skip
    assert one.who[0] == (ADDRESS, ADDRESS, True)


def test_what_of_an_upload_was_refused_is_a_failure(site):
    node = site()
    assert node.post("/dicom-web/studies", **upload(part10(make_image()), b"nonsense")).status_code == 202
    stored, failed = node.told
    assert (stored.outcome, failed.outcome, failed.why) == ("0", "4", "1 instances were refused")


def test_a_search_is_told_without_what_may_name_a_patient(site):
    node = site()
    keys = "PatientName=Who*&00100020=P-7&StudyInstanceUID=1.2.3&ModalitiesInStudy=CT&limit=5&Nobody=Who"
    assert node.get(f"/dicom-web/studies?{keys}").status_code == 200
    (message,) = node.told
    assert (message.event, message.objects) == ("Query", ["/dicom-web/studies"])
    assert query_of(message) == (
        "/dicom-web/studies?PatientName=(withheld)&PatientID=(withheld)&StudyInstanceUID=1.2.3"
        "&ModalitiesInStudy=CT&limit=5&(unknown)=(withheld)"
    )


def test_a_search_is_told_in_full_where_that_is_set(site):
    node = site(audit={"patient_ids": True})
    node.get("/dicom-web/studies?PatientName=Who*")
    assert query_of(node.told[0]) == "/dicom-web/studies?PatientName=Who*"


def test_searches_of_every_kind_and_of_workitems_are_told(site, keep):
    node, image = site(), make_image()
    keep(image)
    study, series = address_of(image).split("/series/")[0], address_of(image).split("/instances/")[0]
    paths = [f"{study}/series", f"{study}/instances", f"{series}/instances", "/dicom-web/workitems"]
    for path in paths:
        assert node.get(path).status_code in {200, 204}
    assert [(each.event, each.objects) for each in node.told] == [("Query", [path]) for path in paths]


def test_a_study_that_is_fetched_whole_is_a_transfer(site, keep):
    node, image = site(), make_image()
    keep(image)
    study = address_of(image).split("/series/")[0]
    assert node.get(study).status_code == 200
    (message,) = node.told
    assert (message.event, message.outcome) == ("DICOM Instances Transferred", "0")
    assert message.objects == [str(image.StudyInstanceUID)]
    assert [who[0] for who in message.who] == ["SIM4SEG", ADDRESS]


def test_an_answer_that_breaks_off_is_a_failure(settings):
    """A study on its way out whose client is gone, or whose file could not be read on."""

    async def breaks(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise ConnectionResetError

    app = Starlette(routes=[Mount("/dicom-web", app=Audited(breaks, settings, "/dicom-web"))])
    with pytest.raises(ConnectionResetError):
        Client(app).get("/dicom-web/studies/1.2.3")
    (message,) = told_in(settings)
    assert (message.event, message.outcome) == ("DICOM Instances Transferred", "4")
    assert message.objects == ["1.2.3"]


def test_who_logged_in_is_named(settings):
    async def answers(scope, receive, send):
        await PlainTextResponse("done")(scope, receive, send)

    async def knows(scope, receive, send):
        await Audited(answers, settings, "/api")(scope | {KEY: Login("dr.a", frozenset())}, receive, send)

    Client(knows).post("/api/ask")
    (message,) = told_in(settings)
    assert message.who[1] == ("dr.a", ADDRESS, False)


def test_reading_a_study_is_told_once_for_a_while(site, keep):
    node, image, other = site(), make_image(), make_image()
    keep(image, other)
    for _ in range(3):
        assert node.get(f"{address_of(image)}/metadata").status_code == 200
        assert node.get(f"{address_of(image)}/frames/1").status_code == 200
    node.get(address_of(other))
    told = node.told
    assert {each.event for each in told} == {"DICOM Instances Accessed"}
    assert [each.objects for each in told] == [[str(image.StudyInstanceUID)], [str(other.StudyInstanceUID)]]


def test_reading_is_told_each_time_where_that_is_set(site, keep):
    node, image = site(audit={"access_again_s": 0}), make_image()
    keep(image)
    for _ in range(3):
        node.get(f"{address_of(image)}/metadata")
    assert len(node.told) == 3


def test_what_is_not_there_and_what_is_no_uid_leaves_nothing(site):
    node = site()
    assert node.get("/dicom-web/studies/1.2.3/metadata").status_code == 404
    assert node.get("/dicom-web/studies/Who%5EEver/metadata").status_code == 400
    assert node.get("/dicom-web/wado?requestType=WADO&studyUID=Who").status_code >= 400
    assert node.told == []


@pytest.mark.parametrize("path", ["/api/ask", "/dicom-web/workitems", "/dicom-web/studies"])
def test_a_page_of_another_site_is_an_alert(site, path):
    node = site()
    assert node.post(path, headers={"origin": "https://evil.example"}).status_code == 403
    (message,) = node.told
    assert (message.event, message.kind, message.outcome) == (
        "Security Alert", "Use of Restricted Function", "4",
    )  # fmt: skip
    assert message.why == "POST refused: the request comes from a page of another site"
    assert message.who[1][1] == ADDRESS


def test_what_operators_do_is_told(site, job_id, delivery_id):
    node = site()
    assert node.post(f"/api/jobs/{job_id}/requeue").status_code == 201
    assert node.post(f"/api/deliveries/{delivery_id}/redeliver").status_code == 202
    assert node.post(f"/api/jobs/{'0' * 32}/requeue").status_code == 404
    requeued, redelivered = node.told
    assert (requeued.event, requeued.kind, requeued.outcome) == (
        "Security Alert", "Use of Restricted Function", "0",
    )  # fmt: skip
    assert requeued.why == f"POST /api/jobs/{job_id}/requeue"
    assert redelivered.why == f"POST /api/deliveries/{delivery_id}/redeliver"
    assert requeued.who[1][:2] == (ADDRESS, ADDRESS)


def test_metrics_say_how_many_are_written_and_wait(site):
    node = site(audit={"syslog": "udp", "syslog_host": "127.0.0.1"})
    node.get("/dicom-web/studies")
    node.get("/dicom-web/studies")
    found = node.metrics()
    assert found["dicom_node_audit_records_total"] == 2
    assert found["dicom_node_audit_sent_total"] == 0
    assert found["dicom_node_audit_waiting"] == 2
    assert "dicom_node_audit_sent_total" not in site().metrics()


def sizes(settings):
    return max(path.stat().st_size for path in spool_of(settings).segments())


def test_a_full_disk_is_said_and_nothing_is_lost_that_memory_holds(site):
    node = site()
    node.get("/dicom-web/studies")
    assert node.get("/health/ready").status_code == 200
    with files_end_at(sizes(node.settings)):
        assert node.get("/dicom-web/series").status_code == 200  # the node goes on
    answer = node.get("/health/ready")
    assert (answer.status_code, answer.json()["reasons"]) == (503, [AUDIT])
    assert "make room at audit.folder" in answer.json()["problems"][0]
    assert "the audit trail cannot be written" in node.get("/operator").text
    node.get("/dicom-web/instances")
    assert [each.objects[0] for each in node.told] == [
        "/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances",
    ]  # fmt: skip
    assert node.get("/health/ready").status_code == 200


def test_what_is_lost_is_told_when_there_is_room_again(site, monkeypatch):
    monkeypatch.setattr("dicom_node.audit.trail.KEPT", 2)
    node = site()
    node.get("/dicom-web/studies")
    with files_end_at(sizes(node.settings)):
        for _ in range(5):
            node.get("/dicom-web/series")
    node.get("/dicom-web/instances")
    told = node.told
    assert [each.event for each in told] == ["Query"] * 4 + ["Security Alert"]
    assert (told[-1].kind, told[-1].outcome) == ("Audit Recording Stopped", "8")
    assert told[-1].why == "the audit trail could not be written: 3 records are lost"


def test_the_keeper_says_when_there_is_room_again(site):
    node = site()
    keeper = Keeper(node.settings)
    node.get("/dicom-web/studies")
    with files_end_at(sizes(node.settings)):
        node.get("/dicom-web/series")
        with pytest.raises(OSError, match="File too large"):
            keeper.tend()
    assert node.get("/health/ready").status_code == 503
    keeper.tend()
    assert node.get("/health/ready").status_code == 200
    assert not list(spool_of(node.settings).folder.glob("probe*"))


def test_the_node_may_refuse_images_instead(site, monkeypatch):
    monkeypatch.setattr("dicom_node.pressure.LOOK_EVERY_S", 0.0)
    node = site(audit={"when_full": "refuse"})
    node.get("/dicom-web/studies")
    with files_end_at(sizes(node.settings)):
        node.get("/dicom-web/series")
    services = node.app.state.services
    answer = node.post("/dicom-web/studies", **upload(part10(make_image())))
    assert answer.status_code == 507
    assert "not ready: audit" in answer.text
    assert services.receiver.pressure.hard_problem(may_use_reserve=True) is None  # results still go out
    node.get("/dicom-web/instances")
    assert node.post("/dicom-web/studies", **upload(part10(make_image()))).status_code == 200


def test_a_disk_without_room_is_seen_before_anything_is_lost(site, monkeypatch):
    node = site()
    node.get("/dicom-web/studies")
    monkeypatch.setattr("dicom_node.audit.health.LEAST_FREE", 10**18)
    answer = node.get("/health/ready")
    assert answer.json()["reasons"] == [AUDIT]


def test_a_trail_is_one_for_each_home_and_process(settings, settings_of):
    assert trail_of(settings) is trail_of(settings_of())
    assert trail_of(settings) is not trail_of(settings_of(audit={"keep_days": 1}))


def test_the_trail_fails_nobody(site, settings):
    spool_of(settings).folder.parent.mkdir(exist_ok=True)
    spool_of(settings).folder.write_text("a file where the folder should be")
    node = site()
    assert node.get("/dicom-web/studies").status_code == 200
    assert node.get("/health/ready").json()["reasons"] == [AUDIT]


def test_addresses_of_the_middleware_are_those_of_the_app():
    """Each change below /api and of workitems, but subscriptions, has a form that the trail writes."""
    below_api = [route.path for route in app._operator_routes() if "POST" in (route.methods or ())]
    workitems = [
        route.path
        for route in app._workitem_routes()
        if set(getattr(route, "methods", None) or ()) & {"POST", "PUT", "DELETE"}
        and "subscriber" not in route.path
    ]
    for path in (*below_api, *workitems):
        assert CHANGES.fullmatch(re.sub(r"\{[a-z_]+\}", "1.2.3", path)), path
