"""dicomweb-client, a client that others wrote, against the node on a real socket."""

from io import BytesIO

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.uid import RLELossless, generate_uid

from tests.dicom_node.dimse.instances import make_image, part10

SYNTAX = "1.2.840.10008.1.2.1"


@pytest.fixture
def web(server):
    return DICOMwebClient(f"http://127.0.0.1:{server}/dicom-web")


@pytest.fixture
def series(web):
    study, series = generate_uid(), generate_uid()
    images = [
        make_image(frames=3, StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number)
        for number in (1, 2)
    ]
    answer = web.store_instances([dcmread(BytesIO(part10(image))) for image in images])
    assert len(answer.ReferencedSOPSequence) == 2
    return images


def test_searches(web, series):
    image = series[0]
    (study,) = web.search_for_studies(
        search_filters={"PatientID": image.PatientID}, fields=["StudyDescription"]
    )
    assert study["0020000D"]["Value"] == [image.StudyInstanceUID]
    (found,) = web.search_for_series(study_instance_uid=image.StudyInstanceUID)
    assert found["0020000E"]["Value"] == [image.SeriesInstanceUID]
    assert len(web.search_for_instances(image.StudyInstanceUID, image.SeriesInstanceUID)) == 2
    assert len(web.search_for_instances(limit=1)) == 1
    assert web.search_for_studies(search_filters={"PatientID": "nobody"}) == []
    assert len(web.search_for_studies(get_remaining=True, limit=1)) == 1


def test_retrieves(web, series):
    image = series[0]
    where = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
    metadata = web.retrieve_instance_metadata(*where)
    assert metadata["00280010"]["Value"] == [image.Rows]
    assert len(web.retrieve_series_metadata(*where[:2])) == 2
    assert len(web.retrieve_study_metadata(where[0])) == 2
    whole = web.retrieve_instance(*where)
    assert (whole.pixel_array == image.pixel_array).all()
    assert len(web.retrieve_series(*where[:2])) == 2
    frames = web.retrieve_instance_frames(
        *where, frame_numbers=[1, 3], media_types=("application/octet-stream",)
    )
    assert frames == [image.pixel_array[number].astype("<u2").tobytes() for number in (0, 2)]
    picture = web.retrieve_instance_rendered(*where, media_types=("image/png",))
    assert picture.startswith(b"\x89PNG")
    bulk = web.retrieve_bulkdata(
        f"{web.base_url.removesuffix('/dicom-web')}{metadata['7FE00010']['BulkDataURI']}"
    )
    assert bulk == [image.PixelData]


def test_transcoding_is_done_where_it_is_asked_for(web):
    image = make_image(frames=2, rows=16, columns=16, syntax=RLELossless)
    expected = image.pixel_array
    web.store_instances([dcmread(BytesIO(part10(image)))])
    where = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
    as_stored = web.retrieve_instance(*where, media_types=(("application/dicom", "*"),))
    assert as_stored.file_meta.TransferSyntaxUID == RLELossless
    plain = web.retrieve_instance(*where, media_types=(("application/dicom", SYNTAX),))
    assert plain.file_meta.TransferSyntaxUID == SYNTAX
    assert np.array_equal(plain.pixel_array, expected)
