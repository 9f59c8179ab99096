"""Where a mask lies in the patient: the same before and after, through three readers of the SEG."""

import gzip
import subprocess
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import highdicom
import numpy as np
import pytest
from highdicom.spatial import ImageToReferenceTransformer
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_node.analysis import analyse
from dicom_node.reading import AnalysisRequest
from tests import builders

SIZE = (33, 45)  # rows x columns is no multiple of 8
SAME_MM = 1e-3
Point = NDArray[np.float64]

# Lop-sided in every direction, so that a flip, a shift or a swap moves the centroid.
MASKS = [
    builders.make_ellipse(SIZE, (9 + n, 12 + 2 * n), (3 + n / 2, 4 + n)) for n in range(6)
]  # fmt: skip
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.707107, 0.612372, -0.353553, 0.0, -0.5, -0.866025)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.939693, 0.342020)  # a gantry tilted by 20 degrees


def stack_of(
    orientation: Sequence[float] = AXIAL,
    steps_mm: Sequence[float] = (0, 5, 10, 15, 20, 25),
    spacing: tuple[float, float] = (0.8, 0.8),
    *,
    along: Sequence[float] | None = None,
) -> list[Dataset]:
    """Slices at `steps_mm` along the normal of `orientation`, or along a direction of the table."""
    datasets = builders.make_stack(MASKS[: len(steps_mm)], modality="CT")
    cosines = np.array(orientation)
    direction = np.cross(cosines[:3], cosines[3:]) if along is None else np.array(along, float)
    for dataset, step in zip(datasets, steps_mm, strict=True):
        place = np.array([-31.25, 17.5, 102.4]) + direction * step
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in orientation]
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in place]
        dataset.PixelSpacing = list(spacing)
        dataset.SliceThickness = 5.0
    return datasets


