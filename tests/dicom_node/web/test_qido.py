"""QIDO-RS, request by request as OHIF 3.13.2 sends them."""

import pytest
from pydicom.uid import generate_uid

from tests.dicom_node.dimse.instances import BASIC_TEXT_SR, make_data_set, make_image
from tests.dicom_node.web.ohif import JSON, STUDY_LIST

STUDIES = "/dicom-web/studies"


@pytest.fixture
def study(keep):
    """A study of an image series of two, and a report; returns its first image."""
    uid, series = generate_uid(), generate_uid()
    first = make_image(
        StudyInstanceUID=uid,
        SeriesInstanceUID=series,
        SeriesDescription="Long axis",
        StudyDescription="Heart",
        SeriesDate="20260102",
        SeriesTime="101600",
        ReferringPhysicianName="Doe^Jane",
        PatientBirthDate="19700101",
        PatientSex="F",
    )
    second = make_image(frames=3, StudyInstanceUID=uid, SeriesInstanceUID=series, InstanceNumber=2)
    report = make_data_set(BASIC_TEXT_SR, StudyInstanceUID=uid, Modality="SR", SeriesNumber=9)
    keep(first, second, report)
    return first


@pytest.fixture
def other(keep):
    """A later study of somebody else."""
    image = make_image(
        PatientName="Świątek^Żaneta=漢字=かな", PatientID="MRN_2%", StudyDate="20260301", Modality="US",
        AccessionNumber="B-1", StudyDescription="Breast",
    )  # fmt: skip
    keep(image)
    return image


def found(client, address):
    answer = client.get(address, JSON)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == JSON
    return answer.json()


def uids(items, tag="0020000D"):
    return [item[tag]["Value"][0] for item in items]


def test_study_list(client, study, other):
    """Request 1: newest first, with every tag that the list shows."""
    items = found(client, f"{STUDIES}?{STUDY_LIST}")
    assert uids(items) == [other.StudyInstanceUID, study.StudyInstanceUID]
    item = items[1]
    assert item["00080020"] == {"vr": "DA", "Value": ["20260102"]}
    assert item["00080030"]["Value"] == ["101500"]
    assert item["00080050"]["Value"] == ["A-77"]
    assert item["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^Ännchen"}]}
    assert item["00100020"]["Value"] == ["MRN-1"]
    assert item["00100030"]["Value"] == ["19700101"]
    assert item["00081030"]["Value"] == ["Heart"]
    assert item["00080061"]["Value"] == ["CT", "SR"]
    assert item["00080090"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    assert item["00201206"] == {"vr": "IS", "Value": [2]}
    assert item["00201208"] == {"vr": "IS", "Value": [3]}
    assert items[0]["00100010"]["Value"] == [
        {"Alphabetic": "Świątek^Żaneta", "Ideographic": "漢字", "Phonetic": "かな"}
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("PatientName=*ller*", "study"),
        ("PatientName=*M%C3%BCLLER*", "study"),
        ("PatientName=nobody", ""),
        ("00100020=MRN-1", "study"),
        ("00100020=*2%25*", "other"),
        ("00100020=*MRN*", "both"),
        ("00100020=MRN%3F2%25", "other"),
        ("PatientID=MRN__", ""),
        ("AccessionNumber=A-77", "study"),
        ("StudyDescription=*reas*", "other"),
        ("ModalitiesInStudy=US,MR", "other"),
        ("ModalitiesInStudy=CT%5CSR", "study"),
        ("StudyDate=20260201-20260401", "other"),
        ("StudyDate=20260101-20260301", "both"),
        ("StudyDate=-20260115", "study"),
        ("StudyDate=20260102", "study"),
        ("fuzzymatching=true&PatientName=%C5%BCan", "other"),
        ("SomethingElse=1&00990010=x&includefield=all&00400275.00400009=y", "both"),
    ],
)
def test_filters(client, study, other, query, expected):
    wanted = {"study": [study], "other": [other], "both": [other, study], "": []}[expected]
    items = found(client, f"{STUDIES}?{query}&limit=101&offset=0")
    assert uids(items) == [image.StudyInstanceUID for image in wanted]


