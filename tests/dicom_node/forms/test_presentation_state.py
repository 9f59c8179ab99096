import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dicom_node.forms.form import Form
from tests import builders, formed

STATES = {
    "ultrasound": "Grayscale Softcopy Presentation State Storage",
    "stack": "Grayscale Softcopy Presentation State Storage",
    "clip": "Grayscale Softcopy Presentation State Storage",
    "enhanced": "Grayscale Softcopy Presentation State Storage",
    "radiograph": "Grayscale Softcopy Presentation State Storage",
    "colour": "Color Softcopy Presentation State Storage",
}


def state(folder: Path, sources: list[Dataset]) -> Dataset:
    return formed.one(formed.formed(folder, sources, [frozenset({Form.GSPS})]), Form.GSPS)


@pytest.mark.parametrize("kind", STATES)
def test_dcmtk_accepts_the_state(tmp_path: Path, kind: str) -> None:
    made = state(tmp_path / "in", formed.SOURCES[kind]())
    assert made.SOPClassUID.name == STATES[kind]
    path = tmp_path / "state.dcm"
    path.write_bytes(builders.part10(made))
    checked = subprocess.run(["dcmpschk", str(path)], capture_output=True, text=True, check=False)
    said = checked.stdout + checked.stderr
    assert "Test passed" in said
    assert not [line for line in said.splitlines() if line.startswith(("E:", "F:"))], said


def test_dcmtk_shows_the_image_through_the_state(tmp_path: Path) -> None:
    source = builders.make_ultrasound(formed.ellipse())
    image, path = tmp_path / "image.dcm", tmp_path / "state.dcm"
    image.write_bytes(builders.part10(source))
    path.write_bytes(builders.part10(state(tmp_path / "in", [source])))
    command = ["dcmp2pgm", "-p", str(path), str(image), str(tmp_path / "out.pgm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = np.asarray(Image.open(tmp_path / "out.pgm").convert("L"))
    assert shown.std() > 10


@pytest.mark.parametrize("kind", STATES)
def test_the_graphics_enclose_the_mask(tmp_path: Path, kind: str) -> None:
    sources = formed.SOURCES[kind]()
    series = builders.as_loaded(tmp_path, sources)
    made = formed.one(formed.result_on(series, [formed.EVERYTHING]), Form.GSPS)
    drawn = {
        key(annotation.ReferencedImageSequence[0]): filled(annotation)
        for annotation in made.GraphicAnnotationSequence
    }
    assert drawn
    for frame in series.frames:
        found = drawn.pop((str(frame.source.SOPInstanceUID), frame.frame_number), None)
        if found is None:
            continue
        mask = formed.ellipse() if kind == "colour" else frame.image[..., 0] < 95
        assert np.count_nonzero(found != mask) <= 0.1 * mask.sum()
    assert drawn == {}


def key(image: Dataset) -> tuple[str, int | None]:
    return str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")


def filled(annotation: Dataset) -> np.ndarray:
    """Pixels whose middle lies inside: eight times finer than the image, so that edges count little."""
    fine = Image.new("1", (formed.SIZE[1] * 8, formed.SIZE[0] * 8))
    for graphic in annotation.GraphicObjectSequence:
        assert (graphic.GraphicAnnotationUnits, graphic.GraphicType) == ("PIXEL", "POLYLINE")
        points = np.array(graphic.GraphicData, float) * 8
        assert list(points[:2]) == list(points[-2:])
        ImageDraw.Draw(fine).polygon([tuple(p) for p in points.reshape(-1, 2)], fill=1)
    return np.asarray(fine)[4::8, 4::8]


def test_the_images_look_as_without_it(tmp_path: Path) -> None:
    stack = builders.make_stack([formed.ellipse(4 + number) for number in range(3)], modality="CT")
    for number, dataset in enumerate(stack):
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
        dataset.WindowCenter, dataset.WindowWidth = 100 + number, 200
    made = state(tmp_path / "a", stack)
    assert (made.RescaleSlope, made.RescaleIntercept, made.RescaleType) == (1, 0, "HU")
    windows = {
        str(item.ReferencedImageSequence[0].ReferencedSOPInstanceUID): int(item.WindowCenter)
        for item in made.SoftcopyVOILUTSequence
    }
    assert windows == {str(each.SOPInstanceUID): int(each.WindowCenter) for each in stack}
    assert made.PresentationLUTShape == "IDENTITY"
    (area,) = made.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaBottomRightHandCorner) == [81, 60]
    assert [float(each) for each in area.PresentationPixelSpacing] == [1.5, 0.75]
    for dataset in stack:
        dataset.WindowCenter = 100
    (window,) = state(tmp_path / "b", stack).SoftcopyVOILUTSequence
    assert "ReferencedImageSequence" not in window


def test_what_is_transformed_otherwise_is_left_out(tmp_path: Path) -> None:
    """A presentation state has one modality transformation for all its images."""
    stack = builders.make_stack([formed.ellipse(radius) for radius in (5, 5, 9)])  # the last is the key image
    for number, dataset in enumerate(stack):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, number % 2
    made = state(tmp_path, stack)
    named = {
        str(image.ReferencedSOPInstanceUID)
        for series in made.ReferencedSeriesSequence
        for image in series.ReferencedImageSequence
    }
    assert named == {str(stack[0].SOPInstanceUID), str(stack[2].SOPInstanceUID)}
    assert len(made.GraphicAnnotationSequence) == 2
    assert made.RescaleIntercept == 0


def test_inverted_images_stay_inverted(tmp_path: Path) -> None:
    source = builders.make_ultrasound(formed.ellipse())
    source.PhotometricInterpretation = "MONOCHROME1"
    series = builders.as_loaded(tmp_path, [source])
    made = formed.one(formed.result_on(series, [formed.EVERYTHING]), Form.GSPS)
    assert made.PresentationLUTShape == "INVERSE"


def test_colours_are_srgb(tmp_path: Path) -> None:
    made = state(tmp_path, formed.SOURCES["colour"]())
    assert made.ICCProfile[36:40] == b"acsp"
    assert "PresentationLUTShape" not in made
    assert "SoftcopyVOILUTSequence" not in made
