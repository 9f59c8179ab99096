"""WADO beyond OHIF: ranges, kept metadata, WADO-URI, rendering parameters, capabilities."""

from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless, generate_uid

from dicom_node.web.metadata import MIN_JOINED
from tests.dicom_node.dimse.instances import data_set_bytes, make_data_set, make_image, part10
from tests.dicom_node.web.ohif import JSON

GRAYSCALE_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
OCTETS = "application/octet-stream"


def shown(answer):
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(BytesIO(answer.content)).convert("L"))


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=0-99999999", 206, slice(None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("bytes=5-1", 416, slice(0, 0)),
        ("bytes=a-b", 200, slice(None)),
        ("items=0-1", 200, slice(None)),
        ("bytes=0-1,3-4", 200, slice(None)),
    ],
)
@pytest.mark.parametrize("form", ["/bulkdata/7FE00010", ""])
def test_ranges(client, keep, form, asked, status, part):
    image = make_image(frames=2)
    address = keep(image)
    accept = OCTETS if form else "application/dicom"
    whole = client.get(f"{address}{form}", accept).content
    answer = client.get(f"{address}{form}", accept, headers={"range": asked})
    assert answer.status_code == status
    if status != 416:
        assert answer.content == whole[part]


def test_a_range_of_another_version_is_the_whole(client, keep):
    address = keep(make_image())
    headers = {"range": "bytes=0-9", "if-range": '"other"'}
    assert client.get(f"{address}/bulkdata/7FE00010", OCTETS, headers=headers).status_code == 200


@pytest.mark.parametrize("count", [1, MIN_JOINED])
@pytest.mark.parametrize("left", [0, 7, 16, 500, -1])
def test_kept_metadata_that_a_power_cut_cut_short_are_made_anew(client, keep, tmp_path, count, left):
    study, series = generate_uid(), generate_uid()
    images = [make_image(StudyInstanceUID=study, SeriesInstanceUID=series) for _ in range(count)]
    address = keep(*images).rpartition("/instances/")[0]
    whole = client.get(f"{address}/metadata", JSON).content
    kept = list((tmp_path / "cache" / "metadata").rglob("*.json"))
    assert len(kept) == count + (count >= MIN_JOINED)
    for path in kept:
        path.write_bytes(path.read_bytes()[:left])
    for _ in range(2):
        assert client.get(f"{address}/metadata", JSON).content == whole


def test_metadata_are_rendered_once_and_never_stale(client, keep, app, monkeypatch):
    study, series = generate_uid(), generate_uid()
    images = [
        make_image(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number)
        for number in range(20)
    ]
    address = keep(*images).rsplit("/instances/", 1)[0] + "/metadata"
    first = client.get(address, JSON)
    assert len(first.json()) == 20
    from dicom_node.web import metadata

    def fail(_files, _row):
        raise AssertionError("rendered a second time")

    monkeypatch.setattr(metadata, "render_instance", fail)
    again = client.get(address, JSON)
    assert again.content == first.content
    assert client.get(address, JSON, headers={"if-none-match": first.headers["etag"]}).status_code == 304
    monkeypatch.undo()
    keep(make_image(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=99))
    later = client.get(address, JSON)
    assert len(later.json()) == 21
    assert later.headers["etag"] != first.headers["etag"]
    app.state.services.metadata.forget_study(str(study))
    assert client.get(address, JSON).content == later.content


def test_the_kept_metadata_have_a_limit(client, keep, app, tmp_path):
    for _ in range(4):
        client.get(f"{keep(make_image())}/metadata", JSON)
    cache = app.state.services.metadata
    kept = list((tmp_path / "cache" / "metadata").rglob("*.json"))
    assert len(kept) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    object.__setattr__(cache, "_max_bytes", kept[0].stat().st_size * 2)
    cache.trim()
    assert 1 <= len(list((tmp_path / "cache" / "metadata").rglob("*.json"))) <= 2


def uri(image, **more):
    names = {"requestType": "WADO", "studyUID": image.StudyInstanceUID, "seriesUID": image.SeriesInstanceUID,
             "objectUID": image.SOPInstanceUID} | more  # fmt: skip
    return "/dicom-web/wado?" + "&".join(f"{name}={value}" for name, value in names.items())


