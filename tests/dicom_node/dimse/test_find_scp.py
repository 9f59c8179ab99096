"""C-FIND by DCMTK's findscu and by pynetdicom: what matches, what comes back, and what is refused."""

import io
import os
import subprocess
import time

import pytest
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from dicom_node.dimse import find_scp
from dicom_node.dimse.matches import render
from dicom_node.dimse.query_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from tests.dicom_node.dimse.instances import make_data_set, make_image
from tests.dicom_node.dimse.queries import identifier

PENDING, SUCCESS, CANCELED = 0xFF00, 0x0000, 0xFE00


def find(node, asked, model=STUDY_ROOT, options=b"", calling="TESTER", cancel_after=None):
    """The matches, and the status of the last response."""
    ae = AE(calling)
    ae.add_requested_context(model.find)
    negotiation = []
    if options:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = model.find, options
        negotiation.append(item)
    association = ae.associate("127.0.0.1", node.port, ae_title="SIM4SEG", ext_neg=negotiation)
    assert association.is_established
    try:
        matches, last = [], None
        for status, match in association.send_c_find(asked, model.find, msg_id=7):
            last = status
            if status.Status == PENDING:
                matches.append(match)
                if len(matches) == cancel_after:
                    association.send_c_cancel(7, query_model=model.find)
        return matches, last
    finally:
        association.release()


def study(**attributes):
    return make_data_set(**attributes)


def uids(matches):
    return {str(match.StudyInstanceUID) for match in matches}


