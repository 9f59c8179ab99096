"""KOS: which images show what was found, for a PACS that opens a study at its key images."""

from typing import Final

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept, DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom.dataset import Dataset

from dicom_node import codes
from dicom_node.forms.content import Content, key_images
from dicom_node.forms.envelope import references
from dicom_node.product import MANUFACTURER
from dicom_node.provenance import RESEARCH_USE, latest_stamp, stamp
from dicom_node.sr import evidence_of, impression
from dicom_node.sr_sources import restore_classes

SERIES_NUMBER: Final = 9005


def build_key_objects(content: Content) -> Dataset:
    """A Key Object Selection "Of Interest". Source: PS3.3 A.35.4, PS3.16 TID 2010."""
    provenance, images = content.provenance, key_images(content)
    sources = {str(image.frame.source.SOPInstanceUID): image.frame.source for image in images}
    evidence = [evidence_of(source) for source in sources.values()]
    selection = KeyObjectSelection(
        document_title=codes.OF_INTEREST,
        referenced_objects=evidence,
        observer_device_context=_observer(content),
        description=f"{impression(content.findings)} {RESEARCH_USE}",
    )
    document = KeyObjectSelectionDocument(
        evidence=evidence,
        content=selection,
        series_instance_uid=provenance.uid("KOS series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=provenance.uid("KOS"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        series_description="AI key image selection (research use only)",
        contributing_equipment=[provenance.equipment()],
    )
    restore_classes(document, content.series)
    _name_frames(document, references(images))
    stamp(document, provenance, latest_stamp(content.series.datasets))
    return document


def _observer(content: Content) -> ObserverContext:
    """The model, which chose them. Source: PS3.16 TID 1004."""
    model = content.provenance.model
    return ObserverContext(
        observer_type=CodedConcept.from_code(codes.DEVICE),
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=content.provenance.device_uid, name=model.name[:64], manufacturer_name=MANUFACTURER
        ),
    )


def _name_frames(document: Dataset, wanted: list[Dataset]) -> None:
    """highdicom names whole instances, by the classes that it knows."""
    by_uid = {str(item.ReferencedSOPInstanceUID): item for item in wanted}
    for item in document.ContentSequence:
        if item.ValueType == "IMAGE":
            uid = str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            item.ReferencedSOPSequence[0].update(by_uid[uid])