@pytest.mark.parametrize(("modality", "count"), [("SR", 2), ("CT%2CMR", 2), ("US", 0)])
def test_modalities_in_study_at_lower_levels_ask_about_the_study(client, study, modality, count):
    """All series of a study that has such a series, and not only the series of that modality."""
    address = f"/dicom-web/series?StudyInstanceUID={study.StudyInstanceUID}&ModalitiesInStudy={modality}"
    assert len(found(client, address)) == count
    assert bool(found(client, address.replace("/series?", "/instances?"))) is bool(count)


def test_a_study_that_is_opened(client, study, other):
    """Request 2: one, or several divided by a backslash."""
    assert uids(found(client, f"{STUDIES}?StudyInstanceUID={study.StudyInstanceUID}&{STUDY_LIST}")) == [
        study.StudyInstanceUID
    ]
    both = f"{study.StudyInstanceUID}%5C{other.StudyInstanceUID}"
    assert len(found(client, f"{STUDIES}?StudyInstanceUID={both}&{STUDY_LIST}")) == 2


def test_series_of_a_study(client, study):
    """Requests 4 and 5."""
    for fields in ("0008103E%2C00080021", "00080021%2C00080031%2C0008103E%2C00200011"):
        items = found(client, f"{STUDIES}/{study.StudyInstanceUID}/series?includefield={fields}")
        assert [item["00080060"]["Value"] for item in items] == [["CT"], ["SR"]]
        image = items[0]
        assert image["0020000E"]["Value"] == [study.SeriesInstanceUID]
        assert image["00200011"] == {"vr": "IS", "Value": [3]}
        assert image["00080021"]["Value"] == ["20260102"]
        assert image["00080031"]["Value"] == ["101600"]
        assert image["00201209"]["Value"] == [2]
        assert image["0008103E"]["Value"] == ["Long axis"]


def test_one_series_asked_for(client, study):
    address = f"{STUDIES}/{study.StudyInstanceUID}/series?SeriesInstanceUID={study.SeriesInstanceUID}"
    assert uids(found(client, address), "0020000E") == [study.SeriesInstanceUID]


def test_an_instance_for_the_thumbnail(client, study):
    """Request 10, after a failed thumbnail of a series."""
    series = f"{STUDIES}/{study.StudyInstanceUID}/series/{study.SeriesInstanceUID}"
    (item,) = found(client, f"{series}/instances?limit=1&includefield=00080018")
    assert item["00080018"]["Value"] == [study.SOPInstanceUID]
    assert item["00280010"]["Value"] == [8]


def test_relational_forms(client, study, other):
    assert len(found(client, "/dicom-web/series")) == 3
    assert len(found(client, "/dicom-web/instances")) == 4
    assert len(found(client, f"{STUDIES}/{study.StudyInstanceUID}/instances")) == 3
    assert len(found(client, "/dicom-web/series?Modality=US")) == 1
    assert len(found(client, f"/dicom-web/instances?SOPClassUID={BASIC_TEXT_SR}")) == 1
    assert len(found(client, f"/dicom-web/instances?PatientID={study.PatientID}&InstanceNumber=2")) == 1


def test_pages(client, study, other):
    first = found(client, f"{STUDIES}?limit=1")
    second = found(client, f"{STUDIES}?limit=1&offset=1")
    assert uids(first + second) == [other.StudyInstanceUID, study.StudyInstanceUID]
    assert found(client, f"{STUDIES}?limit=1&offset=2") == []
    assert len(found(client, f"{STUDIES}?limit=1000000000&offset=0")) == 2
    assert found(client, f"{STUDIES}?offset=1000000000000") == []


