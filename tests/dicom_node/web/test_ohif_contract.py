"""Every request that OHIF 3.13.2 makes, one row each: status, headers, and bytes as its clients read them."""

import pytest
from pydicom.uid import RLELossless, generate_uid

from tests.dicom_node.dimse.instances import (
    BASIC_TEXT_SR,
    ENCAPSULATED_PDF,
    make_bits,
    make_data_set,
    make_image,
    part10,
)
from tests.dicom_node.web.ohif import (
    FRAMES,
    FRAMES_QUOTED,
    HEADER_WITHIN,
    JSON,
    PART10,
    STUDY_LIST,
    decode,
    extract_frame,
    upload,
)

MERGED = f"{JSON}, multipart/related; type=application/octet-stream; transfer-syntax=*"
EVERY_FILTER = (
    "PatientName=*%C3%BCll*&00100020=*{mrn}*&AccessionNumber=*&StudyDescription=*"
    "&ModalitiesInStudy=CT,MR&StudyDate=20200101-20301231"
)
LAZY_LOAD = "{s}/series?includefield=00080021%2C00080031%2C0008103E%2C00200011"
OCTETS = 'multipart/related; type="application/octet-stream"'
LIST_TAGS = ("0020000D", "00080020", "00080030", "00080050", "00100010", "00100020", "00080061", "00201208")
SERIES_TAGS = ("0020000E", "00080060", "00200011", "00201209", "0008103E")


@pytest.fixture
def places(keep):
    """Addresses by the names that the rows use."""
    study, series = generate_uid(), generate_uid()
    image = make_image(frames=3, StudyInstanceUID=study, SeriesInstanceUID=series, SeriesDescription="Axial")
    rle = make_image(frames=2, rows=16, columns=16, syntax=RLELossless, StudyInstanceUID=study)
    bits, _mask = make_bits(frames=3, rows=5, columns=5)
    bits.StudyInstanceUID = study
    report = make_data_set(BASIC_TEXT_SR, StudyInstanceUID=study, Modality="SR")
    pdf = make_data_set(ENCAPSULATED_PDF, StudyInstanceUID=study, EncapsulatedDocument=b"%PDF-1.7 " * 4000)
    pdf.MIMETypeOfEncapsulatedDocument = "application/pdf"
    found = {name: keep(each) for name, each in
             (("i", image), ("rle", rle), ("seg", bits), ("sr", report), ("pdf", pdf))}  # fmt: skip
    return found | {
        "s": f"/dicom-web/studies/{study}",
        "se": found["i"].rsplit("/instances/", 1)[0],
        "uid": str(study),
        "mrn": str(image.PatientID),
    }


