"""What the forms beside SEG and SR have in common: whose images, which model, when, which series."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.forms.content import Content, KeyImage
from dicom_node.forms.form import Form
from dicom_node.frames import Frame
from dicom_node.product import MANUFACTURER
from dicom_node.provenance import UTF8, latest_stamp, patient_and_study, stamp


@dataclass(frozen=True)
class Label:
    """What an object is called and where it stands in its study."""

    form: Form
    sop_class_uid: str
    modality: str
    series_number: int
    series_description: str  # says that it is for research use only


def new_object(content: Content, label: Label) -> Dataset:
    """A data set with everything but its own content; the same inputs give the same again.

    Source: PS3.3 C.7.1 to C.7.5, C.12.1.
    """
    provenance = content.provenance
    dataset = patient_and_study(content.findings.key.source)
    dataset.SpecificCharacterSet = UTF8
    dataset.SOPClassUID = UID(label.sop_class_uid)
    dataset.SOPInstanceUID = provenance.uid(str(label.form))
    dataset.SeriesInstanceUID = provenance.uid(f"{label.form} series")
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = label.modality, label.series_number, 1
    dataset.SeriesDescription = label.series_description
    side = str(content.findings.key.source.get("Laterality") or "")
    dataset.Laterality = side if side in {"L", "R"} else None
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = provenance.model.name[:64]
    dataset.SoftwareVersions = provenance.model.version[:64]
    dataset.DeviceSerialNumber = provenance.model.digest[:64]
    dataset.ContributingEquipmentSequence = [provenance.equipment()]
    stamp(dataset, provenance, latest_stamp(content.series.datasets))
    dataset.file_meta = _meta(dataset)
    return dataset


def _meta(dataset: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def references(images: Sequence[KeyImage]) -> list[Dataset]:
    """One reference an instance, with the frames that are meant. Source: PS3.3 Table 10-3."""
    by_uid: dict[str, list[Frame]] = {}
    for image in images:
        by_uid.setdefault(str(image.frame.source.SOPInstanceUID), []).append(image.frame)
    return [reference(frames) for frames in by_uid.values()]


def reference(frames: Sequence[Frame]) -> Dataset:
    """A reference to these frames of one instance."""
    item = Dataset()
    item.ReferencedSOPClassUID = frames[0].source.SOPClassUID
    item.ReferencedSOPInstanceUID = frames[0].source.SOPInstanceUID
    numbers = [frame.frame_number for frame in frames if frame.frame_number is not None]
    if numbers:
        item.ReferencedFrameNumber = numbers
    return item


def by_series(images: Iterable[KeyImage]) -> dict[str, list[KeyImage]]:
    """Key images by the UID of their series: the slices of a heart may lie in several."""
    found: dict[str, list[KeyImage]] = {}
    for image in images:
        found.setdefault(str(image.frame.source.SeriesInstanceUID), []).append(image)
    return found


def code_item(code: Code) -> Dataset:
    """A coded entry. Source: PS3.3 Table 8.8-1."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
