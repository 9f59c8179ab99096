"""What real associations leave in the trail: stored, refused, searched, retrieved, turned away."""

import base64

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.dimse.query_model import STUDY_ROOT
from dicom_node.dimse.retrieve_scu import get_study
from dicom_node.dimse.scu import Sending, send_instances
from dicom_node.services import open_receiver
from dicom_node.settings_network import TlsSettings
from tests.certificates import Authority
from tests.dicom_node.audit.conftest import told_in
from tests.dicom_node.audit.mixed import store_beside_query
from tests.dicom_node.dimse.conftest import Node, enter, keep
from tests.dicom_node.dimse.instances import CT, ULTRASOUND, make_data_set, make_image, save
from tests.dicom_node.dimse.queries import identifier
from tests.dicom_node.dimse.raw_peer import (
    ASSOCIATE_RJ,
    associate_rq,
    associated,
    connect,
    context,
    receive_pdu,
)
from tests.dicom_node.dimse.test_find_scp import find
from tests.dicom_node.dimse.test_retrieve_scp import Archive, responses, study_of
from tests.dicom_node.dimse.test_retrieve_scu import Archive as Pacs
from tests.doors import make_receiver
from tests.flow.nodes import until

__all__ = ["enter", "keep"]  # fixtures
OURS = "SIM4SEG"
# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
EVERYTHING = ["store", "query", "retrieve", "commit"]


@pytest.fixture
def node(settings_of, database, files_root, free_port):
    nodes = []

    def start(**sections):
        dimse = {"port": free_port(), "others_may": EVERYTHING, **sections.pop("dimse", {})}
        limits = {"min_free_mb": 0, "low_free_mb": 0}
        settings = settings_of(dimse=dimse, limits=limits, **sections)
        # Some tests enter rows without files: to a node whose volume is gone that would look the same.
        (settings.storage.files_root / "objects").mkdir(parents=True, exist_ok=True)
        nodes.append(Node(settings, open_receiver(settings, database), database))
        return nodes[-1]

    yield start
    for started in nodes:
        started.close()


def store(node, folder, *datasets, calling="SCANNER"):
    paths = [save(dataset, folder) for dataset in datasets]
    return [status.status for status in send_instances(paths, node, calling, Sending())]


def told(node, count):
    """What the node told, once there are `count` messages: it writes right after the last answer."""
    return until(lambda: (found := told_in(node.settings))[count - 1 :] and found, f"{count} messages", 20)


def query_of(message):
    return base64.b64decode(message.root.findtext(".//ParticipantObjectQuery"))


def test_an_association_is_one_record_for_each_study(node, tmp_path):
    running = node()
    first, other = study_of(3), make_image(sop_class=ULTRASOUND)
    assert store(running, tmp_path, *first, other) == [0] * 4
    one, two = told(running, 2)
    assert {one.event, two.event} == {"DICOM Instances Transferred"}
    assert (one.objects, one.counts) == ([str(first[0].StudyInstanceUID)], {CT: 3})
    assert (two.objects, two.counts) == ([str(other.StudyInstanceUID)], {ULTRASOUND: 1})
    assert one.who[0] == ("SCANNER", "127.0.0.1", True)
    assert one.who[1][0] == OURS
    assert "MRN-1" not in one.message


def test_an_association_that_mixes_services_is_told_too(node):
    running = node()
    (image,) = study_of(1)
    assert store_beside_query(running.port, image) == 0
    (message,) = told(running, 1)
    assert (message.objects, message.counts) == ([str(image.StudyInstanceUID)], {CT: 1})


def test_what_was_refused_is_told_as_a_failure(node, tmp_path):
    running = node()
    image = make_image()
    other = make_image(StudyInstanceUID=image.StudyInstanceUID, SOPInstanceUID=image.SOPInstanceUID)
    other.PatientComments = "other"
    assert store(running, tmp_path, image) == [0]
    assert store(running, tmp_path, other) == [0x0111]
    stored, failed = told(running, 2)
    assert (stored.outcome, failed.outcome) == ("0", "4")
    assert failed.why == "1 instances were refused"


def test_what_was_here_before_is_told_as_that(node, tmp_path):
    running = node()
    first, second = study_of(2)
    assert store(running, tmp_path, first) == [0]
    told(running, 1)
    assert store(running, tmp_path, first, second) == [0, 0]
    new, more, again = told(running, 3)
    assert [(each.action, each.counts) for each in (new, more, again)] == [
        ("C", {CT: 1}), ("C", {CT: 1}), ("R", {CT: 1}),
    ]  # fmt: skip


