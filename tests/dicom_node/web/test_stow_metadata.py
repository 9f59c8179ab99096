"""STOW-RS by metadata and bulk data; addresses are never followed."""

import json
import socket
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from tests.dicom_node.dimse.instances import BASIC_TEXT_SR, make_data_set, make_image
from tests.dicom_node.web.ohif import JSON

STUDIES = "/dicom-web/studies"
BOUNDARY = "0123456789abcdef"


def metadata_of(dataset, **changes):
    """DICOM JSON of a data set, its pixels by address."""
    content = json.loads(dataset.to_json(bulk_data_threshold=1 << 30))
    content.pop("7FE00010", None)
    return content | changes


def pixels_at(uri):
    return {"7FE00010": {"vr": "OW", "BulkDataURI": uri}}


def request(metadata, *bulk):
    """Body and headers; `bulk` are (location, content type, content)."""
    parts = [("", JSON, json.dumps(metadata).encode()), *bulk]
    body = b""
    for location, kind, content in parts:
        place = f"Content-Location: {location}\r\n" if location else ""
        body += f"\r\n--{BOUNDARY}\r\nContent-Type: {kind}\r\n{place}\r\n".encode() + content
    body += f"\r\n--{BOUNDARY}--".encode()
    kind = f'multipart/related; type="{JSON}"; boundary={BOUNDARY}'
    return {"content": body, "headers": {"Content-Type": kind, "Accept": JSON}}


def reasons(answer):
    return [item["00081197"]["Value"][0] for item in answer.json().get("00081198", {}).get("Value", [])]


def test_native_pixels(client, stored):
    image = make_image(frames=2)
    octets = f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
    answer = client.post(
        STUDIES, **request([metadata_of(image, **pixels_at("pixels"))], ("pixels", octets, image.PixelData))
    )
    assert answer.status_code == 200, answer.text
    kept = dcmread(BytesIO(stored(image.SOPInstanceUID)))
    assert kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (kept.pixel_array == image.pixel_array).all()
    assert kept.PatientName == image.PatientName


def test_compressed_frames_one_part_each(client, stored):
    image = make_image(frames=2, rows=16, columns=16, syntax=JPEGLSLossless)
    expected = image.pixel_array
    from pydicom.encaps import generate_frames

    frames = list(generate_frames(image.PixelData, number_of_frames=2))
    kind = f"image/jls; transfer-syntax={JPEGLSLossless}"
    bulk = [("p", kind, frame) for frame in frames]
    answer = client.post(STUDIES, **request([metadata_of(image, **pixels_at("p"))], *bulk))
    assert answer.status_code == 200, answer.text
    kept = dcmread(BytesIO(stored(image.SOPInstanceUID)))
    assert kept.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert np.array_equal(kept.pixel_array, expected)


def test_an_instance_without_bulk_data(client, stored):
    report = make_data_set(BASIC_TEXT_SR)
    assert client.post(STUDIES, **request([metadata_of(report)])).status_code == 200
    assert stored(report.SOPInstanceUID)


@pytest.mark.parametrize(
    "uri", ["http://169.254.169.254/latest", "file:///etc/passwd", "//evil.example/x", "../x"]
)
def test_addresses_are_never_followed(client, stored, monkeypatch, uri):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: connected.append(address))
    image = make_image()
    answer = client.post(STUDIES, **request([metadata_of(image, **pixels_at(uri))]))
    assert (answer.status_code, reasons(answer)) == (409, [0xC000])
    assert "never followed" in answer.text
    assert connected == []
    assert stored(image.SOPInstanceUID) is None


def test_one_good_and_one_without_its_pixels(client, stored):
    good, bad = make_data_set(BASIC_TEXT_SR), make_image()
    answer = client.post(STUDIES, **request([metadata_of(good), metadata_of(bad, **pixels_at("missing"))]))
    assert (answer.status_code, reasons(answer)) == (202, [0xC000])
    assert stored(good.SOPInstanceUID)
    assert stored(bad.SOPInstanceUID) is None


def test_study_in_the_address(client):
    report = make_data_set(BASIC_TEXT_SR)
    answer = client.post(f"{STUDIES}/1.2.3", **request([metadata_of(report)]))
    assert (answer.status_code, reasons(answer)) == (409, [43265])


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({}, 400),
        ([], 400),
        (7, 400),
        ([{"00080018": {"vr": "UI", "Value": ["../../x"]}}], 400),
        ([{"00080018": {"vr": "UI", "Value": [5]}}], 400),
        ([{"00080018": 5}], 400),
        ([{"00080018": {"vr": "ZZ", "Value": ["1.2"]}, "00080016": {"vr": "UI", "Value": ["1.2"]}}], 400),
    ],
)
def test_what_is_no_metadata(client, metadata, status):
    assert client.post(STUDIES, **request(metadata)).status_code == status


def test_deep_metadata_are_refused(client):
    item = {}
    for _ in range(200):
        item = {"00081140": {"vr": "SQ", "Value": [item]}}
    report = metadata_of(make_data_set(BASIC_TEXT_SR)) | item
    assert client.post(STUDIES, **request([report])).status_code == 400
