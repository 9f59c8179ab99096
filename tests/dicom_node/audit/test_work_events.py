"""What the work of the node leaves in the trail: deliveries, removals, begin and end, commands."""

import json
import os
import signal
import subprocess
import sys

import pytest
from pydantic import ValidationError

from dicom_node.__main__ import main
from dicom_node.audit import activity
from dicom_node.audit.forward import waiting
from dicom_node.audit.settings import AuditSettings
from dicom_node.audit.trail import spool_of
from dicom_node.deliver import DeliveryServices, deliver_to
from dicom_node.doctor import examine
from dicom_node.purge import purge
from dicom_node.settings import load_settings
from storage.deliveries import queue_delivery
from storage.files import DiskFiles
from storage.index import Origin, index_instance, mark_complete, record_outcome
from storage.records import record_from_dataset
from tests.certificates import Authority
from tests.clock import moved_clock
from tests.conftest import REPOSITORY
from tests.dicom_node.audit.conftest import told_in
from tests.dicom_node.audit.repository import Repository
from tests.dicom_node.dimse.instances import CT, make_image, part10
from tests.fake_pacs import fake_pacs
from tests.flow.nodes import until

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def clock():
    with moved_clock() as clock:
        yield clock


@pytest.fixture
def services(clock, database, tmp_path, settings_of, free_port):
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    settings = settings_of(destinations=[pacs], retention={"days": 30}, audit={"patient_ids": True})
    return DeliveryServices(database, DiskFiles(tmp_path / "files"), settings, "worker")


@pytest.fixture
def study(services):
    """A complete study of two instances, each queued for the PACS."""
    first = make_image(PatientID="P-7")
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    with services.database.transaction() as tx:
        for dataset in (first, make_image(PatientID="P-7", **uids)):
            with services.files.new_incoming() as incoming:
                incoming.write(part10(dataset))
                index_instance(tx, record_from_dataset(dataset, incoming.keep(), Origin("IMPORT", "test")))
            queue_delivery(tx, str(dataset.SOPInstanceUID), "pacs", None)
        mark_complete(tx, str(first.StudyInstanceUID), 1, {})
        record_outcome(tx, str(first.StudyInstanceUID), "no rule matched")
    return str(first.StudyInstanceUID)


def test_a_delivery_is_told_at_its_beginning_and_at_its_end(services, study):
    with fake_pacs(services.settings.destinations[0].port):
        deliver_to("pacs", services)
    begun, went = told_in(services.settings)
    assert (begun.event, begun.counts) == ("Begin Transferring DICOM Instances", {CT: 2})
    assert (went.event, went.outcome, went.counts) == ("DICOM Instances Transferred", "0", {CT: 2})
    assert begun.objects == went.objects == [study, "P-7"]
    assert [who[0] for who in begun.who] == ["SIM4SEG", "PACS"]
    assert begun.who[1][1] == "127.0.0.1"


def test_a_delivery_that_fails_is_told_as_a_failure(services, study):
    deliver_to("pacs", services)
    begun, failed = told_in(services.settings)
    assert begun.event == "Begin Transferring DICOM Instances"
    assert (failed.event, failed.outcome, failed.counts) == ("DICOM Instances Transferred", "4", {CT: 2})
    assert failed.objects[0] == study


def test_a_study_that_is_removed_is_told_and_its_records_stay(services, study, clock):
    with fake_pacs(services.settings.destinations[0].port):
        deliver_to("pacs", services)
    clock.pass_days(40)
    assert len(purge(services.database, services.files, services.settings)) == 1
    *before, deleted = told_in(services.settings)
    assert (deleted.event, deleted.objects) == ("DICOM Study Deleted", [study, "P-7"])
    assert deleted.root.find("EventIdentification").get("EventActionCode") == "D"
    assert [message.objects[0] for message in before] == [study] * 2


