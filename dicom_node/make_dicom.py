"""Wraps PNG and JPEG images into valid DICOM, for trying the node; what is assumed is said to be."""

import datetime
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node import codes

NAMESPACE: Final = uuid.UUID("f2b7c4de-0d2b-5b43-8f0e-8f4c0f1d7a11")
MAX_IMAGE_SIDE: Final = 8192
MAX_IMAGES: Final = 1000
ASSUMED_SPACING_MM: Final = 1.0
COLOUR_MODALITIES: Final = frozenset({"US", "ES", "XC"})
UNPAIRED: Final = frozenset(
    {
        "HEART",
        "CHEST",
        "COLON",
        "ABDOMEN",
        "HEAD",
        "SKULL",
        "NECK",
        "SPINE",
        "THYROID",
        "BRAIN",
        "PELVIS",
        "LIVER",
    }
)
SOP_CLASSES: Final[dict[str, str]] = {
    "US": "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image Storage
    "ES": "1.2.840.10008.5.1.4.1.1.77.1.1",  # VL Endoscopic Image Storage
    "XC": "1.2.840.10008.5.1.4.1.1.77.1.4",  # VL Photographic Image Storage
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray Image Storage - For Presentation
    "MR": "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
    "CT": "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
}


class BadImage(Exception):
    """An image file or its description cannot be made into DICOM; the sentence says why and what to do."""


@dataclass(frozen=True)
class Patient:
    """Who the image is said to be of; the defaults say that nobody is."""

    name: str = "Unknown^Patient"
    identifier: str = "UNKNOWN"
    birth_date: str = ""
    sex: str = ""


@dataclass(frozen=True)
class SeriesDetails:
    """What an image file cannot know about itself."""

    modality: str
    body_part: str = ""
    laterality: str = ""  # "L" or "R" of a paired body part; "" is unknown
    patient: Patient = field(default_factory=Patient)
    description: str = "Wrapped image"
    comments: str = "Made from an image file by dicom-node make-dicom."
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns
    slice_spacing_mm: float | None = None  # MR and CT only
    when: datetime.datetime = datetime.datetime(2000, 1, 1)  # noqa: DTZ001 - DICOM's local time


def make_dicom(images: Sequence[Path], out_dir: Path, details: SeriesDetails) -> list[Path]:
    """Write one series, one Part 10 file per image file, in the order given.

    Raises
    ------
    BadImage
        If a file is no PNG or JPEG, or is too large, or the modality is not one we can make.
    """
    pixels = [read_image(path) for path in images]
    out_dir.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, dataset in enumerate(build_series(pixels, details), start=1):
        path = out_dir / f"image-{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W) grey or (H, W, 3) RGB of a PNG or JPEG file."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if max(image.size) > MAX_IMAGE_SIDE:
                raise BadImage(f"{path.name} has more than {MAX_IMAGE_SIDE} pixels a side; make it smaller")
            upright = ImageOps.exif_transpose(image)
            return _eight_bits(upright)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImage(f"{path.name} cannot be read as PNG or JPEG; convert it first") from error


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return (values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8)
    if image.mode in {"L", "LA", "1"}:
        return np.asarray(image.convert("L"))
    rgb = np.asarray(image.convert("RGB"))
    is_grey = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
    return rgb[..., 0].copy() if is_grey else rgb


def build_series(images: Sequence[NDArray[np.uint8]], details: SeriesDetails) -> list[Dataset]:
    """Data sets of one series of (H, W) grey or (H, W, 3) RGB; the same images give the same UIDs."""
    modality = details.modality.upper()
    if modality not in SOP_CLASSES:
        raise BadImage(f"modality {modality!r} cannot be made; use one of {', '.join(SOP_CLASSES)}")
    if not 1 <= len(images) <= MAX_IMAGES:
        raise BadImage(f"a series is made of 1 to {MAX_IMAGES} images, not {len(images)}")
    key = _series_key(images, details)
    return [_instance(image, number, key, details) for number, image in enumerate(images, start=1)]


def _series_key(images: Sequence[NDArray[np.uint8]], details: SeriesDetails) -> str:
    pixels = b"".join(repr(image.shape).encode() + image.tobytes() for image in images)
    return str(uuid.uuid5(NAMESPACE, f"{details!r}|{uuid.uuid5(NAMESPACE, pixels.hex())}"))


def _uid(key: str, kind: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, f'{key}|{kind}').int}")


def _instance(image: NDArray[np.uint8], number: int, key: str, details: SeriesDetails) -> Dataset:
    modality = details.modality.upper()
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = UID(SOP_CLASSES[modality])
    dataset.SOPInstanceUID = _uid(key, f"instance {number}")
    _patient_and_study(dataset, key, details)
    _series_and_equipment(dataset, key, details)
    _general_image(dataset, number, details)
    _pixels(dataset, image, modality)
    _MODULES[modality](dataset, number, key, details)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _patient_and_study(dataset: Dataset, key: str, details: SeriesDetails) -> None:
    dataset.PatientName = details.patient.name
    dataset.PatientID = details.patient.identifier
    dataset.PatientBirthDate = details.patient.birth_date
    dataset.PatientSex = details.patient.sex
    dataset.StudyInstanceUID = _uid(key, "study")
    dataset.StudyDate = details.when.strftime("%Y%m%d")
    dataset.StudyTime = details.when.strftime("%H%M%S")
    dataset.StudyDescription = details.description[:64]
    dataset.StudyID = "1"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""