def test_findscu_gets_what_it_asks_for(node, enter, tmp_path):
    dataset = make_image(PatientName="Müller^Ännchen", PatientID="P-1", Modality="CT")
    enter(dataset, make_image(PatientID="P-2"))
    running = node()
    keys = ["QueryRetrieveLevel=STUDY", "PatientID=P-1", "PatientName", "StudyInstanceUID"]
    keys += ["ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"]
    keys += ["SpecificCharacterSet=ISO_IR 100", "RetrieveAETitle", "InstanceAvailability"]
    command = ["findscu", "-S", "-X", "-od", str(tmp_path), "-aec", "SIM4SEG", "127.0.0.1", str(running.port)]
    for key in keys:
        command += ["-k", key]
    environment = os.environ | {"TCP_NODELAY": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (answer,) = [dcmread(path, force=True) for path in tmp_path.glob("rsp*.dcm")]
    assert answer.StudyInstanceUID == dataset.StudyInstanceUID
    assert str(answer.PatientName) == "Müller^Ännchen"
    assert answer.SpecificCharacterSet == "ISO_IR 100"
    assert answer.ModalitiesInStudy == "CT"
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (1, 1)
    assert (answer.RetrieveAETitle, answer.InstanceAvailability) == ("SIM4SEG", "ONLINE")


def test_all_levels_of_the_patient_root(node, enter):
    first = make_image(PatientID="P-1", SeriesNumber=1, InstanceNumber=1)
    enter(first, make_image(PatientID="P-1"), make_image(PatientID="P-2"))
    running = node()
    keys = {"PatientID": "P-1", "NumberOfPatientRelatedStudies": "", "NumberOfPatientRelatedInstances": ""}
    (patient,), last = find(running, identifier("PATIENT", **keys), PATIENT_ROOT)
    assert (patient.NumberOfPatientRelatedStudies, patient.NumberOfPatientRelatedInstances) == (2, 2)
    assert last.Status == SUCCESS
    studies, _ = find(running, identifier("STUDY", PatientID="P-1", StudyInstanceUID=""), PATIENT_ROOT)
    assert len(studies) == 2
    keys = {"PatientID": "P-1", "StudyInstanceUID": first.StudyInstanceUID}
    asked = identifier("SERIES", **keys, SeriesInstanceUID="", Modality="", NumberOfSeriesRelatedInstances="")
    (series,), _ = find(running, asked, PATIENT_ROOT)
    assert (series.SeriesInstanceUID, series.NumberOfSeriesRelatedInstances) == (first.SeriesInstanceUID, 1)
    asked = identifier(
        "IMAGE", **keys, SeriesInstanceUID=first.SeriesInstanceUID, SOPInstanceUID="", SOPClassUID="", Rows=""
    )
    (image,), _ = find(running, asked, PATIENT_ROOT)
    assert (image.SOPInstanceUID, image.SOPClassUID, image.Rows) == (
        first.SOPInstanceUID, first.SOPClassUID, 8,
    )  # fmt: skip


def test_patient_study_only_has_two_levels(node, enter):
    enter(make_image(PatientID="P-1"))
    running = node()
    found, _ = find(running, identifier("STUDY", PatientID="P-1", StudyDate=""), PATIENT_STUDY_ONLY)
    assert [match.StudyDate for match in found] == ["20260102"]
    _, last = find(running, identifier("SERIES", PatientID="P-1"), PATIENT_STUDY_ONLY)
    assert last.Status == 0xA900


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"PatientName": "mül*"}, "a"),
        ({"PatientName": "*^?nnchen"}, "a"),
        ({"PatientID": "P-?"}, "ab"),
        ({"PatientID": "*"}, "ab"),
        ({"PatientID": ""}, "ab"),
        ({"PatientID": "%"}, ""),
        ({"AccessionNumber": ["A-1", "A-2"]}, "ab"),
        ({"StudyDate": "20260101-20260131"}, "a"),
        ({"StudyDate": "20260201-"}, "b"),
        ({"StudyDate": "-20260131"}, "a"),
        ({"StudyTime": "10-1030"}, "a"),
        ({"ModalitiesInStudy": "MR"}, "b"),
        ({"ModalitiesInStudy": ["CT", "MR"]}, "ab"),
        ({"PatientSex": "F", "StudyDate": "20260102"}, "a"),
    ],
)
def test_matching(node, enter, keys, expected):
    a = study(
        PatientName="Müller^Ännchen", PatientID="P-1", AccessionNumber="A-1", StudyDate="20260102",
        StudyTime="101500", Modality="CT", PatientSex="F",
    )  # fmt: skip
    b = study(
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", PatientID="P-2", AccessionNumber="A-2",
        StudyDate="20260203", StudyTime="223000", Modality="MR", PatientSex="M",
    )  # fmt: skip
    enter(a, b)
    asked = identifier(**keys, StudyInstanceUID="")
    asked.SpecificCharacterSet = "ISO_IR 192"
    found, last = find(node(), asked)
    known = {"a": a.StudyInstanceUID, "b": b.StudyInstanceUID}
    assert last.Status == SUCCESS
    assert uids(found) == {known[name] for name in expected}


def test_a_list_of_uids(node, enter):
    datasets = [study() for _ in range(3)]
    enter(*datasets)
    wanted = [dataset.StudyInstanceUID for dataset in datasets[:2]]
    found, _ = find(node(), identifier(StudyInstanceUID=wanted))
    assert uids(found) == set(wanted)


def test_the_character_set_of_the_request_is_understood(node, enter):
    enter(study(PatientName="Müller^A"), study(PatientName="Meier^B"))
    asked = identifier(PatientName="Müller*", StudyInstanceUID="")
    asked.SpecificCharacterSet = "ISO_IR 100"
    (match,), _ = find(node(), asked)
    assert match.SpecificCharacterSet == "ISO_IR 100"
    assert str(match.PatientName) == "Müller^A"


def test_the_answer_goes_over_to_utf8_where_the_request_could_not_say_it(node, enter):
    enter(study(PatientName="Yamada^Tarou=山田^太郎"))
    asked = identifier(PatientName="Yamada*")
    asked.SpecificCharacterSet = "ISO_IR 100"
    (match,), _ = find(node(), asked)
    assert match.SpecificCharacterSet == "ISO_IR 192"
    assert str(match.PatientName) == "Yamada^Tarou=山田^太郎"


