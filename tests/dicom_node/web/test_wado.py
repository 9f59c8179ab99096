"""WADO-RS as OHIF 3.13.2 asks for it, read as its clients read it."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from dicom_node.web.stored import PIECE_BYTES
from tests.damage import HARM, harm
from tests.dicom_node.dimse.instances import (
    BASIC_TEXT_SR,
    ENCAPSULATED_PDF,
    make_bits,
    make_data_set,
    make_image,
    part10,
)
from tests.dicom_node.web.ohif import FRAMES, FRAMES_QUOTED, JSON, PART10, decode, extract_frame
from tests.doors import make_receiver

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
DECODED = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'


def series_of(address):
    return address.rsplit("/instances/", 1)[0]


def study_of(address):
    return address.split("/series/")[0]


@pytest.mark.parametrize("accept", [FRAMES, FRAMES_QUOTED])
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_native_frames(client, keep, syntax, accept):
    """Request 8."""
    image = make_image(frames=3, syntax=syntax)
    address = keep(image)
    for number, expected in enumerate(image.pixel_array, start=1):
        answer = client.get(f"{address}/frames/{number}", accept)
        assert answer.status_code == 200
        content_type, pixels = extract_frame(answer.content)
        assert content_type == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
        assert pixels == expected.astype("<u2").tobytes()
        assert decode(answer.content) == [pixels]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=lambda syntax: syntax.name)
def test_compressed_frames_as_stored_and_decoded(client, keep, syntax):
    image = make_image(frames=3, rows=16, columns=16, syntax=syntax)
    address, expected = keep(image), image.pixel_array
    for number in (1, 2, 3):
        content_type, frame = extract_frame(client.get(f"{address}/frames/{number}", FRAMES).content)
        assert content_type == f"application/octet-stream; transfer-syntax={syntax}"
        assert (decoded_alone(image, frame) == expected[number - 1]).all()
        content_type, frame = extract_frame(client.get(f"{address}/frames/{number}", DECODED).content)
        assert content_type.endswith(f"transfer-syntax={ExplicitVRLittleEndian}")
        assert frame == expected[number - 1].astype("<u2").tobytes()


def decoded_alone(image, frame):
    from pydicom.encaps import encapsulate

    alone = Dataset()
    alone.update(image)
    alone.file_meta = image.file_meta
    alone.NumberOfFrames = 1
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB"
    alone["PixelData"].is_undefined_length = True
    return alone.pixel_array


def test_big_endian_frames_are_given_in_little_endian(client, keep):
    image = make_image(frames=2)
    expected = image.pixel_array.copy()
    image.PixelData = expected.astype(">u2").tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    address = keep(image)
    _type, frame = extract_frame(client.get(f"{address}/frames/2", DECODED).content)
    assert frame == expected[1].astype("<u2").tobytes()


def test_several_frames_at_once(client, keep):
    image = make_image(frames=4)
    address = keep(image)
    answer = client.get(f"{address}/frames/4,1,2", FRAMES)
    frames = image.pixel_array.astype("<u2")
    assert decode(answer.content) == [frames[index].tobytes() for index in (3, 0, 1)]


def test_frames_of_one_bit_begin_on_a_byte(client, keep):
    """A stored 1-bit stream does not; a client gets each frame by itself."""
    segmentation, mask = make_bits(frames=3, rows=5, columns=5)
    address = keep(segmentation)
    for number in (1, 2, 3):
        _type, frame = extract_frame(client.get(f"{address}/frames/{number}", FRAMES).content)
        bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:25]
        assert len(frame) == 4
        assert (bits.reshape(5, 5) == mask[number - 1]).all()


def test_a_single_frame_without_multipart(client, keep):
    image = make_image()
    answer = client.get(f"{keep(image)}/frames/1", "application/octet-stream; transfer-syntax=*")
    assert answer.content == image.PixelData
    assert answer.headers["content-type"] == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"


@pytest.mark.parametrize(
    ("frames", "status"),
    [("0", 400), ("4", 404), ("1,9", 404), ("x", 400), ("1,,2", 400), ("-1", 400), ("9" * 30, 400)],
)
def test_frames_that_are_not_there(client, keep, frames, status):
    answer = client.get(f"{keep(make_image(frames=3))}/frames/{frames}", FRAMES)
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize("accept", ["image/jpeg", f"{FRAMES[:-1]}1.2.840.10008.1.2.4.50", "text/html"])
def test_frames_in_other_forms_are_406(client, keep, accept):
    assert client.get(f"{keep(make_image())}/frames/1", accept).status_code == 406


def test_no_pixels_is_404(client, keep):
    assert client.get(f"{keep(make_data_set(BASIC_TEXT_SR))}/frames/1", FRAMES).status_code == 404


def test_frames_that_cannot_be_decoded_are_406_or_404_but_stored_ones_are_given(client, keep):
    image = make_image(syntax=RLELossless)
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # HTJ2K, and not even that
    address = keep(image)
    assert client.get(f"{address}/frames/1", FRAMES).status_code == 200
    assert client.get(f"{address}/frames/1", DECODED).status_code == 406


def test_an_absurd_size_is_refused_before_anything_is_read(client, keep):
    image = make_image()
    image.Rows = image.Columns = 65535
    image.NumberOfFrames = 2**31 - 1
    address = keep(image)
    assert client.get(f"{address}/frames/1", FRAMES).status_code in (404, 406)
    assert client.get(f"{address}/frames/2147483647", FRAMES).status_code in (404, 406)
    assert client.get(f"{address}/rendered", "image/jpeg").status_code in (404, 406)


def test_metadata_of_a_series(client, keep):
    """Request 6: complete, numbers as numbers, pixels by address."""
    uid, series = generate_uid(), generate_uid()
    images = [
        make_image(
            StudyInstanceUID=uid, SeriesInstanceUID=series, InstanceNumber=number,
            WindowCenter=["40", "-600"], WindowWidth=["400.5", "1500"], ImagePositionPatient=[0, -1.5, 2.25],
        )
        for number in (2, 1)
    ]  # fmt: skip
    address = keep(*images)

    answer = client.get(f"{series_of(address)}/metadata", JSON)

    assert answer.headers["content-type"] == JSON
    first, second = answer.json()
    assert [first["00200013"]["Value"], second["00200013"]["Value"]] == [[1], [2]]
    assert first["00280030"] == {"vr": "DS", "Value": [0.5, 0.25]}
    assert first["00281051"]["Value"] == [400.5, 1500.0]
    assert first["00200032"]["Value"] == [0.0, -1.5, 2.25]
    assert first["00100010"]["Value"] == [{"Alphabetic": "Müller^Ännchen"}]
    assert first["00280010"] == {"vr": "US", "Value": [8]}
    assert first["00080005"]["Value"] == ["ISO_IR 192"]
    assert first["7FE00010"]["vr"] == "OW"
    assert first["7FE00010"]["BulkDataURI"].startswith("/dicom-web/studies/")
    assert "Value" not in first["7FE00010"]
    assert not [tag for tag in first if tag.startswith("0002")]


@pytest.mark.parametrize("accept", [JSON, f"{JSON}, {FRAMES}", "*/*"])
@pytest.mark.parametrize("level", ["", "series", "study"])
def test_metadata_of_every_level(client, keep, level, accept):
    address = keep(make_image())
    base = {"": address, "series": series_of(address), "study": study_of(address)}[level]
    assert len(client.get(f"{base}/metadata", accept).json()) == 1


def test_metadata_says_the_same_as_pydicom(client, keep):
    image = make_image()
    image.ReferencedStudySequence = [make_data_set(), Dataset()]
    image.AcquisitionMatrix = [0, 128, 64, 0]
    image.FrameIncrementPointer = 0x00181063
    image.add_new(0x00091010, "UN", b"\x01\x02")
    image.add_new(0x00090010, "LO", "OURS")
    image.AccessionNumber = ""
    (item,) = client.get(f"{keep(image)}/metadata", JSON).json()
    for tag in ("00080050", "00180050", "00280010", "00181310", "00280009"):
        assert item.get(tag) == json.loads(image.to_json(suppress_invalid_tags=True)).get(tag)
    assert item["00091010"] == {"vr": "UN", "InlineBinary": "AQI="}
    nested = item["00081110"]["Value"]
    assert nested[0]["00100020"]["Value"] == ["MRN-1"]
    assert nested[1] == {}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_values_that_are_no_numbers_never_break_the_json(client, keep):
    image = make_image(ImageComments="x" * 100, DoubleFloatRealWorldValueFirstValueMapped=float("nan"))
    image.RealWorldValueMappingSequence = [Dataset()]
    image.RealWorldValueMappingSequence[0].RealWorldValueIntercept = float("inf")
    answer = client.get(f"{keep(image)}/metadata", JSON)
    assert "NaN" not in answer.text
    assert "Infinity" not in answer.text
    (item,) = answer.json()
    assert item["00204000"]["Value"] == ["x" * 100]


def test_large_values_go_by_address_and_come_back(client, keep):
    """Request 11."""
    content, table = bytes(range(256)) * 1000, b"\x07\x00" * 20_000
    document = make_data_set(ENCAPSULATED_PDF, EncapsulatedDocument=content)
    document.RedPaletteColorLookupTableData = table
    item_with_bulk = Dataset()
    item_with_bulk.EncapsulatedDocument = content
    document.ReferencedStudySequence = [Dataset(), item_with_bulk]
    address = keep(document)

    (item,) = client.get(f"{address}/metadata", JSON).json()

    for element in (item["00420011"], item["00081110"]["Value"][1]["00420011"]):
        answer = client.get(element["BulkDataURI"])
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.content == content
    multipart = client.get(
        item["00281201"]["BulkDataURI"], 'multipart/related; type="application/octet-stream"'
    )
    assert decode(multipart.content) == [table]


def test_pixels_as_bulk_data(client, keep):
    image = make_image(frames=2)
    (item,) = client.get(f"{keep(image)}/metadata", JSON).json()
    assert client.get(item["7FE00010"]["BulkDataURI"]).content == image.PixelData


@pytest.mark.parametrize(
    "path", ["00100010/x/00100010", "zz", "00420011/0", "00081110/7/00100010", "FFFFFFFFF"]
)
def test_bulk_data_that_is_not_there_is_404(client, keep, path):
    image = make_image(ReferencedStudySequence=[Dataset()])
    assert client.get(f"{keep(image)}/bulkdata/{path}").status_code == 404


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_metadata_in_every_encoding(client, keep, syntax):
    image = make_image(syntax=syntax, PixelPaddingValue=63)
    (item,) = client.get(f"{keep(image)}/metadata", JSON).json()
    assert item["00100020"]["Value"] == ["MRN-1"]
    assert item["00280120"]["Value"] == [63]
    assert "BulkDataURI" in item["7FE00010"]


def test_an_instance_for_the_segmentation_reader(client, keep, stored):
    """Request 13."""
    segmentation, mask = make_bits()
    address = keep(segmentation)
    answer = client.get(address, PART10)
    assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom"')
    (file,) = decode(answer.content)
    assert file == stored(segmentation.SOPInstanceUID)
    assert (pixel_array(BytesIO(file)) == mask).all()


def test_a_bare_instance(client, keep, stored):
    image = make_image(rows=300, columns=300)
    answer = client.get(keep(image), "application/dicom")
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == stored(image.SOPInstanceUID)


def test_a_whole_series_and_study(client, keep):
    uid, series = generate_uid(), generate_uid()
    images = [make_image(StudyInstanceUID=uid, SeriesInstanceUID=series) for _image in range(3)]
    report = make_data_set(BASIC_TEXT_SR, StudyInstanceUID=uid)
    address = keep(*images, report)
    for base, expected in ((series_of(address), images), (study_of(address), [*images, report])):
        answer = client.get(base, PART10)
        assert int(answer.headers["content-length"]) == len(answer.content)
        found = {dcmread(BytesIO(file)).SOPInstanceUID for file in decode(answer.content)}
        assert found == {dataset.SOPInstanceUID for dataset in expected}


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/dicom; transfer-syntax=*", 200),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.1", 200),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("application/zip", 406),
    ],
)
def test_media_types_of_an_instance(client, keep, accept, status):
    assert client.get(keep(make_image()), accept).status_code == status


@pytest.mark.parametrize(
    "kind", ["", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata/7FE00010"]
)
def test_what_is_not_stored_is_404_with_a_sentence(client, keep, kind):
    address = keep(make_image())
    other_study = address.replace(address.split("/")[3], generate_uid(), 1)
    other_instance = f"{series_of(address)}/instances/{generate_uid()}"
    for wrong in (other_study, other_instance):
        answer = client.get(wrong + kind)
        assert answer.status_code == 404
        assert answer.json()["advice"]


def test_a_file_that_was_lost_is_404_not_half_an_answer(client, keep, files_root):
    image = make_image()
    other = make_image(StudyInstanceUID=image.StudyInstanceUID, SeriesInstanceUID=image.SeriesInstanceUID)
    address = keep(image, other)
    min(files_root.rglob("*.dcm")).unlink()
    for kind in ("", "/metadata"):
        answer = client.get(series_of(address) + kind)
        assert answer.status_code == 404
        assert "fsck" in answer.json()["error"]


def test_an_answer_is_not_sent_twice(client, keep):
    address = keep(make_image())
    for kind, accept in (("", PART10), ("/metadata", JSON), ("/frames/1", FRAMES)):
        first = client.get(address + kind, accept)
        assert first.headers["cache-control"].startswith("private")
        again = client.get(address + kind, accept, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def picture(answer):
    return Image.open(BytesIO(answer.content))


@pytest.mark.parametrize("level", ["", "series", "study"])
def test_a_thumbnail_as_ohif_fetches_it(client, keep, level):
    """Request 10, by fetch."""
    address = keep(make_image(frames=3, rows=600, columns=300), make_data_set(BASIC_TEXT_SR))
    base = {"": address, "series": series_of(address), "study": study_of(address)}[level]
    answer = client.get(f"{base}/thumbnail?viewport=256,256", "image/jpeg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert picture(answer).size == (128, 256)


def test_the_accept_parameter_wins(client, keep):
    address = keep(make_image())
    assert (
        client.get(f"{address}/rendered?accept=image/jpeg", "text/html").headers["content-type"]
        == "image/jpeg"
    )
    assert client.get(f"{address}/rendered", "image/png").headers["content-type"] == "image/png"
    assert client.get(f"{address}/rendered", "text/html").status_code == 406


def test_rendered_through_a_window(client, keep):
    image = make_image(rows=16, columns=16)  # stored 0..255, that is -1024..-769 HU
    address = keep(image)
    narrow = client.get(f"{address}/rendered?window=-1000,10,linear", "image/png")
    pixels = np.asarray(picture(narrow).convert("L"))
    assert (pixels[0, 0], pixels[-1, -1]) == (0, 255)
    assert client.get(f"{address}/rendered?window=1,2,3", "image/png").status_code == 400
    assert client.get(f"{address}/rendered?viewport=big", "image/png").status_code == 400


def test_one_frame_rendered(client, keep):
    address = keep(make_image(frames=3))
    assert client.get(f"{address}/frames/3/rendered", "image/png").status_code == 200
    assert client.get(f"{address}/frames/4/rendered", "image/png").status_code == 404


def test_a_mask_is_rendered_in_black_and_white(client, keep):
    segmentation, mask = make_bits()
    answer = client.get(f"{keep(segmentation)}/frames/2/rendered", "image/png")
    assert (np.asarray(picture(answer).convert("L")) == mask[1] * 255).all()


def test_a_document_is_rendered_as_itself(client, keep):
    """Request 12."""
    document = make_data_set(ENCAPSULATED_PDF, EncapsulatedDocument=b"%PDF-1.4 ")
    answer = client.get(f"{keep(document)}/rendered")
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.content.startswith(b"%PDF-1.4")


def test_a_report_has_no_picture(client, keep):
    assert client.get(f"{keep(make_data_set(BASIC_TEXT_SR))}/thumbnail", "image/jpeg").status_code == 404


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frames_of_real_files_are_what_pydicom_decodes(client, database, files_root, shared_data, keep):
    from storage.index import Origin

    receiver = make_receiver(database, files_root)
    folder = shared_data / "data" / "dicom"
    names = [
        "cornerstone3D/testImages/CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm",
        "cornerstone3D/testImages/TestPattern_Palette.dcm",
        "cornerstone3D/testImages/TestPattern_RGB.dcm",
        "cornerstone3D/testImages/CT1_J2KR",
        "highdicom/test_files/seg_image_ct_binary_overlap.dcm",
        "highdicom/test_files/seg_image_sm_dots.dcm",
        "highdicom/test_files/dx_image.dcm",
        "dcm_qa_ct/In/GE/01.dcm",
    ]
    for name in names:
        path = folder / name
        received = receiver.receive_part10([path.read_bytes()], Origin("IMPORT", "test"))
        address = (
            f"/dicom-web/studies/{received.study_instance_uid}/series/{received.series_instance_uid}"
            f"/instances/{received.sop_instance_uid}"
        )
        expected = pixel_array(path, index=0, raw=True)
        _type, frame = extract_frame(client.get(f"{address}/frames/1", DECODED).content)
        if dcmread(path, stop_before_pixels=True).BitsAllocated == 1:
            bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
            assert (bits[: expected.size].reshape(expected.shape) == expected).all(), name
        else:
            assert frame.rstrip(b"\0") == expected.tobytes().rstrip(b"\0"), name
        (item,) = client.get(f"{address}/metadata", JSON).json()
        assert item["00080018"]["Value"] == [received.sop_instance_uid]
        assert client.get(f"{address}/thumbnail?viewport=256,256", "image/jpeg").status_code == 200, name


def test_what_was_stored_is_what_is_given(client, keep):
    image = make_image()
    (file,) = decode(client.get(keep(image), PART10).content)
    assert dcmread(BytesIO(file)).PixelData == dcmread(BytesIO(part10(image))).PixelData


@pytest.mark.parametrize("kind", HARM)
def test_a_damaged_file_is_said_and_not_given(client, keep, files_root, kind):
    address = keep(make_image())
    (path,) = (files_root / "objects").rglob("*.dcm")
    harm(path, kind)
    for asked in ("", "/frames/1", "/metadata", "/rendered"):
        answer = client.get(address + asked)
        if kind == "one other bit at the end" and asked:
            continue  # only a digest of the whole tells, which costs too much for a part: fsck finds it
        if kind == "other bits in the meta information" and asked == "/metadata":
            continue  # the data set behind it is whole
        assert answer.status_code == 500, (asked, answer.text)
        assert "fsck" in answer.json()["advice"]


def test_a_long_file_with_a_damaged_end_breaks_off(client, keep, files_root):
    """The status has gone out by then, so the connection must not end as if all were well."""
    address = keep(make_image(frames=9, rows=512, columns=512))
    (path,) = (files_root / "objects").rglob("*.dcm")
    assert path.stat().st_size > 3 * PIECE_BYTES
    harm(path, "one other bit at the end")
    with pytest.raises(RuntimeError, match="response already started"):
        client.get(address, PART10)