def _series_and_equipment(dataset: Dataset, key: str, details: SeriesDetails) -> None:
    dataset.Modality = details.modality.upper()
    dataset.SeriesInstanceUID = _uid(key, "series")
    dataset.SeriesNumber = 1
    dataset.SeriesDate, dataset.SeriesTime = dataset.StudyDate, dataset.StudyTime
    dataset.SeriesDescription = details.description[:64]
    dataset.BodyPartExamined = details.body_part.strip().upper()[:16]
    if dataset.BodyPartExamined not in UNPAIRED and dataset.Modality != "DX":  # DX has Image Laterality
        dataset.Laterality = details.laterality
    dataset.Manufacturer = "sim4seg-node"
    dataset.ManufacturerModelName = "make-dicom"


def _general_image(dataset: Dataset, number: int, details: SeriesDetails) -> None:
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.InstanceNumber = number
    dataset.ContentDate, dataset.ContentTime = dataset.StudyDate, dataset.StudyTime
    dataset.AcquisitionDate, dataset.AcquisitionTime = dataset.StudyDate, dataset.StudyTime
    dataset.ImageComments = details.comments
    dataset.BurnedInAnnotation = "NO"
    dataset.PatientOrientation = ""


def _pixels(dataset: Dataset, image: NDArray[np.uint8], modality: str) -> None:
    is_colour = image.ndim == 3 and modality in COLOUR_MODALITIES
    if modality in {"ES", "XC"} and image.ndim == 2:
        image, is_colour = np.repeat(image[..., np.newaxis], 3, axis=2), True
    if image.ndim == 3 and not is_colour:
        image = np.asarray(Image.fromarray(image).convert("L"))
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = image.shape[:2]
    bits = 16 if modality in {"MR", "CT"} else 8  # Source: PS3.3 C.8.3.1 and C.8.2.1, Bits Allocated
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0
    data = image.astype("<u2").tobytes() if bits == 16 else image.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"


def _ultrasound(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """Source: PS3.3 C.8.5.5 and C.8.5.6."""
    del number, key
    dataset.LossyImageCompression = "00"
    if details.spacing_mm is None:
        return
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = dataset.Columns - 1, dataset.Rows - 1
    region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 3, 3  # cm
    region.PhysicalDeltaX = details.spacing_mm[1] / 10
    region.PhysicalDeltaY = details.spacing_mm[0] / 10
    dataset.SequenceOfUltrasoundRegions = [region]


def _visible_light(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """Source: PS3.3 C.8.12.1."""
    del number, key
    dataset.LossyImageCompression = "00"
    dataset.AcquisitionContextSequence = []
    if details.spacing_mm is not None:
        dataset.PixelSpacing = list(details.spacing_mm)


def _radiograph(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """Source: PS3.3 C.8.11."""
    del number, key
    dataset.ImageType = ["DERIVED", "PRIMARY", ""]
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = details.laterality or "U"
    dataset.PatientOrientation = ["L", "F"]
    dataset.AnatomicRegionSequence = [_code_item(codes.REGIONS.get(dataset.BodyPartExamined, codes.BONE))]
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = list(_known_spacing(dataset, details))
    dataset.ViewPosition = ""
    dataset.AcquisitionContextSequence = []
    dataset.PositionerType = ""


def _magnetic_resonance(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """Source: PS3.3 C.8.3.1."""
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.ScanningSequence, dataset.SequenceVariant = "RM", "NONE"
    dataset.ScanOptions, dataset.MRAcquisitionType = "", "2D"
    dataset.EchoTime, dataset.EchoTrainLength, dataset.RepetitionTime = None, None, None
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    _plane(dataset, number, key, details)


def _computed_tomography(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """Source: PS3.3 C.8.2.1. The values are grey levels, not Hounsfield units, and Rescale Type says so."""
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.KVP, dataset.AcquisitionNumber = None, None
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    _plane(dataset, number, key, details)


def _plane(dataset: Dataset, number: int, key: str, details: SeriesDetails) -> None:
    """A stack along the patient's axis, first image at the origin. Source: PS3.3 C.7.6.2."""
    spacing = details.slice_spacing_mm or ASSUMED_SPACING_MM
    dataset.FrameOfReferenceUID = _uid(key, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = "HFS"
    dataset.PixelSpacing = list(_known_spacing(dataset, details))
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, round((number - 1) * spacing, 6)]
    dataset.SliceThickness = spacing


def _known_spacing(dataset: Dataset, details: SeriesDetails) -> tuple[float, float]:
    if details.spacing_mm is not None:
        return details.spacing_mm
    dataset.ImageComments += f" Pixel spacing is unknown; {ASSUMED_SPACING_MM} mm is assumed."
    return ASSUMED_SPACING_MM, ASSUMED_SPACING_MM


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


_MODULES: Final[dict[str, Callable[[Dataset, int, str, SeriesDetails], None]]] = {
    "US": _ultrasound,
    "ES": _visible_light,
    "XC": _visible_light,
    "DX": _radiograph,
    "MR": _magnetic_resonance,
    "CT": _computed_tomography,
}
