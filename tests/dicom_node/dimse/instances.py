"""Small DICOM instances and a node around them, for the tests of the door."""

from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from dicom_node.settings import NodeSettings

CT = "1.2.840.10008.5.1.4.1.1.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
COMPRESSED = (JPEGLSLossless, RLELossless)


def make_data_set(sop_class: str = CT, **attributes: object) -> Dataset:
    """A data set without pixels, with every UID it needs."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^Ännchen"
    dataset.PatientID = "MRN-1"
    dataset.Modality = "CT"
    dataset.StudyDate = "20260102"
    dataset.StudyTime = "101500"
    dataset.AccessionNumber = "A-77"
    dataset.SeriesNumber = 3
    dataset.InstanceNumber = 1
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return with_meta(dataset, ExplicitVRLittleEndian)


def with_meta(dataset: Dataset, syntax: str) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def make_image(
    frames: int = 1,
    rows: int = 8,
    columns: int = 6,
    syntax: str = ExplicitVRLittleEndian,
    **attributes: object,
) -> Dataset:
    """A 16-bit grey image whose every pixel is another number."""
    dataset = make_data_set(**{"sop_class": CT, **attributes})
    pixels = np.arange(frames * rows * columns, dtype="<u2").reshape(frames, rows, columns)
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    dataset.PixelSpacing = ["0.5", "0.25"]
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    if syntax in COMPRESSED:
        dataset.compress(syntax, pixels if frames > 1 else pixels[0], generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def make_bits(frames: int = 3, rows: int = 5, columns: int = 5) -> tuple[Dataset, np.ndarray]:
    """A 1-bit segmentation whose frames do not begin on a byte, and its pixels (frames, rows, columns)."""
    mask = np.random.default_rng(7).integers(0, 2, (frames, rows, columns), dtype=np.uint8)
    dataset = make_data_set(SEGMENTATION, Modality="SEG")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    packed = np.packbits(mask.reshape(-1), bitorder="little").tobytes()
    dataset.PixelData = packed + bytes(len(packed) % 2)
    return dataset, mask


def part10(dataset: Dataset) -> bytes:
    """The whole file."""
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def data_set_bytes(file: bytes) -> bytes:
    """What follows the File Meta Information."""
    length = dcmread(BytesIO(file), stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return file[128 + 4 + 12 + length :]


def save(dataset: Dataset, folder: Path, name: str = "") -> Path:
    path = folder / (name or f"{dataset.SOPInstanceUID}.dcm")
    path.write_bytes(part10(dataset))
    return path


def make_settings(home: Path, database_url: str, files_root: Path, **sections: object) -> NodeSettings:
    """Settings of a node in `home`; `sections` as in the configuration file."""
    storage = {"database_url": database_url, "files_root": files_root}
    return NodeSettings(home=home, **{"limits": {"min_free_mb": 0}, **sections, "storage": storage})


__all__ = [
    "BASIC_TEXT_SR", "COMPRESSED", "CT", "ENCAPSULATED_PDF", "SEGMENTATION", "ULTRASOUND",
    "DeflatedExplicitVRLittleEndian", "data_set_bytes", "make_bits", "make_data_set", "make_image",
    "make_settings", "part10", "save", "with_meta",
]  # fmt: skip
