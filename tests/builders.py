"""Plain functions that make synthetic DICOM series and masks; all patients are invented."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.frames import FrameLimits, SourceSeries, load_series
from dicom_node.make_dicom import Patient, SeriesDetails, build_series
from dicom_node.routing import Route
from inference.contract import Image, Prediction, Prompt
from tests.stub_engine import StubPredictor

PATIENT = Patient("Test^Synthetic", "SYNTH-1", "19700101", "F")
DARK, BRIGHT = 20, 170


def make_ellipse(
    size: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]
) -> NDArray[np.bool_]:
    """Mask (H, W) of an ellipse; `centre` and `radii` as (row, column)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1.0


def make_grey_image(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Bright noise with the mask's part dark, so that a threshold finds it again."""
    noise = np.random.default_rng(mask.size).integers(-15, 16, mask.shape)
    return (np.where(mask, DARK, BRIGHT) + noise).clip(0, 255).astype(np.uint8)


def make_colour_image(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """As make_grey_image, reddish."""
    grey = make_grey_image(mask).astype(int)
    return np.stack([grey, grey * 3 // 4, grey // 2], axis=-1).astype(np.uint8)


def make_ultrasound(
    mask: NDArray[np.bool_] | None = None, spacing_mm: tuple[float, float] | None = (0.2, 0.1)
) -> Dataset:
    """A breast ultrasound image whose dark part is `mask`."""
    mask = make_ellipse((60, 81), (30, 40), (12, 18)) if mask is None else mask
    details = SeriesDetails(modality="US", body_part="BREAST", patient=PATIENT, spacing_mm=spacing_mm)
    return build_series([make_grey_image(mask)], details)[0]


def make_stack(
    masks: Sequence[NDArray[np.bool_]],
    modality: str = "MR",
    orientation: Sequence[str] = ("1", "0", "0", "0", "1", "0"),
    spacing: Sequence[str] = ("1.5000", "0.7500"),
) -> list[Dataset]:
    """A stack of parallel slices, 8 mm apart along the normal of `orientation`."""
    details = SeriesDetails(modality=modality, body_part="HEART", patient=PATIENT, spacing_mm=(1, 1))
    datasets = build_series([make_grey_image(mask) for mask in masks], details)
    cosines = np.array(orientation, dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = [f"{value:.5f}" for value in (-40, -50, 60) + normal * 8.0 * number]
        dataset.PixelSpacing = list(spacing)
        dataset.SliceThickness = "8.0"
    return datasets


def make_cine(
    masks: Sequence[Sequence[NDArray[np.bool_]]], trigger_ms: float = 40.0, spacing_mm: float = 8.0
) -> list[list[Dataset]]:
    """A beating stack, [slice][phase], as one MR series of 1 by 2 mm pixels."""
    stack = make_stack([mask for phases in masks for mask in phases], spacing=("1.0", "2.0"))
    count = len(masks[0])
    for index, dataset in enumerate(stack):
        place, phase = divmod(index, count)
        dataset.ImagePositionPatient = [0, 0, place * spacing_mm]
        dataset.TriggerTime = phase * trigger_ms
    return [stack[start : start + count] for start in range(0, len(stack), count)]


def make_enhanced(stack: Sequence[Dataset], sop_class: str = "1.2.840.10008.5.1.4.1.1.4.1") -> Dataset:
    """The images of `stack` as one Enhanced MR (or other) instance, its frames in no particular order."""
    frames = [stack[index] for index in np.random.default_rng(3).permutation(len(stack))]
    joined = b"".join(frame.PixelData for frame in frames)
    groups = [_functional_groups(frame) for frame in frames]
    source = stack[0]
    source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "TriggerTime"):
        if keyword in source:
            delattr(source, keyword)
    source.NumberOfFrames = len(frames)
    source.PerFrameFunctionalGroupsSequence = groups
    source.SharedFunctionalGroupsSequence = [Dataset()]
    source.PixelData = joined
    return source


def _functional_groups(frame: Dataset) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = [_picked(frame, "ImagePositionPatient")]
    group.PlaneOrientationSequence = [_picked(frame, "ImageOrientationPatient")]
    group.PixelMeasuresSequence = [_picked(frame, "PixelSpacing", "SliceThickness")]
    if "TriggerTime" in frame:
        beat = Dataset()
        beat.NominalCardiacTriggerDelayTime = float(frame.TriggerTime)
        group.CardiacSynchronizationSequence = [beat]
    return group


def _picked(dataset: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = dataset[keyword]
    return item


def make_multiframe(masks: Sequence[NDArray[np.bool_]]) -> Dataset:
    """An ultrasound clip: one multi-frame instance, no patient geometry."""
    dataset = make_ultrasound(masks[0])
    frames = [make_grey_image(mask) for mask in masks]
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.3.1")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.NumberOfFrames = len(frames)
    dataset.FrameTime = 40
    dataset.FrameIncrementPointer = 0x00181063
    data = np.stack(frames).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return dataset


def route(**conditions: Any) -> Route:
    """A rule for everything, but for what is given."""
    return Route.model_validate({"name": "everything", "model": "stub", "query": "Outline it.", **conditions})


def write_datasets(folder: Path, datasets: Sequence[Dataset]) -> list[Path]:
    """Part 10 files, named so that their order says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, dataset in enumerate(datasets):
        path = folder / f"{(number * 7919) % 1000:03d}-{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return sorted(paths)


def as_loaded(folder: Path, datasets: Sequence[Dataset]) -> SourceSeries:
    """The series as the node reads it from files."""
    return load_series(write_datasets(folder, datasets), FrameLimits())


class MaskPredictor(StubPredictor):
    """Outlines what make_grey_image drew dark; a frame without anything dark has no region."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """The stub's answer with the mask that was drawn."""
        mask = image.pixels[..., 0] < (DARK + BRIGHT) // 2
        return replace(super().predict(image, prompt), mask=mask, has_region=bool(mask.any()))


def part10(dataset: Dataset) -> bytes:
    """The bytes of the data set as a Part 10 file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def standard_errors(folder: Path, dataset: Dataset) -> list[str]:
    """What dciodvfy calls an error in the data set; its exit status says nothing."""
    path = folder / f"check-{dataset.SOPInstanceUID}.dcm"
    path.write_bytes(part10(dataset))
    checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (checked.stdout + checked.stderr).splitlines()
    assert lines, "dciodvfy names the object it checks"
    return [line for line in lines if line.startswith("Error")]


def report_text(folder: Path, dataset: Dataset) -> str:
    """The report as DCMTK's dsrdump prints it, with every text in full."""
    path = folder / f"dump-{dataset.SOPInstanceUID}.dcm"
    path.write_bytes(part10(dataset))
    dumped = subprocess.run(["dsrdump", "+Pc", "+Pl", str(path)], capture_output=True, text=True, check=False)
    assert dumped.returncode == 0, dumped.stderr
    assert not [line for line in dumped.stderr.splitlines() if line.startswith(("E:", "F:"))], dumped.stderr
    return dumped.stdout