REGULAR: dict[str, Callable[[], list[Dataset]]] = {
    "axial": stack_of,
    "sagittal": lambda: stack_of(SAGITTAL),
    "coronal": lambda: stack_of(CORONAL),
    "oblique": lambda: stack_of(OBLIQUE),
    "reversed order": lambda: stack_of(steps_mm=(25, 20, 15, 10, 5, 0)),
    "flipped rows": lambda: stack_of((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "non-square pixels": lambda: stack_of(OBLIQUE, spacing=(1.5, 0.6)),
}
IRREGULAR: dict[str, Callable[[], list[Dataset]]] = {
    "tilted gantry": lambda: stack_of(TILTED, along=(0, 0, 1)),
    "missing slice": lambda: stack_of(steps_mm=(0, 5, 15, 20, 25)),
    "variable spacing": lambda: stack_of(CORONAL, steps_mm=(0, 2, 7, 8.5, 17, 30)),
    "one slice": lambda: stack_of(OBLIQUE, steps_mm=(12.5,)),
}
ENHANCED: dict[str, Callable[[], list[Dataset]]] = {
    "enhanced MR": lambda: [builders.make_enhanced(stack_of(SAGITTAL, spacing=(1.5, 0.6)))],
    "enhanced CT": lambda: [builders.make_enhanced(stack_of(OBLIQUE), "1.2.840.10008.5.1.4.1.1.2.1")],
}


def centroid(planes: Sequence[tuple[Dataset, NDArray[np.bool_]]]) -> Point:
    """Mean LPS position of the marked pixels, in mm; the planes' tags and nothing else.

    Source: PS3.3 C.7.6.2.1.1.
    """
    points = []
    for plane, mask in planes:
        rows, columns = np.nonzero(mask)
        cosines = np.array(plane.ImageOrientationPatient, float)
        down, across = (float(value) for value in plane.PixelSpacing)
        place = np.array(plane.ImagePositionPatient, float)
        points.append(place + np.outer(columns * across, cosines[:3]) + np.outer(rows * down, cosines[3:]))
    return np.concatenate(points).mean(axis=0)


def segmentation_of(folder: Path, datasets: list[Dataset]) -> tuple[Path, Dataset]:
    """The SEG on the dark part of the images, read back from its file."""
    series = builders.as_loaded(folder / "in", datasets)
    result = analyse(series, builders.MaskPredictor(), AnalysisRequest("Outline it."))
    (segmentation,) = result.segmentations
    assert builders.standard_errors(folder, segmentation) == []
    path = folder / "seg.dcm"
    path.write_bytes(builders.part10(segmentation))
    return path, dcmread(path)


def by_highdicom(path: Path) -> Point:
    """Through highdicom: its reader, its transformer from pixels of a frame to the patient."""
    read = highdicom.seg.segread(path)
    points = []
    pixels = read.pixel_array.reshape(-1, *SIZE)
    for number, mask in enumerate(pixels, start=1):
        transformer = ImageToReferenceTransformer.for_image(read, frame_number=number)
        rows, columns = np.nonzero(mask)
        corners = np.stack([columns, rows], axis=1) + 0.5  # of image coordinates: pixel centres
        points.append(transformer(corners))
    return np.asarray(np.concatenate(points).mean(axis=0))


def by_tags(dataset: Dataset) -> Point:
    """Through our own arithmetic from the tags of the SEG."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    planes = []
    for group, mask in zip(
        dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array.reshape(-1, *SIZE), strict=True
    ):
        plane = Dataset()
        plane.ImagePositionPatient = group.PlanePositionSequence[0].ImagePositionPatient
        plane.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        plane.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
        planes.append((plane, mask))
    return centroid(planes)


def by_dcmqi(path: Path, folder: Path) -> Point:
    """Through dcmqi, which is DCMTK and ITK: the SEG as a volume in NRRD."""
    program = files("dcmqi") / "bin" / "segimage2itkimage"
    command = [str(program), "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, data = (folder / "1.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    sizes = [int(value) for value in fields["sizes"].split()]
    raw = gzip.decompress(data) if fields["encoding"] == "gzip" else data
    voxels = np.frombuffer(raw, np.uint8 if "char" in fields["type"] else "<i2").reshape(sizes[::-1])
    origin = vector(fields["space origin"])
    directions = np.array([vector(each) for each in fields["space directions"].split()])
    indices = np.argwhere(voxels)[:, ::-1]  # column, row, slice
    return np.asarray((origin + indices @ directions).mean(axis=0))


def vector(text: str) -> Point:
    return np.array([float(value) for value in text.strip("()").split(",")])


def truth(datasets: Sequence[Dataset]) -> Point:
    return centroid(list(zip(datasets, MASKS, strict=False)))


@pytest.mark.parametrize("kind", REGULAR)
def test_a_stack_lies_where_it_lay(tmp_path: Path, kind: str) -> None:
    wanted = truth(REGULAR[kind]())
    path, dataset = segmentation_of(tmp_path, REGULAR[kind]())
    assert by_highdicom(path) == pytest.approx(wanted, abs=SAME_MM)
    assert by_tags(dataset) == pytest.approx(wanted, abs=SAME_MM)
    assert by_dcmqi(path, tmp_path) == pytest.approx(wanted, abs=SAME_MM)


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_volume_lies_where_it_lay(tmp_path: Path, kind: str) -> None:
    wanted = truth(IRREGULAR[kind]())
    path, dataset = segmentation_of(tmp_path, IRREGULAR[kind]())
    assert by_highdicom(path) == pytest.approx(wanted, abs=SAME_MM)
    assert by_tags(dataset) == pytest.approx(wanted, abs=SAME_MM)


@pytest.mark.parametrize("kind", ENHANCED)
def test_frames_of_enhanced_images_lie_where_they_lay(tmp_path: Path, kind: str) -> None:
    spacing = (1.5, 0.6) if "MR" in kind else (0.8, 0.8)
    wanted = truth(stack_of(SAGITTAL if "MR" in kind else OBLIQUE, spacing=spacing))
    path, dataset = segmentation_of(tmp_path, ENHANCED[kind]())
    assert by_highdicom(path) == pytest.approx(wanted, abs=SAME_MM)
    assert by_tags(dataset) == pytest.approx(wanted, abs=SAME_MM)
    assert by_dcmqi(path, tmp_path) == pytest.approx(wanted, abs=SAME_MM)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_a_compressed_source_lies_where_it_lay(tmp_path: Path, syntax: str) -> None:
    datasets = stack_of(OBLIQUE, spacing=(1.5, 0.6))
    wanted = truth(datasets)
    for dataset in datasets:
        dataset.compress(syntax)
    path, _ = segmentation_of(tmp_path, datasets)
    assert by_highdicom(path) == pytest.approx(wanted, abs=SAME_MM)
    assert by_dcmqi(path, tmp_path) == pytest.approx(wanted, abs=SAME_MM)


def radiograph() -> Dataset:
    details = builders.SeriesDetails(modality="DX", body_part="HAND", spacing_mm=(0.3, 0.2))
    return builders.build_series([builders.make_grey_image(MASKS[3])], details)[0]


def photograph() -> Dataset:
    details = builders.SeriesDetails(modality="XC", body_part="SKIN", spacing_mm=(0.3, 0.2))
    (dataset,) = builders.build_series([builders.make_colour_image(MASKS[3])], details)
    dataset.compress(JPEG2000Lossless)
    return dataset


FLAT: dict[str, Callable[[], Dataset]] = {
    "radiograph": radiograph,
    "compressed colour photograph": photograph,
    "ultrasound": lambda: builders.make_ultrasound(MASKS[3], spacing_mm=(0.3, 0.2)),
}


@pytest.mark.parametrize("kind", FLAT)
def test_an_image_without_patient_geometry_keeps_its_own_axes(tmp_path: Path, kind: str) -> None:
    """Rows and columns are the axes, the first pixel is the origin, the source's spacing is kept."""
    source = FLAT[kind]()
    path, dataset = segmentation_of(tmp_path, [source])
    rows, columns = np.nonzero(MASKS[3])
    wanted = [columns.mean() * 0.2, rows.mean() * 0.3, 0.0]
    assert by_highdicom(path) == pytest.approx(wanted, abs=SAME_MM)
    assert by_tags(dataset) == pytest.approx(wanted, abs=SAME_MM)
    assert by_dcmqi(path, tmp_path) == pytest.approx(wanted, abs=SAME_MM)
    assert (dataset.pixel_array.reshape(SIZE).astype(bool) == MASKS[3]).all()


def test_frames_of_a_clip_keep_their_pixels_and_names(tmp_path: Path) -> None:
    source = builders.make_multiframe(MASKS)
    _, dataset = segmentation_of(tmp_path, [source])
    for group, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert (pixels.astype(bool) == MASKS[int(image.ReferencedFrameNumber) - 1]).all()
