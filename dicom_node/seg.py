"""7 SEG. Masks + plane geometry -> Segmentation instance; one segment, one SEG per series.

highdicom asks for sources that lie in one frame of reference. Ultrasound, endoscopy, photographs and most
radiographs do not, so each frame is shown to it as a single-frame stand-in; afterwards the references and the
geometry are replaced by the source's own, digit by digit. Where the source has no geometry, the SEG takes the
rows and columns of the image as its axes, without which OHIF 3.13 shows nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

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

SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
IMAGE_AXES: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PLACEHOLDER_MM: Final = 1.0
NOT_CALIBRATED: Final = "The image is not calibrated; the Pixel Spacing of this object is a placeholder."
MAX_DS: Final = 16  # Source: PS3.5 6.2
SERIES_NUMBER: Final = 9001


@dataclass(frozen=True)
class SegmentationRequest:
    """What the segment is called and where the object stands."""

    target: str | None
    body_part: str
    provenance: Provenance


def build_segmentation(
    series: SourceSeries, masks: Sequence[NDArray[np.bool_]], request: SegmentationRequest
) -> Dataset:
    """A BINARY Segmentation of `masks`, one (H, W) bool per frame of `series`; one must not be empty.

    Source: PS3.3 A.51 and C.8.20; interop.md 4.5 for what OHIF needs.
    """
    marked = [index for index, mask in enumerate(masks) if mask.any()]
    frames = [series.frames[index] for index in marked]
    has_geometry = _share_geometry(series.frames)
    sources = [_stand_in(frame, place, has_geometry, request) for place, frame in enumerate(frames)]
    dataset = _segmentation(sources, np.stack([masks[index] for index in marked]), request)
    _restore_geometry(dataset, sources, frames, has_geometry)
    _restore_references(dataset, sources, frames, series)
    _finish(dataset, series, request.provenance)
    return dataset


def _share_geometry(frames: Sequence[Frame]) -> bool:
    """Whether all frames lie in one frame of reference and have one orientation."""
    first = frames[0]
    uid = first.source.get("FrameOfReferenceUID")
    return bool(uid) and all(
        frame.orientation is not None
        and frame.source.get("FrameOfReferenceUID") == uid
        and np.allclose(frame.orientation, first.orientation or (), atol=1e-3)
        for frame in frames
    )


def _stand_in(frame: Frame, place: int, has_geometry: bool, request: SegmentationRequest) -> Dataset:
    """A single-frame source for highdicom; its place along the normal only keeps the order."""
    source = patient_and_study(frame.source)
    source.SpecificCharacterSet = UTF8
    source.SOPClassUID = SECONDARY_CAPTURE
    source.SOPInstanceUID = request.provenance.uid(f"stand-in {place}")
    source.SeriesInstanceUID = str(frame.source.SeriesInstanceUID)
    source.FrameOfReferenceUID = _frame_of_reference(frame, has_geometry, request.provenance)
    source.Modality = str(frame.source.get("Modality") or "OT")
    source.Rows, source.Columns = frame.size
    source.PixelSpacing, source.SliceThickness = [1.0, 1.0], 1.0
    source.ImageOrientationPatient = list(IMAGE_AXES)
    source.ImagePositionPatient = [0.0, 0.0, -float(place)]  # highdicom sorts against this normal
    for keyword in ("Manufacturer", "ManufacturerModelName", "LossyImageCompression"):
        if frame.source.get(keyword):
            setattr(source, keyword, frame.source[keyword].value)
    return source


def _frame_of_reference(frame: Frame, has_geometry: bool, provenance: Provenance) -> str:
    own = frame.source.get("FrameOfReferenceUID")
    return str(own) if own and has_geometry else provenance.uid("frame of reference")


def _segmentation(
    sources: Sequence[Dataset], masks: NDArray[np.bool_], request: SegmentationRequest
) -> Segmentation:
    provenance = request.provenance
    segment = _segment(request)
    return Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=provenance.uid("seg series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=provenance.uid("seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        content_label="AI_SEGMENTATION",
        content_description=f"{segment.SegmentLabel[:23]}. {RESEARCH_USE}"[:64],
        series_description=f"AI {segment.SegmentLabel} (research use only)"[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        contributing_equipment=[provenance.equipment()],
    )


def _segment(request: SegmentationRequest) -> SegmentDescription:
    target = codes.target_of(request.target)
    model = request.provenance.model
    return SegmentDescription(
        segment_number=1,
        segment_label=target.label,
        segmented_property_category=target.category,
        segmented_property_type=target.kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=model.name,
            family=codes.ARTIFICIAL_INTELLIGENCE,
            version=model.version,
            source=MANUFACTURER,
            parameters={"package sha256": model.digest},
        ),
        tracking_uid=request.provenance.uid("tracking"),
        tracking_id=f"{target.label} 1",
        anatomic_regions=[codes.site_of(target, request.body_part)],
        display_color=CIELabColor(*target.colour_lab),
    )


def _restore_geometry(
    dataset: Dataset, sources: Sequence[Dataset], frames: Sequence[Frame], has_geometry: bool
) -> None:
    """Put the source's own digits in place of the stand-ins'. OHIF compares them (interop.md 4.5.4)."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    del shared.PixelMeasuresSequence
    first = frames[0]
    shared.PixelMeasuresSequence = [_pixel_measures(first)]
    if first.spacing_mm is None:
        dataset.SegmentSequence[0].SegmentDescription = NOT_CALIBRATED
    if not has_geometry:
        return
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = _decimals(first.orientation or ())
    place = {str(source.SOPInstanceUID): frame for source, frame in zip(sources, frames, strict=True)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = place[str(reference.ReferencedSOPInstanceUID)]
        group.PlanePositionSequence[0].ImagePositionPatient = _decimals(frame.position or ())


def _pixel_measures(frame: Frame) -> Dataset:
    """Placeholders where the source says nothing: OHIF 3.13 stops without this group, and both are type 1."""
    measures = Dataset()
    measures.PixelSpacing = _decimals(frame.spacing_mm or (PLACEHOLDER_MM, PLACEHOLDER_MM))
    measures.SliceThickness = frame.slice_thickness_mm or PLACEHOLDER_MM
    return measures


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    """Decimal strings as in the source; only what is longer than the 16 characters of a DS is rounded."""
    return [DSfloat(value, auto_format=len(str(value)) > MAX_DS) for value in values]


def _restore_references(
    dataset: Dataset, sources: Sequence[Dataset], frames: Sequence[Frame], series: SourceSeries
) -> None:
    """Point every reference from the stand-ins to the source instances and their frames."""
    place = {str(source.SOPInstanceUID): frame for source, frame in zip(sources, frames, strict=True)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for reference in derivation.SourceImageSequence:
                _point_to(reference, place[str(reference.ReferencedSOPInstanceUID)])
    referenced = Dataset()
    referenced.SeriesInstanceUID = str(frames[0].source.SeriesInstanceUID)
    referenced.ReferencedInstanceSequence = DicomSequence([_reference(source) for source in series.datasets])
    dataset.ReferencedSeriesSequence = [referenced]
    for keyword in ("SourceImageSequence", "ReferencedImageSequence"):
        if keyword in dataset:
            del dataset[keyword]


def _point_to(reference: Dataset, frame: Frame) -> None:
    reference.ReferencedSOPClassUID = frame.source.SOPClassUID
    reference.ReferencedSOPInstanceUID = frame.source.SOPInstanceUID
    if frame.frame_number is not None:
        reference.ReferencedFrameNumber = frame.frame_number


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def _finish(dataset: Dataset, series: SourceSeries, provenance: Provenance) -> None:
    organisation = provenance.uid("dimension organisation")
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = organisation
    for index in dataset.DimensionIndexSequence:
        index.DimensionOrganizationUID = organisation
    if "DimensionOrganizationType" in dataset:
        del dataset.DimensionOrganizationType
    dataset.SpecificCharacterSet = UTF8
    stamp(dataset, provenance, latest_date_and_time(series.datasets))