def test_wado_uri(client, keep, stored):
    image = make_image(rows=32, columns=64)
    keep(image)
    whole = client.get(uri(image, contentType="application/dicom"))
    assert whole.headers["content-type"] == "application/dicom"
    assert whole.content == stored(image.SOPInstanceUID)
    assert shown(client.get(uri(image))).shape == (32, 64)
    assert shown(client.get(uri(image, contentType="image/png", rows=16, columns=16))).shape == (8, 16)
    assert client.get(uri(image, windowCenter=100, windowWidth=50)).status_code == 200
    assert client.get(uri(image, contentType="text/html")).status_code == 406
    assert client.get(uri(image, requestType="X")).status_code == 400
    assert client.get(uri(image, objectUID="1.2.3")).status_code == 404
    assert client.get(uri(image, windowCenter="a", windowWidth=50)).status_code == 400


def test_whole_instances_without_compression(client, keep):
    image = make_image(frames=2, rows=16, columns=16, syntax=RLELossless)
    expected = image.pixel_array
    address = keep(image)
    answer = client.get(address, "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")
    plain = dcmread(BytesIO(answer.content))
    assert plain.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (plain.pixel_array == expected).all()
    as_stored = client.get(address, "application/dicom; transfer-syntax=*").content
    assert data_set_bytes(as_stored) == data_set_bytes(part10(image))
    assert client.get(address, "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90").status_code == 406


def test_rendering_parameters(client, keep):
    image = make_image(rows=64, columns=64)
    address = keep(image)
    assert shown(client.get(f"{address}/rendered?viewport=32,32", "image/png")).shape == (32, 32)
    assert shown(client.get(f"{address}/rendered?viewport=32,32,0,0,16,32", "image/png")).shape == (32, 16)
    sizes = [
        len(client.get(f"{address}/rendered?quality={quality}", "image/jpeg").content) for quality in (5, 95)
    ]
    assert sizes[0] < sizes[1]
    plain = client.get(f"{address}/rendered", "image/png").content
    assert client.get(f"{address}/rendered?annotation=patient,technique", "image/png").content != plain
    for wrong in ("viewport=a", "quality=101", "annotation=everything", "window=1", "viewport=1,2,3"):
        assert client.get(f"{address}/rendered?{wrong}", "image/png").status_code == 400


@pytest.fixture
def state(keep):
    """An image, and a presentation state that inverts it and gives a window."""
    image = make_image(rows=16, columns=16)
    keep(image)
    named = Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedImageSequence = image.SeriesInstanceUID, Sequence([named])
    window = Dataset()
    window.WindowCenter, window.WindowWidth = "100", "50"
    made = make_data_set(GRAYSCALE_STATE, StudyInstanceUID=image.StudyInstanceUID, Modality="PR")
    made.ReferencedSeriesSequence, made.SoftcopyVOILUTSequence = Sequence([series]), Sequence([window])
    made.PresentationLUTShape = "INVERSE"
    return image, made, keep(made)


def test_a_presentation_state_gives_window_and_inversion(client, keep, state):
    image, made, address = state
    of_image = keep(image)
    windowed = shown(client.get(f"{of_image}/rendered?window=100,50", "image/png"))
    assert (shown(client.get(f"{address}/rendered", "image/png")) == 255 - windowed).all()
    beside = f"{of_image}/rendered?presentationUID={made.SOPInstanceUID}"
    assert (shown(client.get(beside, "image/png")) == 255 - windowed).all()
    assert client.get(f"{of_image}/rendered?presentationUID=1.2.3", "image/png").status_code == 404


def test_capabilities(client):
    for method in ("OPTIONS", "GET"):
        listed = client.request(method, "/dicom-web/", headers={"accept": "application/json"}).json()
        paths = {resource["path"] for resource in listed["resources"]}
        assert {"/studies", "/workitems/{workitem}/state", "/wado"} <= paths
    answer = client.request("OPTIONS", "/dicom-web/", headers={"accept": "application/vnd.sun.wadl+xml"})
    assert answer.headers["content-type"] == "application/vnd.sun.wadl+xml"
    assert len(ElementTree.fromstring(answer.text)[0]) == len(paths)
