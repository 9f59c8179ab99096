"""7 SR. Findings and text -> Comprehensive 3D SR (TID 1500) that refers to the SEG.

With a region there is one measurement group in the shape of TID 1410: the outline on the key frame is its
Image Region, and every number is a child of that group, which is what OHIF 3.13 draws. Without a region there
is no measurement group at all (OHIF stops at a group without coordinates); the diagnosis then stands in the
Qualitative Evaluations of TID 1500.
"""

from collections.abc import Sequence
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
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
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node import codes
from dicom_node.context import Predecessor
from dicom_node.findings import Findings, Region
from dicom_node.frames import Frame, SourceSeries
from dicom_node.product import MANUFACTURER
from dicom_node.provenance import (
    RESEARCH_USE,
    UTF8,
    Provenance,
    latest_stamp,
    patient_and_study,
    stamp,
)
from dicom_node.regions import outline
from dicom_node.seg import SECONDARY_CAPTURE
from dicom_node.sr_measurements import measurements_of, percent
from dicom_node.sr_sources import image_library, name_all_sources

SERIES_NUMBER: Final = 9002
NOT_NORMAL: Final = "That nothing was outlined does not mean that the images are normal."
MAX_TEXT: Final = 4000  # characters of one text item


def build_report(
    series: SourceSeries,
    segmentations: Sequence[Dataset],
    findings: Findings,
    provenance: Provenance,
    variant: str = "",
) -> Dataset:
    """A Comprehensive 3D SR with the diagnosis, its reasons, and the region's outline and sizes.

    Parameters
    ----------
    segmentations : the SEGs that the numbers were taken from, all in one form; none where its reader has none
    variant : "" for the report that goes with BINARY SEGs; others have UIDs of their own

    Source: PS3.16 TID 1500, TID 1410, TID 4019; interop.md 4.6 for what OHIF needs.
    """
    some = _representatives(series, findings)
    report = _measurement_report(series, some, segmentations, findings, provenance)
    evidence = [*map(evidence_of, some), *segmentations]
    dataset = Comprehensive3DSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=provenance.uid(f"sr series {variant}".strip()),
        series_number=SERIES_NUMBER,
        sop_instance_uid=provenance.uid(f"sr {variant}".strip()),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        series_description=f"AI report{variant and ', '}{variant} (research use only)",
        is_complete=True,
        is_final=False,
        contributing_equipment=[provenance.equipment()],
    )
    name_all_sources(dataset, series)
    if provenance.context.predecessors:
        dataset.PredecessorDocumentsSequence = _predecessors(provenance.context.predecessors)
    stamp(dataset, provenance, latest_stamp(series.datasets))
    return dataset


def _predecessors(replaced: Sequence[Predecessor]) -> list[Dataset]:
    """Source: PS3.3 C.17.2 and C.17.2.1."""
    by_study: dict[str, dict[str, list[Dataset]]] = {}
    for each in replaced:
        reference = Dataset()
        reference.ReferencedSOPClassUID = each.sop_class_uid
        reference.ReferencedSOPInstanceUID = each.sop_instance_uid
        of_study = by_study.setdefault(each.study_instance_uid, {})
        of_study.setdefault(each.series_instance_uid, []).append(reference)
    return [_study_item(uid, by_series) for uid, by_series in by_study.items()]


def _study_item(study_instance_uid: str, by_series: dict[str, list[Dataset]]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(series)
    return study


def evidence_of(source: Dataset) -> Dataset:
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


def _representatives(series: SourceSeries, findings: Findings) -> list[Dataset]:
    """The key image and one of each series: what highdicom is shown, since it takes 5 ms an image."""
    chosen = {str(each.SeriesInstanceUID): str(each.SOPInstanceUID) for each in reversed(series.datasets)}
    uids = {*chosen.values(), str(findings.key.source.SOPInstanceUID)}
    return [each for each in series.datasets if str(each.SOPInstanceUID) in uids]


def _measurement_report(
    series: SourceSeries,
    some: Sequence[Dataset],
    segmentations: Sequence[Dataset],
    findings: Findings,
    provenance: Provenance,
) -> MeasurementReport:
    tracking = TrackingIdentifier(
        uid=provenance.uid("tracking"), identifier=f"{codes.target_of(findings.target).label} 1"
    )
    # highdicom insists on a group; without a region it gives way to the evaluations below
    group: PlanarROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations
    group = MeasurementsAndQualitativeEvaluations(tracking_identifier=tracking)
    if findings.region is not None:
        measurements = measurements_of(findings, findings.region, series.frames, segmentations)
        group = _region_group(findings, findings.region, measurements, provenance, tracking=tracking)
    report = MeasurementReport(
        observation_context=_observer(provenance),
        procedure_reported=codes.procedure_of(str(findings.key.source.get("Modality") or "")),
        imaging_measurements=[group],
    )
    content = report[0].ContentSequence
    if findings.region is None:
        content.pop()
        content.append(_evaluations(findings, provenance))
    content.insert(-1, image_library(some))
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
    measurements: list[Measurement],
    provenance: Provenance,
    *,
    tracking: TrackingIdentifier,
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    target = codes.target_of(findings.target)
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_region=_image_region(findings.key, region),
        finding_type=target.kind,
        finding_category=target.category,
        algorithm_id=_algorithm(provenance),
        finding_sites=[FindingSite(anatomic_location=codes.site_of(target, findings.body_part))],
        measurements=measurements,
        qualitative_evaluations=_coded(findings) or None,
    )
    group[0].ContentSequence.extend(_texts(findings))
    return group