def test_a_process_tells_its_begin_and_its_end_and_the_sweep_sends_them(tmp_path, free_port):
    home, port = tmp_path / "node", free_port()
    settings = load_settings(home)
    hospital = Authority(tmp_path / "ca", "hospital")
    audit = {
        "SYSLOG": "tls",
        "SYSLOG_HOST": "127.0.0.1",
        "SYSLOG_PORT": port,
        "TRUSTED": hospital.certificate,
    }
    environment = os.environ | {f"DICOM_NODE_AUDIT__{key}": str(value) for key, value in audit.items()}
    main(["migrate", "--home", str(home)])
    command = [sys.executable, "-m", "dicom_node", "sweep", "--home", str(home)]
    with (
        Repository(port, hospital.sign("repository")) as repository,
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            until(lambda: waiting(spool_of(settings)) == 0 and repository.messages, "the begin to be sent")
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    began, ended = told_in(settings)
    assert (began.event, began.who[0][0]) == ("Application Activity", "SIM4SEG sweep")
    assert (began.kind, ended.kind) == ("Application Start", "Application Stop")
    assert repository.messages[0].endswith(began.message.encode())
    assert waiting(spool_of(settings)) == 1


@pytest.mark.parametrize(
    ("process", "parent", "is_told"),
    [
        ("serve", None, True),
        ("serve", 1, True),
        ("worker-run", None, True),
        ("worker-run", 1, False),
        ("scp-1", None, False),
    ],
)
def test_parts_of_a_node_do_not_tell_that_they_begin(settings, monkeypatch, process, parent, is_told):
    ends = []
    monkeypatch.setattr("atexit.register", lambda function, *arguments: ends.append((function, arguments)))
    for _ in range(2):  # the log is set up twice where a process answers alone
        activity.runs_alone(settings, process, parent)
    for function, arguments in ends:
        function(*arguments)
    kinds = [message.kind for message in told_in(settings)]
    assert kinds == (["Application Start", "Application Stop"] if is_told else [])


def test_what_a_person_commands_is_told(tmp_path, capsys):
    home = tmp_path / "node"
    main(["migrate", "--home", str(home)])
    assert main(["requeue", "0" * 32, "Who^Ever", "--home", str(home)]) == 1
    assert main(["rebuild-index", "--home", str(home)]) == 0
    requeued, rebuilt = told_in(load_settings(home))
    assert requeued.event == "Security Alert"
    assert requeued.why == f"dicom-node requeue {'0' * 32}, status 1"
    assert rebuilt.why == "dicom-node rebuild-index (none named), status 0"
    capsys.readouterr()


def test_the_trail_is_shown_and_that_is_told(settings, capsys):
    spool_of(settings).append(["<AuditMessage/>"])
    home = str(settings.home)
    assert main(["audit", "show", "--home", home]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["number"], first["event"]) == (1, "")
    assert (second["event"], second["outcome"]) == ("Audit Log Used", "0")
    assert main(["audit", "show", "--xml", "--since", "2000-01-01", "--home", home]) == 0
    assert capsys.readouterr().out.startswith("<AuditMessage/>\n<AuditMessage><EventIdentification")
    assert main(["audit", "show", "--since", "2999-01-01T00:00Z", "--home", home]) == 0
    assert capsys.readouterr().out == ""
    assert main(["audit", "show", "--since", "yesterday", "--home", home]) == 1
    assert "write it like 2026-01-31" in capsys.readouterr().err


def test_a_changed_trail_is_said_by_the_command(settings, capsys):
    home = str(settings.home)
    spool = spool_of(settings)
    spool.append(["<a/>", "<b/>"])
    assert main(["audit", "verify", "--home", home]) == 0
    assert capsys.readouterr().out == "2 records, the chain is whole\n"
    (path,) = spool.segments()
    path.write_bytes(path.read_bytes().replace(b"<a/>", b"<c/>"))
    assert main(["audit", "verify", "--home", home]) == 1
    assert capsys.readouterr().out == ("record 1 is not what record 2 says: altered\n2 records, BROKEN\n")


def test_doctor_says_how_the_trail_is(settings_of, capsys):
    examine(settings_of())
    assert "ok       audit trail: 0 records" in capsys.readouterr().out
    examine(settings_of(audit={"syslog": "tls", "syslog_host": "127.0.0.1"}))
    assert "PROBLEM  audit.syslog: tls.trusted: is not set" in capsys.readouterr().out
    examine(settings_of(audit={"enabled": False}))
    assert "no audit trail is kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"syslog": "tls"}, "syslog needs syslog_host"),
        ({"syslog": "udp", "syslog_host": "a", "enabled": False}, "syslog needs enabled"),
        ({"certificate": "/a.crt"}, "certificate and key go together"),
        ({"syslog": "tcp", "syslog_host": "a"}, "'off', 'tls' or 'udp'"),
        ({"segment_mb": 0}, "greater than or equal to 0.01"),
        ({"keep_days": 0}, "greater than 0"),
        ({"source_id": "a\nb"}, "pattern"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        AuditSettings.model_validate(given)


def test_ports_are_those_of_the_standard():
    assert AuditSettings(syslog="tls", syslog_host="a").port == 6514
    assert AuditSettings(syslog="udp", syslog_host="a").port == 514
    assert AuditSettings(syslog="udp", syslog_host="a", syslog_port=5140).port == 5140
