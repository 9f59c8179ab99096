"""Orthanc as client of our queries, retrievals and commitments, and as server of ours."""

import json
import urllib.request

import pytest

from dicom_node.dimse.calling import caller_of
from dicom_node.dimse.commitment_scu import CommitmentState, commitment_outcome, request_commitment
from dicom_node.dimse.retrieve_scu import find_studies, get_study, move_study, priors_of
from dicom_node.dimse.scu import send_instances
from dicom_node.settings_network import PeerSettings
from storage.commitment_ledger import Reference
from storage.index import instances_of_study
from tests.dicom_node.dimse.instances import CT, JPEGLSLossless, make_image, save
from tests.flow.nodes import until
from tests.flow.orthanc import AE_TITLE, running_orthanc

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def peer(orthanc):
    return PeerSettings(name="orthanc", ae_title=AE_TITLE, host="127.0.0.1", port=orthanc.dicom_port)


@pytest.fixture
def running(node, orthanc, peer):
    """Our node, which knows Orthanc, and which Orthanc knows as `node`."""
    started = node(peers=[peer.model_dump()], delivery={"first_retry_s": 0.2, "max_retry_s": 0.2})
    modality = {"AET": "SIM4SEG", "Host": "127.0.0.1", "Port": started.port, "Manufacturer": "Generic"}
    ask(orthanc, "/modalities/node", modality, method="PUT")
    return started


def ask(orthanc, path, body, method="POST"):
    url = f"http://127.0.0.1:{orthanc.http_port}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def two_of(**attributes):
    first = make_image(**attributes)
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    return first, make_image(**uids, **attributes)


def at_orthanc(orthanc, study_uid):
    query = {"Level": "Instance", "Expand": True, "Query": {"StudyInstanceUID": study_uid}}
    return {found["MainDicomTags"]["SOPInstanceUID"] for found in ask(orthanc, "/tools/find", query)}


def test_orthanc_queries_and_retrieves_from_us(orthanc, running, keep):
    first, second = two_of(PatientID="FROM-US", PatientName="Müller^Änne")
    keep(first, second, make_image(PatientID="OTHER"))
    query = {"Level": "Study", "Query": {"PatientID": "FROM-US", "PatientName": "", "StudyDate": "20260101-"}}
    found = ask(orthanc, "/modalities/node/query", query)["ID"]
    (answer,) = orthanc.get_json(f"/queries/{found}/answers?expand&simplify")
    assert (answer["StudyInstanceUID"], answer["PatientName"]) == (first.StudyInstanceUID, "Müller^Änne")
    ask(orthanc, f"/queries/{found}/retrieve", {"TargetAet": AE_TITLE, "Synchronous": True})
    assert at_orthanc(orthanc, first.StudyInstanceUID) == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_orthanc_asks_us_for_storage_commitment(orthanc, running, keep):
    image = make_image()
    keep(image)

    def outcome(sop_instance_uid):
        instances = [{"SOPClassUID": CT, "SOPInstanceUID": sop_instance_uid}]
        asked = ask(orthanc, "/modalities/node/storage-commitment", {"DicomInstances": instances})["ID"]
        path = f"/storage-commitment/{asked}"
        return until(
            lambda: (
                report := orthanc.get_json(path)
            )["Status"] != "Pending" and report, "Orthanc's report"
        )  # fmt: skip

    assert outcome(image.SOPInstanceUID)["Status"] == "Success"
    report = outcome("1.2.3.4.5")
    assert report["Status"] == "Failure"
    assert report["Failures"][0]["SOPInstanceUID"] == "1.2.3.4.5"


def test_orthanc_stores_to_us(orthanc, running, peer, tmp_path, database):
    image = make_image(syntax=JPEGLSLossless)
    send_instances([save(image, tmp_path)], peer, "SIM4SEG")
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": image.SOPInstanceUID}}
    ask(orthanc, "/modalities/node/store", ask(orthanc, "/tools/find", query))
    with database.reading() as tx:
        (row,) = instances_of_study(tx, image.StudyInstanceUID)
    assert (row.sop_instance_uid, row.transfer_syntax_uid) == (image.SOPInstanceUID, JPEGLSLossless)


def test_orthanc_commits_to_ours(running, peer, tmp_path, database):
    image = make_image()
    send_instances([save(image, tmp_path)], peer, "SIM4SEG")

    def outcome(uid):
        references = [Reference(CT, uid)]
        asked = request_commitment(peer, references, settings=running.settings, database=database)

        def answered():
            with database.reading() as tx:
                found = commitment_outcome(tx, asked)
            return found.state is not CommitmentState.PENDING and found

        return until(answered, "the report of Orthanc")

    assert outcome(image.SOPInstanceUID).state is CommitmentState.COMMITTED
    assert outcome("1.2.3.4.5").failed == {"1.2.3.4.5": 0x0112}


@pytest.mark.parametrize("is_get", [False, True])
def test_we_pull_a_study_from_orthanc(running, peer, tmp_path, database, receiver, is_get):
    first, second = two_of()
    send_instances([save(first, tmp_path), save(second, tmp_path)], peer, "SIM4SEG")
    steps = []
    if is_get:
        progress = get_study(peer, first.StudyInstanceUID, running.settings, receiver, steps.append)
    else:
        progress = move_study(peer, first.StudyInstanceUID, running.settings, steps.append)
    assert (progress.completed, progress.is_whole) == (2, True)
    with database.reading() as tx:
        here = {row.sop_instance_uid for row in instances_of_study(tx, first.StudyInstanceUID)}
    assert here == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_we_find_priors_at_orthanc(running, peer, tmp_path):
    now, before = (
        make_image(PatientID="PRIORS", StudyDate="20260102"),
        make_image(PatientID="PRIORS", StudyDate="20240102", PatientName="Früher^Änne"),
    )
    send_instances([save(now, tmp_path), save(before, tmp_path)], peer, "SIM4SEG")
    caller = caller_of(running.settings)
    assert priors_of(peer, caller, now.StudyInstanceUID) == [before.StudyInstanceUID]
    keys = {"PatientName": "Früher*", "StudyInstanceUID": ""}
    assert [match.StudyInstanceUID for match in find_studies(peer, caller, keys)] == [before.StudyInstanceUID]