# row of the table, address, Accept, status, media type, check of the content
ROWS = [
    ("1 study list", f"/dicom-web/studies?{STUDY_LIST}", JSON, JSON, "list"),
    ("1 with every filter", f"/dicom-web/studies?{EVERY_FILTER}&{STUDY_LIST}", JSON, JSON, "list"),
    ("2 study opened", f"/dicom-web/studies?StudyInstanceUID={{uid}}&{STUDY_LIST}", JSON, JSON, "list"),
    ("3 priors", f"/dicom-web/studies?00100020={{mrn}}&{STUDY_LIST}", JSON, JSON, "list"),
    ("4 series of a row", "{s}/series?includefield=0008103E%2C00080021", JSON, JSON, "series"),
    ("5 lazy load", LAZY_LOAD, JSON, JSON, "series"),
    ("6 series metadata", "{se}/metadata", JSON, JSON, "metadata"),
    ("6 merged Accept of older builds", "{se}/metadata", MERGED, JSON, "metadata"),
    ("7 study metadata", "{s}/metadata", JSON, JSON, "metadata"),
    ("8 frame", "{i}/frames/2", FRAMES, "multipart/related", "frame"),
    ("8 frame, quoted", "{i}/frames/2", FRAMES_QUOTED, "multipart/related", "frame"),
    ("8 frame as configured", "{rle}/frames/2", FRAMES, "multipart/related", "frame"),
    ("8 frame, single part", "{i}/frames/1", "application/octet-stream; transfer-syntax=*",
     "application/octet-stream", "bytes"),
    ("8 frame of one bit", "{seg}/frames/2", FRAMES, "multipart/related", "frame"),
    ("10 thumbnail of a study", "{s}/thumbnail?viewport=256,256", "image/jpeg", "image/jpeg", "jpeg"),
    ("10 thumbnail of a series", "{se}/thumbnail?viewport=256,256", "image/jpeg", "image/jpeg", "jpeg"),
    ("10 thumbnail of an instance", "{i}/thumbnail?viewport=256,256", "image/jpeg", "image/jpeg", "jpeg"),
    ("10 after an error", "{se}/instances?limit=1&includefield=00080018", JSON, JSON, "instances"),
    ("10 accept in the address", "{i}/rendered?accept=image/jpeg", "*/*", "image/jpeg", "jpeg"),
    ("10 accept in the address wins", "{i}/thumbnail?accept=image/jpeg", JSON, "image/jpeg", "jpeg"),
    ("11 bulk data, no Accept", "{pdf}/bulkdata/00420011", "", "application/octet-stream", "bytes"),
    ("11 bulk data, multipart", "{pdf}/bulkdata/00420011", OCTETS, "multipart/related", "parts"),
    ("11 bulk data, staticWado", "{pdf}/bulkdata/00420011", "*/*", "application/octet-stream", "bytes"),
    ("12 PDF", "{pdf}/rendered", "", "application/pdf", "bytes"),
    ("12 PDF by its address", "{pdf}/rendered?accept=application/pdf", "*/*", "application/pdf", "bytes"),
    ("13 SEG whole", "{seg}", PART10, "multipart/related", "part 10"),
    ("13 SR whole", "{sr}", PART10, "multipart/related", "part 10"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "address", "accept", "media_type", "content"), ROWS, ids=[row[0] for row in ROWS]
)
def test_row(client, places, row, address, accept, media_type, content):
    answer = client.get(address.format(**places), accept or None)
    assert answer.status_code in (200, 206), answer.text
    assert answer.headers["content-type"].split(";")[0] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-encoding" not in answer.headers
    CHECKS[content](answer)


def has_tags(tags):
    def check(answer):
        items = answer.json()
        assert items
        for item in items:
            assert set(tags) <= set(item), set(tags) - set(item)

    return check


def is_metadata(answer):
    for item in answer.json():
        assert {"00080016", "00080018", "0020000D", "0020000E"} <= set(item)
        assert "NaN" not in answer.text
    assert answer.headers["etag"]
    assert "private" in answer.headers["cache-control"]


def is_frame(answer):
    """cornerstone: CRLF, the literal Content-Type with the transfer syntax, the end within 1000 bytes."""
    assert answer.content.startswith(b"--")
    content_type, pixels = extract_frame(answer.content)
    assert content_type.startswith("application/octet-stream; transfer-syntax=1.2.840.10008.1.2")
    assert pixels
    assert decode(answer.content) == [pixels]
    boundary = answer.headers["content-type"].partition("boundary=")[2].strip('"')
    assert answer.content.split(b"\r\n")[0] == f"--{boundary}".encode()
    assert answer.content.rstrip(b"\r\n").endswith(f"--{boundary}--".encode())
    assert answer.content.index(b"\r\n\r\n") < HEADER_WITHIN


def is_part10(answer):
    (part,) = decode(answer.content)
    assert part[128:132] == b"DICM"
    assert int(answer.headers["content-length"]) == len(answer.content)


CHECKS = {
    "list": has_tags(LIST_TAGS),
    "series": has_tags(SERIES_TAGS),
    "instances": has_tags(("00080018",)),
    "metadata": is_metadata,
    "frame": is_frame,
    "bytes": lambda answer: bytes(answer.content) or pytest.fail("empty"),
    "parts": lambda answer: decode(answer.content) or pytest.fail("no part"),
    "jpeg": lambda answer: answer.content.startswith(b"\xff\xd8") or pytest.fail("no JPEG"),
    "part 10": is_part10,
}


def test_row_9_a_range_of_a_frame(client, places):
    whole = client.get(f"{places['i']}/frames/1", "application/octet-stream; transfer-syntax=*").content
    answer = client.get(
        f"{places['i']}/frames/1",
        "application/octet-stream; transfer-syntax=*",
        headers={"range": "bytes=10-19"},
    )
    assert (answer.status_code, answer.content) == (206, whole[10:20])
    assert answer.headers["content-range"] == f"bytes 10-19/{len(whole)}"


def test_row_14_saving(client):
    answer = client.post("/dicom-web/studies", **upload(part10(make_data_set(BASIC_TEXT_SR))))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == JSON


def test_row_16_the_configuration(client):
    answer = client.get("/app-config.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-cache"
