"""7 SR, its sources: the image library and the evidence, in which every image of the series is named."""

from collections.abc import Sequence

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from dicom_node import codes
from dicom_node.frames import SourceSeries


def name_all_sources(report: Dataset, series: SourceSeries) -> None:
    """Put every image of `series` where a report that highdicom made names some of them.

    Entries of images of one kind share what they have in common.
    """
    group = _library_group(report)
    kinds: dict[tuple[str, ...], Dataset] = {}
    group["ContentSequence"].value = DicomSequence([_entry(source, kinds) for source in series.datasets])
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for referenced in study.ReferencedSeriesSequence:
            own = [each for each in series.datasets if each.SeriesInstanceUID == referenced.SeriesInstanceUID]
            if own:
                referenced.ReferencedSOPSequence = [_reference(source) for source in own]


def _library_group(report: Dataset) -> Dataset:
    library = next(
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == codes.IMAGE_LIBRARY.value
    )
    group: Dataset = library.ContentSequence[0]
    return group


def _entry(source: Dataset, kinds: dict[tuple[str, ...], Dataset]) -> Dataset:
    kind = tuple(str(source.get(name)) for name in ("Modality", "Rows", "Columns"))
    if kind not in kinds:
        kinds[kind] = _library_entry(source)
    entry = Dataset()
    entry.update(kinds[kind])
    del entry.ReferencedSOPSequence  # an assignment would change the element that all of the kind share
    entry.ReferencedSOPSequence = [_reference(source)]
    return entry


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def restore_classes(report: Dataset, series: SourceSeries) -> None:
    """Put the sources' own SOP Classes where `evidence_of` had to name another."""
    classes = {str(source.SOPInstanceUID): source.SOPClassUID for source in series.datasets}
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for referenced in study.ReferencedSeriesSequence:
            for instance in referenced.ReferencedSOPSequence:
                uid = str(instance.ReferencedSOPInstanceUID)
                instance.ReferencedSOPClassUID = classes.get(uid, instance.ReferencedSOPClassUID)


def image_library(sources: Sequence[Dataset]) -> ContainerContentItem:
    """One entry per source instance. Source: PS3.16 TID 1600, 1601, 1602."""
    library = ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type=RelationshipTypeValues.CONTAINS)
    group = ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type=RelationshipTypeValues.CONTAINS)
    group.ContentSequence = ContentSequence([_library_entry(source) for source in sources])
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
