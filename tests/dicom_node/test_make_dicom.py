import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from dicom_node.frames import FrameLimits, load_series
from dicom_node.make_dicom import SOP_CLASSES, BadImage, Patient, SeriesDetails, build_series, make_dicom
from tests import builders

GREY = np.random.default_rng(1).integers(0, 256, (33, 45), dtype=np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (33, 45, 3), dtype=np.uint8)


@pytest.mark.parametrize("modality", SOP_CLASSES)
@pytest.mark.parametrize("body_part", ["BREAST", "HEART", ""])
def test_every_modality_is_valid(tmp_path: Path, modality: str, body_part: str) -> None:
    spacing = (0.3, 0.2) if body_part == "BREAST" else None
    details = SeriesDetails(modality=modality, body_part=body_part, spacing_mm=spacing)
    for image in (GREY, COLOUR):
        (dataset,) = build_series([image], details)
        assert builders.standard_errors(tmp_path, dataset) == []
        assert dataset.SOPClassUID == SOP_CLASSES[modality]


@pytest.mark.parametrize("modality", SOP_CLASSES)
def test_the_node_shows_what_was_put_in(tmp_path: Path, modality: str) -> None:
    series = builders.as_loaded(
        tmp_path, build_series([GREY], SeriesDetails(modality=modality, body_part="HAND"))
    )
    assert (series.frames[0].image == GREY[..., np.newaxis]).all()


def test_colour_is_kept_where_the_modality_has_colour(tmp_path: Path) -> None:
    for modality in ("US", "ES", "XC"):
        series = builders.as_loaded(
            tmp_path / modality, build_series([COLOUR], SeriesDetails(modality=modality))
        )
        assert (series.frames[0].image == COLOUR).all()


def test_files_become_one_series(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"slice {number}.png")
        Image.fromarray(GREY + np.uint8(number)).save(paths[-1])
    details = SeriesDetails(
        modality="mr", body_part="heart", patient=Patient("Doe^Jane", "X1"),
        spacing_mm=(1.5, 1.2), slice_spacing_mm=8.0,
        when=datetime.datetime(2026, 3, 4, 5, 6, 7),  # noqa: DTZ001
    )  # fmt: skip
    written = make_dicom(paths, tmp_path / "out", details)
    datasets = [dcmread(path) for path in written]
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 3
    assert [float(dataset.ImagePositionPatient[2]) for dataset in datasets] == [0, 8, 16]
    assert (datasets[0].PatientName, datasets[0].PatientID) == ("Doe^Jane", "X1")
    assert (datasets[0].StudyDate, datasets[0].StudyTime) == ("20260304", "050607")
    assert load_series(written, FrameLimits()).frames[0].spacing_mm == (1.5, 1.2)


def test_the_same_images_give_the_same_bytes() -> None:
    details = SeriesDetails(modality="US")
    first, second = (builders.part10(build_series([GREY], details)[0]) for _ in range(2))
    other = builders.part10(build_series([GREY[::-1]], details)[0])
    assert first == second
    assert first != other


def test_jpeg_and_sixteen_bit_png_are_read(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "grey.png")
    a, b, grey = make_dicom(
        [tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "grey.png"],
        tmp_path / "out",
        SeriesDetails(modality="US"),
    )
    assert dcmread(a).PhotometricInterpretation == "RGB"
    assert dcmread(grey).PhotometricInterpretation == "MONOCHROME2"
    assert (dcmread(b).pixel_array == GREY).all()


def test_what_is_assumed_is_said() -> None:
    (dataset,) = build_series([GREY], SeriesDetails(modality="MR"))
    assert "1.0 mm is assumed" in dataset.ImageComments
    (known,) = build_series([GREY], SeriesDetails(modality="MR", spacing_mm=(1, 1)))
    assert "assumed" not in known.ImageComments


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"GIF89a")
    with pytest.raises(BadImage, match=r"no\.png cannot be read"):
        make_dicom([tmp_path / "no.png"], tmp_path / "out", SeriesDetails(modality="US"))
    with pytest.raises(BadImage, match="use one of US, ES"):
        build_series([GREY], SeriesDetails(modality="PT"))
    with pytest.raises(BadImage, match="1 to 1000 images, not 0"):
        build_series([], SeriesDetails(modality="US"))
    Image.fromarray(np.zeros((1, 9000), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(BadImage, match="more than 8192"):
        make_dicom([tmp_path / "wide.png"], tmp_path / "out", SeriesDetails(modality="US"))
    assert not (tmp_path / "out").exists()