def test_nothing_stored_is_an_empty_list(client):
    assert found(client, STUDIES) == []


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=1e9", "StudyDate=yesterday", "Rows=many"])
def test_what_cannot_be_read_is_400_with_a_sentence(client, study, query):
    level = "instances" if query.startswith("Rows") else "studies"
    answer = client.get(f"/dicom-web/{level}?{query}", JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (JSON, 200),
        ("application/json", 200),
        ("*/*", 200),
        (f"{JSON}, multipart/related; type=application/octet-stream; transfer-syntax=*", 200),
        ("application/dicom+xml", 406),
        ('multipart/related; type="application/dicom+xml"', 406),
        ("(" * 10, 400),
    ],
)
def test_media_types(client, study, accept, status):
    assert client.get(STUDIES, accept).status_code == status


def test_an_unknown_study_is_404_and_a_bad_uid_400(client, study):
    assert client.get(f"{STUDIES}/1.2.3/series", JSON).status_code == 404
    assert client.get(f"{STUDIES}/abc/series", JSON).status_code == 400
    assert client.get(f"{STUDIES}/{'1' * 65}/series", JSON).status_code == 400


def answer_of(client, address):
    answer = client.get(address, JSON)
    assert answer.status_code == 200, answer.text
    return answer, [value for name, value in answer.headers.multi_items() if name == "warning"]


def test_what_is_left_out_is_said_and_how_many_there_are(client, study, other):
    answer, warnings = answer_of(client, f"{STUDIES}?limit=1")
    assert answer.headers["x-total-count"] == "2"
    assert warnings == ['299 dicom-node: "There are 1 additional results that can be requested"']
    answer, warnings = answer_of(client, f"{STUDIES}?limit=1&offset=1")
    assert (answer.headers["x-total-count"], warnings) == ("2", [])
    answer, warnings = answer_of(client, f"{STUDIES}?limit=5&offset=7")
    assert (answer.json(), answer.headers["x-total-count"]) == ([], "2")
    answer, _warnings = answer_of(client, f"/dicom-web/instances?limit=0&PatientID={study.PatientID}")
    assert (answer.json(), answer.headers["x-total-count"]) == ([], "3")


def test_what_was_not_used_is_named_without_its_value(client, study):
    _answer, warnings = answer_of(
        client, f"{STUDIES}?KVP=120&x%0d%0aSet-Cookie:y=1&Rows=8&PatientID={study.PatientID}"
    )
    assert len(warnings) == 1
    assert "KVP" in warnings[0]
    assert "Rows" in warnings[0]  # an attribute of instances, not of studies
    assert "120" not in warnings[0]
    assert "Cookie" not in warnings[0]


@pytest.mark.parametrize("field", ["PixelSpacing", "00280030", "all"])
def test_attributes_beyond_the_index_when_they_are_asked_for(client, study, field):
    series = f"{STUDIES}/{study.StudyInstanceUID}/series/{study.SeriesInstanceUID}"
    without = found(client, f"{series}/instances")[0]
    assert "00280030" not in without
    item = found(client, f"{series}/instances?includefield={field}")[0]
    assert item["00280030"]["Value"] == [0.5, 0.25]
    assert set(without) <= set(item)


def test_all_means_the_attributes_of_the_level(client, study):
    (item,) = found(client, f"{STUDIES}?includefield=all&StudyInstanceUID={study.StudyInstanceUID}")
    assert "00280030" not in item
    assert "00080060" not in item
    assert item["00100020"]["Value"] == [study.PatientID]
    series = found(client, f"{STUDIES}/{study.StudyInstanceUID}/series?includefield=all")[0]
    assert "00080060" in series
    assert "00280030" not in series


def test_the_same_search_again_with_other_values_is_another_answer(client, study, other):
    """Searches with exact values share one compiled statement."""
    for image in (study, other, study):
        assert uids(found(client, f"{STUDIES}?PatientID={image.PatientID.replace('%', '%25')}")) == [
            image.StudyInstanceUID
        ]