def _coded(findings: Findings) -> list[QualitativeEvaluation]:
    """The model's diagnosis, and what follows from a measurement, as question and answer."""
    diagnosis = codes.DIAGNOSES.get(findings.diagnosis or "")
    said = [] if diagnosis is None else [QualitativeEvaluation(diagnosis.question, diagnosis.answer)]
    if findings.conclusion is not None:
        said.append(QualitativeEvaluation(findings.conclusion.question, findings.conclusion.answer))
    return said


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


def _texts(findings: Findings) -> list[TextContentItem]:
    items = [_text(codes.IMPRESSION, impression(findings))]
    if findings.conclusion is not None:
        items.append(_text(codes.CONCLUSION, findings.conclusion.text))
    reasons = findings.reasoning or findings.text  # an answer that was cut short is shown as it is
    if reasons:
        items.append(_text(codes.FINDING_TEXT, reasons))
    closing = (RESEARCH_USE,) if findings.region is not None else (NOT_NORMAL, RESEARCH_USE)
    items += [_text(codes.COMMENT, sentence) for sentence in (*findings.remarks, *closing)]
    return items


def impression(findings: Findings) -> str:
    """The diagnosis in one sentence, or that there is none."""
    if findings.ended is not None:
        return f"{findings.ended.words}: {findings.ended.reason}"
    if findings.diagnosis is None and findings.region is None:
        return "Analysed without finding. No diagnosis is made."
    if findings.diagnosis is None:
        return "No diagnosis is made by the model." if findings.conclusion else "No diagnosis is made."
    confidence = "" if findings.confidence is None else f" (confidence {findings.confidence:.2f})"
    return f"Diagnosis: {findings.diagnosis}{confidence}."


def _text(name: Code, value: str) -> TextContentItem:
    printable = "".join(character for character in value if character.isprintable())
    return TextContentItem(name, printable[:MAX_TEXT], RelationshipTypeValues.CONTAINS)


def _evaluations(findings: Findings, provenance: Provenance) -> ContainerContentItem:
    """TID 1500 row 12: what is said about the images as a whole, the first item naming the algorithm."""
    contains = RelationshipTypeValues.CONTAINS
    summary = CodeContentItem(codes.SUMMARY, _summary(findings), contains)
    summary.ContentSequence = ContentSequence(_algorithm(provenance))
    container = ContainerContentItem(name=codes.QUALITATIVE_EVALUATIONS, relationship_type=contains)
    container.ContentSequence = ContentSequence([summary, *_diagnosis(findings), *_texts(findings)])
    return container


def _summary(findings: Findings) -> Code:
    """Whether the analysis succeeded and found something; a disease that is absent is no finding."""
    if findings.ended is not None:
        return codes.NO_ALGORITHM_SUCCEEDED
    coded = codes.DIAGNOSES.get(findings.diagnosis or "")
    is_found = coded is not None and coded.answer != codes.ABSENT
    return codes.WITH_FINDINGS if is_found else codes.WITHOUT_FINDINGS


def _diagnosis(findings: Findings) -> list[CodeContentItem]:
    coded = codes.DIAGNOSES.get(findings.diagnosis or "")
    if coded is None:
        return []
    item = CodeContentItem(coded.question, coded.answer, RelationshipTypeValues.CONTAINS)
    if findings.confidence is not None:
        properties = RelationshipTypeValues.HAS_PROPERTIES
        value = percent(findings.confidence)
        certainty = NumContentItem(codes.CERTAINTY, value, codes.PERCENT, relationship_type=properties)
        item.ContentSequence = ContentSequence([certainty])
    return [item]
