"""7 SR. Findings and text -> Comprehensive 3D SR (TID 1500) that refers to the SEG.

With a region there is one measurement group in the shape of TID 1410: the outline on the key frame is its
Image Region, and every number is a child of that group, which is what OHIF 3.13 draws. Without a region there
is no measurement group at all (OHIF stops at a group without coordinates); the diagnosis then stands in the
Qualitative Evaluations of TID 1500.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurement,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node import codes
from dicom_node.frames import Frame, SourceSeries
from dicom_node.provenance import (
    MANUFACTURER,
    RESEARCH_USE,
    UTF8,
    Provenance,
    latest_date_and_time,
    patient_and_study,
    stamp,
)
from dicom_node.regions import Measures, outline
from dicom_node.seg import SECONDARY_CAPTURE

SERIES_NUMBER: Final = 9002
MAX_TEXT: Final = 4000  # characters of one text item


@dataclass(frozen=True, eq=False)
class Region:
    """What was outlined and how large it is."""

    mask: NDArray[np.bool_]  # (H, W) of the key frame
    measures: Measures
    volume_ml: float | None  # None where the frames are no stack


@dataclass(frozen=True, eq=False)
class Findings:
    """What the report says."""

    target: str | None
    body_part: str
    diagnosis: str | None
    confidence: float | None  # 0..1
    text: str
    reasoning: str
    key: Frame
    region: Region | None  # on the key frame
    remarks: tuple[str, ...]  # sentences a reader must know, e.g. what was left out


def build_report(
    series: SourceSeries, segmentation: Dataset | None, findings: Findings, provenance: Provenance
) -> Dataset:
    """A Comprehensive 3D SR with the diagnosis, its reasons, and the region's outline and sizes.

    Source: PS3.16 TID 1500, TID 1410, TID 4019; interop.md 4.6 for what OHIF needs.
    """
    report = _measurement_report(series, segmentation, findings, provenance)
    sources = [_evidence(source) for source in series.datasets]
    evidence = sources if segmentation is None else [*sources, segmentation]
    dataset = Comprehensive3DSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=provenance.uid("sr series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=provenance.uid("sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        series_description="AI report (research use only)",
        is_complete=True,
        is_final=False,
        contributing_equipment=[provenance.equipment()],
    )
    _restore_classes(dataset, series)
    stamp(dataset, provenance, latest_date_and_time(series.datasets))
    return dataset


def _restore_classes(report: Dataset, series: SourceSeries) -> None:
    classes = {str(source.SOPInstanceUID): source.SOPClassUID for source in series.datasets}
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for referenced in study.ReferencedSeriesSequence:
            for instance in referenced.ReferencedSOPSequence:
                uid = str(instance.ReferencedSOPInstanceUID)
                instance.ReferencedSOPClassUID = classes.get(uid, instance.ReferencedSOPClassUID)


def _evidence(source: Dataset) -> Dataset:
    """What highdicom reads of a source: whose it is, and what an image library entry says."""
    evidence = patient_and_study(source)
    evidence.SpecificCharacterSet = UTF8
    evidence.SOPClassUID = SECONDARY_CAPTURE  # highdicom does not know every retired class
    evidence.SOPInstanceUID = str(source.SOPInstanceUID)
    evidence.SeriesInstanceUID = str(source.SeriesInstanceUID)
    for keyword in ("Rows", "Columns", "NumberOfFrames", "Manufacturer", "ManufacturerModelName"):
        if source.get(keyword):
            setattr(evidence, keyword, source[keyword].value)
    evidence.Modality = str(source.get("Modality") or "OT")
    return evidence


def _measurement_report(
    series: SourceSeries, segmentation: Dataset | None, findings: Findings, provenance: Provenance
) -> MeasurementReport:
    tracking = TrackingIdentifier(
        uid=provenance.uid("tracking"), identifier=f"{codes.target_of(findings.target).label} 1"
    )
    # highdicom insists on a group; without a region it gives way to the evaluations below
    group: PlanarROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations
    group = MeasurementsAndQualitativeEvaluations(tracking_identifier=tracking)
    has_region = findings.region is not None and segmentation is not None
    if findings.region is not None and segmentation is not None:
        group = _region_group(findings, findings.region, segmentation, provenance, tracking=tracking)
    report = MeasurementReport(
        observation_context=_observer(provenance),
        procedure_reported=codes.procedure_of(str(findings.key.source.get("Modality") or "")),
        imaging_measurements=[group],
    )
    content = report[0].ContentSequence
    if not has_region:
        content.pop()
        content.append(_evaluations(findings, provenance))
    content.insert(-1, _image_library(series))
    return report


def _observer(provenance: Provenance) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=provenance.equipment().DeviceUID,
        name=provenance.model.name[:64],
        manufacturer_name=MANUFACTURER,
        model_name=provenance.model.name[:64],
        serial_number=provenance.model.digest[:64],
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=CodedConcept.from_code(codes.DEVICE), observer_identifying_attributes=device
        )
    )


def _algorithm(provenance: Provenance) -> AlgorithmIdentification:
    """The clinical question is a parameter of the algorithm. Source: PS3.16 TID 4019."""
    return AlgorithmIdentification(
        name=provenance.model.name,
        version=provenance.model.version,
        parameters=[f"query: {provenance.query}"[:1024], f"package sha256: {provenance.model.digest}"],
    )


def _region_group(
    findings: Findings,
    region: Region,
    segmentation: Dataset,
    provenance: Provenance,
    *,
    tracking: TrackingIdentifier,
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    target = codes.target_of(findings.target)
    coded = codes.DIAGNOSES.get(findings.diagnosis or "")
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_region=_image_region(findings.key, region),
        finding_type=target.kind,
        finding_category=target.category,
        algorithm_id=_algorithm(provenance),
        finding_sites=[FindingSite(anatomic_location=codes.site_of(target, findings.body_part))],
        measurements=_measurements(findings, region, segmentation),
        qualitative_evaluations=[QualitativeEvaluation(coded.question, coded.answer)] if coded else None,
    )
    group[0].ContentSequence.extend(_texts(findings))
    return group


def _image_region(key: Frame, region: Region) -> ImageRegion:
    image_region = ImageRegion(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=outline(region.mask),
        source_image=SourceImageForRegion(
            referenced_sop_class_uid=SECONDARY_CAPTURE,  # highdicom does not know every retired class
            referenced_sop_instance_uid=key.source.SOPInstanceUID,
        ),
    )
    reference = image_region.ContentSequence[0].ReferencedSOPSequence[0]
    reference.ReferencedSOPClassUID = key.source.SOPClassUID
    if key.frame_number is not None:
        reference.ReferencedFrameNumber = key.frame_number
    return image_region


def _measurements(findings: Findings, region: Region, segmentation: Dataset) -> list[Measurement]:
    sizes = region.measures
    key = _made_from(segmentation, _segmentation_frame(segmentation, findings.key))
    length = codes.MILLIMETRE if sizes.is_calibrated else codes.PIXELS
    measured = [
        Measurement(codes.AREA, *_area(sizes), referenced_images=[key]),
        Measurement(codes.LONG_AXIS, _rounded(sizes.long_axis), length, referenced_images=[key]),
        Measurement(codes.SHORT_AXIS, _rounded(sizes.short_axis), length, referenced_images=[key]),
    ]
    if region.volume_ml is not None:
        volume, whole = _rounded(region.volume_ml), _made_from(segmentation, None)
        measured.append(Measurement(codes.VOLUME, volume, codes.CUBIC_CENTIMETRE, referenced_images=[whole]))
    if findings.confidence is not None:
        measured.append(Measurement(codes.CERTAINTY, _percent(findings.confidence), codes.PERCENT))
    return measured


def _area(sizes: Measures) -> tuple[float, Code]:
    if sizes.area_mm2 is None:
        return float(sizes.area_px), codes.PIXELS
    return _rounded(sizes.area_mm2), codes.SQUARE_MILLIMETRE


def _made_from(segmentation: Dataset, frame: int | None) -> SourceImageForMeasurement:
    """Which frame of the SEG (None: all of them) a number was taken from."""
    return SourceImageForMeasurement(
        referenced_sop_class_uid=segmentation.SOPClassUID,
        referenced_sop_instance_uid=segmentation.SOPInstanceUID,
        referenced_frame_numbers=None if frame is None else [frame],
    )


def _percent(confidence: float) -> float:
    return round(confidence * 100, 1)


def _rounded(value: float) -> float:
    """Four significant digits: a mask of pixels has no more."""
    return float(f"{value:.4g}") if value < 10000 else float(round(value))


def _segmentation_frame(segmentation: Dataset, key: Frame) -> int:
    """The 1-based frame of the SEG that was made from the key frame."""
    wanted = (str(key.source.SOPInstanceUID), key.frame_number)
    for number, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence, start=1):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        if (str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")) == wanted:
            return number
    raise ValueError("the segmentation has no frame for the key frame")


def _texts(findings: Findings) -> list[TextContentItem]:
    items = [_text(codes.IMPRESSION, _impression(findings))]
    reasons = findings.reasoning or findings.text  # an answer that was cut short is shown as it is
    if reasons:
        items.append(_text(codes.FINDING_TEXT, reasons))
    items += [_text(codes.COMMENT, sentence) for sentence in (*findings.remarks, RESEARCH_USE)]
    return items


def _impression(findings: Findings) -> str:
    if findings.diagnosis is None:
        return "No diagnosis is made."
    confidence = "" if findings.confidence is None else f" (confidence {findings.confidence:.2f})"
    return f"Diagnosis: {findings.diagnosis}{confidence}."


def _text(name: Code, value: str) -> TextContentItem:
    printable = "".join(character for character in value if character.isprintable())
    return TextContentItem(name, printable[:MAX_TEXT], RelationshipTypeValues.CONTAINS)


def _evaluations(findings: Findings, provenance: Provenance) -> ContainerContentItem:
    """TID 1500 row 12: what is said about the images as a whole, the first item naming the algorithm."""
    items: list[ContentItem] = list(_texts(findings))
    coded = codes.DIAGNOSES.get(findings.diagnosis or "")
    if coded is not None:
        items.insert(0, CodeContentItem(coded.question, coded.answer, RelationshipTypeValues.CONTAINS))
    items[0].ContentSequence = ContentSequence(_algorithm(provenance))
    if coded is not None and findings.confidence is not None:
        properties = RelationshipTypeValues.HAS_PROPERTIES
        percent = _percent(findings.confidence)
        certainty = NumContentItem(codes.CERTAINTY, percent, codes.PERCENT, relationship_type=properties)
        items[0].ContentSequence.append(certainty)
    container = ContainerContentItem(
        name=codes.QUALITATIVE_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(items)
    return container


def _image_library(series: SourceSeries) -> ContainerContentItem:
    """One entry per source instance. Source: PS3.16 TID 1600, 1601, 1602."""
    library = ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type=RelationshipTypeValues.CONTAINS)
    group = ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type=RelationshipTypeValues.CONTAINS)
    group.ContentSequence = ContentSequence([_library_entry(source) for source in series.datasets])
    library.ContentSequence = ContentSequence([group])
    return library


def _library_entry(source: Dataset) -> ImageContentItem:
    context = RelationshipTypeValues.HAS_ACQ_CONTEXT
    modality = codes.MODALITIES.get(str(source.get("Modality") or ""), codes.OTHER_MODALITY)
    entry = ImageContentItem(
        name=codes.SOURCE,
        referenced_sop_class_uid=source.SOPClassUID,
        referenced_sop_instance_uid=source.SOPInstanceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    entry.ContentSequence = ContentSequence(
        [
            CodeContentItem(codes.MODALITY, modality, context),
            NumContentItem(codes.PIXEL_DATA_ROWS, int(source.Rows), codes.PIXELS, relationship_type=context),
            NumContentItem(
                codes.PIXEL_DATA_COLUMNS, int(source.Columns), codes.PIXELS, relationship_type=context
            ),
        ]
    )
    return entry