def test_only_the_keys_asked_for_come_back(node, enter):
    enter(study(PatientID="P-1"))
    (match,), _ = find(node(), identifier(PatientID="P-1", InstitutionName=""))
    assert {element.keyword for element in match} == {
        "QueryRetrieveLevel", "PatientID", "RetrieveAETitle", "InstanceAvailability",
    }  # fmt: skip


def test_date_and_time_are_one_range_when_that_was_agreed(node, enter):
    enter(study(StudyDate="20260102", StudyTime="230000"), study(StudyDate="20260103", StudyTime="010000"))
    running = node()
    asked = identifier(StudyDate="20260102-20260103", StudyTime="220000-020000", StudyInstanceUID="")
    together, _ = find(running, asked, options=bytes((1, 1, 0)))
    assert len(together) == 2
    apart, _ = find(running, asked)
    assert apart == []


def test_fuzzy_names_when_that_was_agreed(node, enter):
    enter(study(PatientName="Müller^Ännchen"))
    running = node()
    asked = identifier(PatientName="ännchen", StudyInstanceUID="")
    asked.SpecificCharacterSet = "ISO_IR 192"
    assert len(find(running, asked, options=bytes((0, 0, 1)))[0]) == 1
    assert find(running, asked)[0] == []


def test_too_many_matches_end_with_out_of_resources(node, enter):
    enter(*(study() for _ in range(4)))
    dimse = {"others_may": ["query"], "max_matches": 3}
    found, last = find(node(dimse=dimse), identifier(StudyInstanceUID=""))
    assert len(found) == 3
    assert last.Status == 0xA700
    assert "3" in last.ErrorComment


def test_a_cancelled_query_ends(node, enter, monkeypatch):
    def render_slowly(*arguments):
        time.sleep(0.1)  # or all answers are on their way before the cancel is
        return render(*arguments)

    monkeypatch.setattr(find_scp, "render", render_slowly)
    enter(*(study() for _ in range(100)))
    found, last = find(node(), identifier(StudyInstanceUID=""), cancel_after=1)
    assert last.Status == CANCELED
    assert len(found) < 100


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        (identifier("PATIENT", PatientID="P"), 0xA900, "Level"),
        (identifier("FRAME"), 0xA900, "Level"),
        (identifier("", PatientID="P"), 0xA900, "Level"),
        (identifier(StudyDate="yesterday"), 0xA900, "StudyDate"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(node, asked, status, words):
    _, last = find(node(), asked)
    assert last.Status == status
    assert words in last.ErrorComment


def test_rights_by_ae_title(node, enter):
    enter(study())
    peer = {"name": "ws", "ae_title": "WORKSTATION", "host": "127.0.0.1", "port": 1}
    running = node(dimse={}, peers=[peer | {"may": ["query"]}])
    _, last = find(running, identifier(StudyInstanceUID=""), calling="TESTER")
    assert last.Status == 0x0124
    assert "peers" in last.ErrorComment
    found, last = find(running, identifier(StudyInstanceUID=""), calling="WORKSTATION")
    assert (len(found), last.Status) == (1, SUCCESS)


def test_nothing_of_a_query_is_logged(node, enter, caplog):
    enter(study(PatientName="Canary^Zebra", PatientID="CANARY-1"))
    with caplog.at_level("DEBUG"):
        find(node(), identifier(PatientName="Canary*", PatientID="CANARY-1"))
        find(node(), identifier("FRAME", PatientName="Canary*"))
    ours = [record.getMessage() + str(record.__dict__) for record in caplog.records]
    assert not [line for line in ours if "anary" in line and "pynetdicom" not in line]
    assert not [line for line in ours if "CANARY" in line]


def test_a_matched_study_is_written_as_dicom(node, enter):
    enter(study(StudyDescription="Kopf nativ"))
    (match,), _ = find(node(), identifier(StudyDescription=""))
    buffer = io.BytesIO()
    match.save_as(buffer, implicit_vr=True, little_endian=True)
    assert b"Kopf nativ" in buffer.getvalue()
