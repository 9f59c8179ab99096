import io
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.forms.content import MAX_KEY_IMAGES
from dicom_node.forms.form import Form
from dicom_node.picture import CONTOUR, picture_scale
from dicom_node.regions import SIMPLIFY_PX
from tests import builders, formed

LINE_PX = 2  # half of its width, and the rounding of a joint


def capture(folder: Path, sources: list[Dataset]) -> Dataset:
    return formed.one(formed.formed(folder, sources, [frozenset({Form.SC})]), Form.SC)


def border_points(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Middle of every pixel edge between inside and outside, as (column, row) from the first corner."""
    padded = np.pad(mask, 1)
    upright = np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:])
    level = np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1])
    points = [(column, row + 0.5) for row, column in upright] + [(column + 0.5, row) for row, column in level]
    return np.array(points, float)


def drawn_points(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Middle of every pixel of the contour's colour, as (x, y), above the banner."""
    rows, columns = np.nonzero((frame == CONTOUR).all(axis=-1))
    return np.stack([columns + 0.5, rows + 0.5], axis=1)


@pytest.mark.parametrize("kind", ["ultrasound", "stack", "colour", "radiograph"])
def test_the_contour_lies_on_the_border_of_the_mask(tmp_path: Path, kind: str) -> None:
    series = builders.as_loaded(tmp_path, formed.SOURCES[kind]())
    result = formed.result_on(series, [frozenset({Form.SC})])
    region = result.findings.region
    assert region is not None
    across, down = picture_scale(result.findings.key)
    made = formed.one(result, Form.SC)
    pictures = made.pixel_array.reshape(-1, made.Rows, made.Columns, 3)
    uids = [str(image.ReferencedSOPInstanceUID) for image in made.SourceImageSequence]
    frame = pictures[uids.index(str(result.findings.key.source.SOPInstanceUID))]
    shown = frame[: round(formed.SIZE[0] * down)]
    drawn = drawn_points(shown)
    border = border_points(region.mask) * (across, down)
    distances = np.linalg.norm(drawn[:, np.newaxis] - border[np.newaxis], axis=2)
    # half an edge to the middle of the next one, what simplifying may move, and the width of the line
    tolerance = (0.5 + SIMPLIFY_PX) * max(across, down) + LINE_PX
    assert distances.min(axis=1).max() <= tolerance
    assert distances.min(axis=0).max() <= tolerance
    assert len(drawn) > len(border)


def test_one_key_image_is_a_secondary_capture(tmp_path: Path) -> None:
    source = builders.make_ultrasound(formed.ellipse())
    made = capture(tmp_path / "in", [source])
    assert made.SOPClassUID.name == "Secondary Capture Image Storage"
    assert (made.Modality, list(made.ImageType)) == ("OT", ["DERIVED", "SECONDARY"])
    assert "research use only" in made.SeriesDescription
    (image,) = made.SourceImageSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    path = tmp_path / "sc.dcm"
    path.write_bytes(builders.part10(made))
    shown = subprocess.run(["dcmj2pnm", "+op", str(path)], capture_output=True, check=False)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.stdout))), dcmread(path).pixel_array)


@pytest.mark.parametrize(("kind", "frames"), [("stack", MAX_KEY_IMAGES), ("clip", 3), ("enhanced", 2)])
def test_several_key_images_are_frames_of_one_capture(tmp_path: Path, kind: str, frames: int) -> None:
    sources = formed.SOURCES[kind]()
    made = capture(tmp_path, sources)
    assert made.SOPClassUID.name == "Multi-frame True Color Secondary Capture Image Storage"
    assert made.NumberOfFrames == frames == len(made.SourceImageSequence)
    assert list(made.PageNumberVector) == list(range(1, frames + 1))
    assert made.pixel_array.shape[0] == frames
    named = [
        (str(i.ReferencedSOPInstanceUID), i.get("ReferencedFrameNumber")) for i in made.SourceImageSequence
    ]
    assert len(set(named)) == frames
    assert {uid for uid, _ in named} <= {str(source.SOPInstanceUID) for source in sources}


@pytest.mark.parametrize(
    ("modality", "said", "written"),
    [("CT", None, "NO"), ("US", None, "YES"), ("US", "NO", "NO"), ("MR", "YES", "YES")],
)
def test_burned_in_annotation_is_the_source_s(
    tmp_path: Path, modality: str, said: str | None, written: str
) -> None:
    source = builders.make_ultrasound(formed.ellipse())
    source.Modality = modality
    source.BurnedInAnnotation = said
    assert capture(tmp_path, [source]).BurnedInAnnotation == written


def test_no_patient_is_burnt_in(tmp_path: Path) -> None:
    """The pixels of two patients with the same image are the same."""
    somebody, other = (builders.make_ultrasound(formed.ellipse()) for _ in range(2))
    other.PatientName, other.PatientID, other.AccessionNumber = "Other^Name", "OTHER", "ACC"
    first, second = capture(tmp_path / "a", [somebody]), capture(tmp_path / "b", [other])
    assert first.PatientID != second.PatientID
    assert first.PixelData == second.PixelData


def test_without_an_outline_the_picture_says_that_this_is_not_normal(tmp_path: Path) -> None:
    made = capture(tmp_path / "a", [builders.make_ultrasound(np.zeros(formed.SIZE, bool))])
    with_outline = capture(tmp_path / "b", [builders.make_ultrasound(formed.ellipse())])
    assert made.Rows == with_outline.Rows
    words, fewer = (np.count_nonzero(each.pixel_array[-24:] > 100) for each in (made, with_outline))
    assert words > fewer * 1.2
    assert len(drawn_points(made.pixel_array[:-30])) == 0


def test_what_would_be_drawn_in_another_size_is_left_out(tmp_path: Path) -> None:
    stack = builders.make_stack([formed.ellipse(radius) for radius in (5, 9, 6)])
    stack[0].PixelSpacing = ["1", "1"]
    made = capture(tmp_path, stack)
    named = [image.ReferencedSOPInstanceUID for image in made.SourceImageSequence]
    assert named == [stack[1].SOPInstanceUID, stack[2].SOPInstanceUID]


def test_odd_proportions_stay_within_bounds(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path, [builders.make_ultrasound(formed.ellipse())])
    frame = replace(series.frames[0], spacing_mm=(0.001, 10.0))
    across, down = picture_scale(frame)
    assert max(81 * across, 60 * down) <= 8192 + 1e-6
