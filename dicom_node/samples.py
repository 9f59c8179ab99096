"""Three synthetic studies for trying the node: drawn by our code, labelled so, each with its true mask."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node import samples_cardiac, samples_radiograph, samples_ultrasound
from dicom_node.make_dicom import Patient, SeriesDetails, build_series

SLICE_THICKNESS_MM: Final = 8.0  # the rest of the spacing is a gap
COMMENTS: Final = "SYNTHETIC IMAGE drawn by sim4seg-node; shows no person. Research use only."
WHEN: Final = datetime.datetime(2026, 1, 2, 9, 0, 0)  # noqa: DTZ001 - DICOM's local time
SHORT_AXIS: Final = (
    0.707107,
    0.612372,
    -0.353553,
    0.0,
    -0.5,
    -0.866025,
)  # direction cosines of rows, columns
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sample:
    """One synthetic series in memory."""

    name: str
    title: str
    target: str
    datasets: tuple[Dataset, ...]
    true_masks: tuple[Mask, ...]  # (H, W), one per instance, in the same order


@dataclass(frozen=True, eq=False)
class SampleStudy:
    """One synthetic study on disk."""

    name: str
    title: str
    folder: Path
    paths: tuple[Path, ...]
    target: str
    true_masks: dict[str, Mask]  # SOP Instance UID -> (H, W)


def write_samples(out_dir: Path) -> list[SampleStudy]:
    """Write every sample below `out_dir`, one folder a study; a repeat writes the same files."""
    return [_write(make(), out_dir) for make in SAMPLES.values()]


def _write(sample: Sample, out_dir: Path) -> SampleStudy:
    folder = out_dir / sample.name
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, dataset in enumerate(sample.datasets, start=1):
        path = folder / f"image-{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    pairs = zip(sample.datasets, sample.true_masks, strict=True)
    masks = {str(dataset.SOPInstanceUID): mask for dataset, mask in pairs}
    return SampleStudy(sample.name, sample.title, folder, tuple(paths), sample.target, masks)


def breast_ultrasound() -> Sample:
    """An oval lesion darker than the gland around it."""
    image, mask = samples_ultrasound.make_breast_ultrasound()
    details = _details("US", "BREAST", "breast ultrasound", samples_ultrasound.SPACING_MM)
    return _sample("breast-ultrasound", details, "breast lesion", ([image], [mask]))


def cardiac_cine() -> Sample:
    """A short-axis stack over phases, base to apex, in oblique planes: a wide heart that beats weakly."""
    images, masks = samples_cardiac.make_cardiac_cine()
    details = _details("MR", "HEART", "cardiac MR, short axis cine", samples_cardiac.SPACING_MM)
    drawn = ([image for beat in images for image in beat], [mask for beat in masks for mask in beat])
    sample = _sample("cardiac-mr", details, "left ventricular cavity", drawn)
    normal = np.cross(SHORT_AXIS[:3], SHORT_AXIS[3:])
    times = samples_cardiac.TRIGGER_TIMES_MS
    for index, dataset in enumerate(sample.datasets):
        number, phase = divmod(index, len(times))
        place = np.array([-120.0, -90.0, 160.0]) + normal * samples_cardiac.SLICE_SPACING_MM * number
        dataset.ImageOrientationPatient = list(SHORT_AXIS)
        dataset.ImagePositionPatient = [round(float(value), 4) for value in place]
        dataset.SliceThickness = SLICE_THICKNESS_MM
        dataset.SpacingBetweenSlices = samples_cardiac.SLICE_SPACING_MM
        dataset.ScanOptions, dataset.TriggerTime = "CG", times[phase]  # cardiac gating
    return sample


def leg_radiograph() -> Sample:
    """An oblique fracture of the tibia."""
    image, mask = samples_radiograph.make_leg_radiograph()
    details = _details("DX", "LEG", "lower leg radiograph", samples_radiograph.SPACING_MM)
    return _sample("leg-radiograph", details, "fracture", ([image], [mask]))


SAMPLES: Final[dict[str, Callable[[], Sample]]] = {
    "breast-ultrasound": breast_ultrasound,
    "cardiac-mr": cardiac_cine,
    "leg-radiograph": leg_radiograph,
}


def _details(modality: str, body_part: str, title: str, spacing_mm: tuple[float, float]) -> SeriesDetails:
    return SeriesDetails(
        modality=modality,
        body_part=body_part,
        laterality="R" if body_part == "BREAST" else "",
        patient=Patient(f"Synthetic^{modality}", f"SYNTHETIC-{modality}"),
        description=f"SYNTHETIC {title}",
        comments=COMMENTS,
        spacing_mm=spacing_mm,
        when=WHEN,
    )


def _sample(
    name: str,
    details: SeriesDetails,
    target: str,
    drawn: tuple[Sequence[NDArray[np.uint8]], Sequence[Mask]],
) -> Sample:
    images, masks = drawn
    return Sample(name, details.description, target, tuple(build_series(images, details)), tuple(masks))