def test_a_corrected_patient_is_told(node, tmp_path):
    running = node(identity={"corrections_from": ["SCANNER"]}, audit={"patient_ids": True})
    (image,) = study_of(1, PatientID="P-1")
    assert store(running, tmp_path, image) == [0]
    told(running, 1)
    image.PatientID = "P-2"
    assert store(running, tmp_path, image) == [0]
    _, changed, record = told(running, 3)
    assert (changed.event, changed.action) == ("DICOM Instances Transferred", "U")
    assert (record.event, record.action) == ("Patient Record", "U")
    assert record.objects == [str(image.StudyInstanceUID), "P-2"]
    assert record.who[0] == ("SCANNER", "127.0.0.1", True)


def test_a_patient_is_named_only_where_that_is_set(node, tmp_path):
    running = node(audit={"patient_ids": True})
    image = make_image(PatientID="P-7", PatientName="Who^Ever")
    assert store(running, tmp_path, image) == [0]
    (message,) = told(running, 1)
    assert message.objects == [str(image.StudyInstanceUID), "P-7"]
    assert "Who^Ever" in message.message


def test_who_is_rejected_is_an_alert(node):
    running = node(dimse={"allowed_calling_aes": ["SCANNER"]})
    for calling, called in (("STRANGER", OURS), ("SCANNER", "OTHER")):
        with connect(running.port) as peer:
            peer.sendall(associate_rq(context(1, CT), calling=calling, called=called))
            assert receive_pdu(peer)[0] == ASSOCIATE_RJ
    stranger, misled = told(running, 2)
    assert (stranger.event, stranger.kind, stranger.outcome) == ("Security Alert", "Node Authentication", "4")
    assert stranger.who[1] == ("STRANGER", "127.0.0.1", False)
    assert stranger.why == "association rejected 1/1/3"
    assert misled.why == "association rejected 1/1/7"


def test_a_flood_of_rejections_is_counted_not_written(node):
    running = node(dimse={"allowed_calling_aes": ["SCANNER"]})
    for _ in range(30):
        with connect(running.port) as peer:
            peer.sendall(associate_rq(context(1, CT), calling="STRANGER"))
            receive_pdu(peer)
    assert len(told(running, 20)) == 20


def test_a_missing_right_is_an_alert(node, enter):
    running = node(dimse={"others_may": ["store"]})
    enter(make_data_set())
    _, last = find(running, identifier(StudyInstanceUID=""))
    assert last.Status == 0x0124
    (message,) = told(running, 1)
    assert (message.event, message.kind) == ("Security Alert", "Use of Restricted Function")
    assert message.who[1] == ("TESTER", "127.0.0.1", False)


def test_storing_without_the_right_is_told_once(node, tmp_path):
    running = node(dimse={"others_may": ["query"]})
    assert store(running, tmp_path, *study_of(3)) == [0x0124] * 3
    (failed,) = told(running, 1)
    assert (failed.event, failed.outcome) == ("DICOM Instances Transferred", "4")
    assert failed.why == "3 instances were refused"


def test_tls_that_fails_is_an_alert(node, tmp_path, free_port):
    hospital = Authority(tmp_path / "ca", "hospital")
    ours, evil = hospital.sign("node"), Authority(tmp_path / "evil", "strangers").sign("evil")
    files = {"certificate": ours.certificate, "key": ours.key, "trusted": hospital.certificate}
    port = free_port()
    running = node(tls={**files, "listen": True, "port": port})
    peer = type("Peer", (), {"ae_title": OURS, "host": "127.0.0.1", "port": port, "tls": True})()
    strange = TlsSettings.model_validate(files | {"certificate": evil.certificate, "key": evil.key})
    send_instances([save(make_image(), tmp_path)], peer, "SCANNER", Sending(tls=strange))
    message = told(running, 1)[0]
    assert (message.event, message.kind) == ("Security Alert", "Node Authentication")
    assert message.why.startswith("TLS handshake failed")
    assert message.who[1][1] == "127.0.0.1"


