"""7 SEG. Masks + plane geometry -> Segmentation instance; one segment, one SEG per series, in three forms.

highdicom asks for sources that lie in one frame of reference. Ultrasound, endoscopy, photographs and most
radiographs do not, so it is shown one stand-in of a single frame; every frame is then written with its
references and its geometry, the source's own digit by digit. Where the source has no geometry, the SEG
takes the rows and columns of the image as its axes, without which OHIF 3.13 shows nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationFractionalTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from dicom_node import codes
from dicom_node.forms.form import Form
from dicom_node.forms.segmentation import ENCODINGS, FULL
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
    part: str = ""  # of a result over several series: which of them, since each has its own SEG
    form: Form = Form.SEG

    def uid(self, kind: str) -> str:
        """The UID of one part of this object."""
        form = "" if self.form is Form.SEG else f"{self.form} "
        return self.provenance.uid(f"{kind} {form}{self.part}".strip())


def build_segmentation(
    series: SourceSeries, masks: Sequence[NDArray[np.bool_]], request: SegmentationRequest
) -> Dataset:
    """A Segmentation of `masks`, one (H, W) bool per frame of `series`; one must not be empty.

    Source: PS3.3 A.51 and C.8.20; interop.md 4.5 for what OHIF needs.
    """
    encoding = ENCODINGS[request.form]
    marked = [index for index, mask in enumerate(masks) if mask.any()]
    frames = [series.frames[index] for index in marked]
    has_geometry = _share_geometry(series.frames)
    source = _stand_in(frames[0], has_geometry, request)
    dataset = _plain(_segmentation(source, masks[marked[0]], request))
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = encoding.pixels([masks[index] for index in marked])
    _set_frames(dataset, frames, has_geometry=has_geometry, names_segment=encoding.names_segment)
    _put_background_last(dataset)
    _set_shared(dataset, frames[0], has_geometry=has_geometry)
    _set_references(dataset, series)
    _finish(dataset, series, request)
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


def _stand_in(frame: Frame, has_geometry: bool, request: SegmentationRequest) -> Dataset:
    """A single-frame source for highdicom, in the image's own axes."""
    source = patient_and_study(frame.source)
    source.SpecificCharacterSet = UTF8
    source.SOPClassUID = SECONDARY_CAPTURE
    source.SOPInstanceUID = request.uid("stand-in")
    source.SeriesInstanceUID = str(frame.source.SeriesInstanceUID)
    source.FrameOfReferenceUID = _frame_of_reference(frame, has_geometry, request.provenance)
    source.Modality = str(frame.source.get("Modality") or "OT")
    source.Rows, source.Columns = frame.size
    source.PixelSpacing, source.SliceThickness = [1.0, 1.0], 1.0
    source.ImageOrientationPatient = list(IMAGE_AXES)
    source.ImagePositionPatient = [0.0, 0.0, 0.0]
    for keyword in ("Manufacturer", "ManufacturerModelName", "LossyImageCompression"):
        if frame.source.get(keyword):
            setattr(source, keyword, frame.source[keyword].value)
    return source


def _frame_of_reference(frame: Frame, has_geometry: bool, provenance: Provenance) -> str:
    own = frame.source.get("FrameOfReferenceUID")
    return str(own) if own and has_geometry else provenance.uid("frame of reference")