def test_a_certificate_of_another_ae_is_an_alert(node, tmp_path, free_port):
    hospital = Authority(tmp_path / "ca", "hospital")
    ours, scanner = hospital.sign("node"), hospital.sign("scanner", common_name="SCANNER")
    files = {"certificate": ours.certificate, "key": ours.key, "trusted": hospital.certificate}
    port = free_port()
    running = node(tls={**files, "listen": True, "port": port, "binds_ae_title": True})
    peer = type("Peer", (), {"ae_title": OURS, "host": "127.0.0.1", "port": port, "tls": True})()
    shown = TlsSettings.model_validate(files | {"certificate": scanner.certificate, "key": scanner.key})
    send_instances([save(make_image(), tmp_path)], peer, "OTHER", Sending(tls=shown))
    message = told(running, 1)[0]
    assert message.why == "the certificate does not name the calling AE title"
    assert message.who[1] == ("OTHER", "127.0.0.1", False)


def test_a_query_is_told_without_what_may_name_a_patient(node, enter):
    running = node()
    enter(dataset := make_data_set())
    study = str(dataset.StudyInstanceUID)
    asked = identifier(StudyInstanceUID=study, PatientName="Müller*", PatientID="MRN-1", StudyDate="20260102")
    matches, _ = find(running, asked)
    assert len(matches) == 1
    (message,) = told(running, 1)
    assert message.event == "Query"
    assert message.who[0] == ("TESTER", "127.0.0.1", True)
    assert message.objects == [STUDY_ROOT.find]
    detail = message.root.find(".//ParticipantObjectDetail")
    syntax = base64.b64decode(detail.get("value")).decode()
    query = decoded(query_of(message), syntax)
    assert {each.keyword: str(each.value or "") for each in query} == {
        "QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study, "PatientName": "", "PatientID": "",
        "StudyDate": "",
    }  # fmt: skip


def test_a_query_is_told_in_full_where_that_is_set(node, enter):
    running = node(audit={"patient_ids": True})
    enter(make_data_set())
    find(running, identifier(PatientID="MRN-1", StudyInstanceUID=""))
    (message,) = told(running, 1)
    assert b"MRN-1" in query_of(message)


def decoded(content, syntax) -> Dataset:
    is_implicit = syntax != ExplicitVRLittleEndian
    return read_dataset(DicomBytesIO(content), is_implicit, is_little_endian=True)


def test_a_move_is_told_at_its_beginning_and_at_its_end(node, keep, free_port):
    archive = Archive(free_port(), (ExplicitVRLittleEndian,), statuses=[0, 0xA700])
    datasets = study_of(3)
    keep(*datasets)
    running = node(peers=[archive.entry])
    study = str(datasets[0].StudyInstanceUID)
    responses(running, identifier(StudyInstanceUID=study), STUDY_ROOT, "ARCHIVE")
    archive.server.shutdown()
    begun, went, failed = told(running, 3)
    assert (begun.event, begun.objects, begun.counts) == (
        "Begin Transferring DICOM Instances",
        [study],
        {CT: 3},
    )
    assert [who[0] for who in begun.who] == [OURS, "ARCHIVE", "TESTER"]
    assert [who[2] for who in begun.who] == [False, False, True]
    assert (went.event, went.outcome, went.counts) == ("DICOM Instances Transferred", "0", {CT: 2})
    assert (failed.event, failed.outcome, failed.counts) == ("DICOM Instances Transferred", "4", {CT: 1})


def test_a_get_is_told_too(node, keep):
    datasets = study_of(2)
    keep(*datasets)
    running = node()
    study = str(datasets[0].StudyInstanceUID)
    responses(running, identifier(StudyInstanceUID=study), STUDY_ROOT)
    begun, failed = told(running, 2)
    assert begun.who[1] == ("TESTER", "127.0.0.1", True)
    assert failed.counts == {CT: 2}  # the peer has no handler for them


def test_what_we_fetch_ourselves_is_told(node, free_port, database, files_root):
    datasets = study_of(2)
    pacs = Pacs(free_port(), datasets)
    running, receiver = node(), make_receiver(database, files_root)
    study = str(datasets[0].StudyInstanceUID)
    get_study(pacs, study, running.settings, receiver, lambda _progress: None)
    pacs.server.shutdown()
    (message,) = told(running, 1)
    assert (message.event, message.objects, message.counts) == (
        "DICOM Instances Transferred",
        [study],
        {CT: 2},
    )
    assert [who[2] for who in message.who] == [False, True]  # we asked


def test_an_echo_leaves_nothing(node):
    running = node()
    with associated(running.port, context(1, "1.2.840.10008.1.1")):
        pass
    assert told_in(running.settings) == []


def test_nothing_is_kept_where_the_trail_is_off(node, tmp_path):
    running = node(audit={"enabled": False})
    assert store(running, tmp_path, make_image()) == [0]
    assert not (tmp_path / "audit").exists()