def _segmentation(source: Dataset, mask: NDArray[np.bool_], request: SegmentationRequest) -> Segmentation:
    """The SEG of one frame: what all frames share is highdicom's, the frames follow in _set_frames."""
    provenance = request.provenance
    encoding, segment = ENCODINGS[request.form], describe_segment(request)
    return Segmentation(
        source_images=[source],
        pixel_array=encoding.stands_in(mask)[np.newaxis],
        segmentation_type=encoding.type,
        segment_descriptions=[segment],
        series_instance_uid=request.uid("seg series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=request.uid("seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        content_label="AI_SEGMENTATION",
        content_description=f"{segment.SegmentLabel[:23]}. {RESEARCH_USE}"[:64],
        series_description=_series_description(segment.SegmentLabel, request.form),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        contributing_equipment=[provenance.equipment()],
        fractional_type=SegmentationFractionalTypeValues.OCCUPANCY,  # inside is occupied wholly
        max_fractional_value=FULL,
    )


def _series_description(label: str, form: Form) -> str:
    """What a viewer's list shows; forms beside BINARY are named, since one study may hold several here."""
    named = label if form is Form.SEG else f"{label}, {form}"
    return f"AI {named[:41]} (research use only)"


def describe_segment(request: SegmentationRequest) -> SegmentDescription:
    """The one segment: what it shows in codes, who outlined it, how it is coloured."""
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


def _plain(segmentation: Segmentation) -> Dataset:
    """Without what highdicom remembers of the one frame beside the attributes."""
    dataset = Dataset()
    dataset.update(segmentation)
    dataset.file_meta = segmentation.file_meta
    return dataset


def _set_frames(
    dataset: Dataset, frames: Sequence[Frame], *, has_geometry: bool, names_segment: bool
) -> None:
    """One group a frame, with its place and its source; `dicom-node bench seg` says why not highdicom."""
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(
        [
            _frame_groups(frame, place, has_geometry=has_geometry, names_segment=names_segment)
            for place, frame in enumerate(frames)
        ]
    )


def _frame_groups(frame: Frame, place: int, *, has_geometry: bool, names_segment: bool) -> Dataset:
    """The source's own digits where it has a place: OHIF compares them (interop.md 4.5.4)."""
    groups, content, position, segment = Dataset(), Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [1, place + 1] if names_segment else [place + 1]
    own = _decimals(frame.position or ())
    position.ImagePositionPatient = own if has_geometry else [0.0, 0.0, -float(place)]
    segment.ReferencedSegmentNumber = 1
    groups.DerivationImageSequence = [_derivation(frame)]
    groups.FrameContentSequence = [content]
    groups.PlanePositionSequence = [position]
    if names_segment:
        groups.SegmentIdentificationSequence = [segment]
    return groups


def _derivation(frame: Frame) -> Dataset:
    """Source: PS3.3 C.7.6.16.2.6."""
    image = _reference(frame.source)
    if frame.frame_number is not None:
        image.ReferencedFrameNumber = frame.frame_number
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [_code(codes.SOURCE_IMAGE)]
    derivation = Dataset()
    derivation.SourceImageSequence = [image]
    derivation.DerivationCodeSequence = [_code(codes.SEGMENTATION)]
    return derivation


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


def _set_shared(dataset: Dataset, first: Frame, *, has_geometry: bool) -> None:
    """What every frame has in common. Which of one frame's groups highdicom calls shared does not matter."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = Dataset()
    orientation.ImageOrientationPatient = _decimals((first.orientation or ()) if has_geometry else IMAGE_AXES)
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [_pixel_measures(first)]
    for keyword in ("PlanePositionSequence", "SegmentIdentificationSequence", "DerivationImageSequence"):
        if keyword in shared:
            del shared[keyword]
    if first.spacing_mm is None:
        dataset.SegmentSequence[0].SegmentDescription = NOT_CALIBRATED


def _pixel_measures(frame: Frame) -> Dataset:
    """Placeholders where the source says nothing: OHIF 3.13 stops without this group, and both are type 1."""
    measures = Dataset()
    measures.PixelSpacing = _decimals(frame.spacing_mm or (PLACEHOLDER_MM, PLACEHOLDER_MM))
    measures.SliceThickness = frame.slice_thickness_mm or PLACEHOLDER_MM
    return measures


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    """Decimal strings as in the source; only what is longer than the 16 characters of a DS is rounded."""
    return [DSfloat(value, auto_format=len(str(value)) > MAX_DS) for value in values]


def _set_references(dataset: Dataset, series: SourceSeries) -> None:
    """Every instance of the series, and nothing of highdicom's stand-in."""
    referenced = Dataset()
    referenced.SeriesInstanceUID = str(series.frames[0].source.SeriesInstanceUID)
    referenced.ReferencedInstanceSequence = DicomSequence([_reference(source) for source in series.datasets])
    dataset.ReferencedSeriesSequence = [referenced]
    for keyword in ("SourceImageSequence", "ReferencedImageSequence"):
        if keyword in dataset:
            del dataset[keyword]


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def _put_background_last(dataset: Dataset) -> None:
    """Of a label map: OHIF gives colours by place and labels by number (interop.md 4.5.10)."""
    dataset.SegmentSequence = sorted(dataset.SegmentSequence, key=lambda item: item.SegmentNumber == 0)


def _finish(dataset: Dataset, series: SourceSeries, request: SegmentationRequest) -> None:
    organisation = request.uid("dimension organisation")
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = organisation
    for index in dataset.DimensionIndexSequence:
        index.DimensionOrganizationUID = organisation
    if "DimensionOrganizationType" in dataset:
        del dataset.DimensionOrganizationType
    dataset.SpecificCharacterSet = UTF8
    stamp(dataset, request.provenance, latest_stamp(series.datasets))
