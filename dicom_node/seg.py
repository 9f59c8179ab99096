"""7 SEG. Masks + plane geometry -> Segmentation instance; one SEG per series, in three forms.

highdicom asks for sources that lie in one frame of reference. Ultrasound, endoscopy, photographs and most
radiographs do not, so it is shown one stand-in of a single frame; every frame is then written with its
references and its geometry, the source's own digit by digit. Where the source has no geometry, the SEG
takes the rows and columns of the image as its axes, without which OHIF 3.13 shows nothing.
"""

from collections.abc import Iterable, Sequence
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
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import codes
from dicom_node.explicit import element, item, raw_sequence, sequence
from dicom_node.forms.form import Form
from dicom_node.forms.frame_groups import decimals, frame_groups, instance_reference
from dicom_node.forms.segmentation import ENCODINGS, FULL, Stacks, array_for_highdicom
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
SERIES_NUMBER: Final = 9001


@dataclass(frozen=True)
class SegmentationRequest:
    """What the segments are called and where the object stands."""

    targets: tuple[str | None, ...]  # one a segment
    body_part: str
    provenance: Provenance
    part: str = ""  # of a result over several series: which of them, since each has its own SEG
    form: Form = Form.SEG

    def uid(self, kind: str) -> str:
        """The UID of one part of this object."""
        form = "" if self.form is Form.SEG else f"{self.form} "
        return self.provenance.uid(f"{kind} {form}{self.part}".strip())


def build_segmentation(series: SourceSeries, stacks: Stacks, request: SegmentationRequest) -> Dataset:
    """A Segmentation of `stacks`, one a segment, each with one mask per frame of `series`.

    One of the masks must not be empty.

    Source: PS3.3 A.51 and C.8.20; interop.md 4.5 for what OHIF needs.
    """
    encoding = ENCODINGS[request.form]
    places = encoding.places(stacks)
    first = series.frames[places[0].index]
    has_geometry = _share_geometry(series.frames)
    source = _stand_in(first, has_geometry, request)
    mask = next(stack[places[0].index] for stack in stacks if places[0].index in stack.marked)
    dataset = _plain(_segmentation(source, mask, request))
    dataset.NumberOfFrames = len(places)
    dataset.PixelData = encoding.pixels(stacks, places)
    _put_background_last(dataset)
    _set_shared(dataset, first, has_geometry=has_geometry)
    _finish(dataset, series, request)
    _set_frames(dataset, series, frame_groups(series.frames, places, has_geometry=has_geometry))
    return dataset


def _share_geometry(frames: Sequence[Frame]) -> bool:
    """Whether all frames lie in one frame of reference and have one orientation."""
    uid, *others = {str(frame.source.get("FrameOfReferenceUID") or "") for frame in frames}
    orientations = {frame.orientation for frame in frames}
    if not uid or others or None in orientations:
        return False
    return all(np.allclose(each or (), frames[0].orientation or (), atol=1e-3) for each in orientations)


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
    encoding, segments = ENCODINGS[request.form], describe_segments(request)
    label = segments[0].SegmentLabel
    return Segmentation(
        source_images=[source],
        pixel_array=array_for_highdicom(encoding, mask, len(segments)),
        segmentation_type=encoding.kind,
        segment_descriptions=segments,
        series_instance_uid=request.uid("seg series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=request.uid("seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model.name[:64],
        software_versions=provenance.model.version[:64],
        device_serial_number=provenance.model.digest[:64],
        content_label="AI_SEGMENTATION",
        content_description=f"{label[:23]}. {RESEARCH_USE}"[:64],
        series_description=_series_description(label, request.form),
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


def describe_segments(request: SegmentationRequest) -> list[SegmentDescription]:
    """Each segment: what it shows in codes, who outlined it, how it is coloured."""
    return [
        _describe(codes.target_of(target), number, request)
        for number, target in enumerate(request.targets, start=1)
    ]


def _describe(target: codes.Target, number: int, request: SegmentationRequest) -> SegmentDescription:
    model = request.provenance.model
    return SegmentDescription(
        segment_number=number,
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
        tracking_uid=request.provenance.uid("tracking" if number == 1 else f"tracking {number}"),
        tracking_id=f"{target.label} {number}",
        anatomic_regions=[codes.site_of(target, request.body_part)],
        display_color=CIELabColor(*target.colour_lab),
    )


def _plain(segmentation: Segmentation) -> Dataset:
    """Without what highdicom remembers of the one frame beside the attributes."""
    dataset = Dataset()
    dataset.update(segmentation)
    dataset.file_meta = segmentation.file_meta
    return dataset


def _set_frames(dataset: Dataset, series: SourceSeries, groups: Iterable[bytes]) -> None:
    """The frames, and every instance of the series; as bytes, and the data set told that it may keep them."""
    instances = [item(instance_reference(source)) for source in series.datasets]
    uid = str(series.frames[0].source.SeriesInstanceUID)
    referenced = item(
        sequence("ReferencedInstanceSequence", *instances), element("SeriesInstanceUID", "UI", uid.encode())
    )
    correct_ambiguous_vr(dataset, is_little_endian=True)
    for raw in (
        raw_sequence("ReferencedSeriesSequence", [referenced]),
        raw_sequence("PerFrameFunctionalGroupsSequence", groups),
    ):
        dataset[raw.tag] = raw
    dataset.set_original_encoding(False, True, convert_encodings(UTF8))


def _set_shared(dataset: Dataset, first: Frame, *, has_geometry: bool) -> None:
    """What every frame has in common. Which of one frame's groups highdicom calls shared does not matter."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = Dataset()
    orientation.ImageOrientationPatient = decimals((first.orientation or ()) if has_geometry else IMAGE_AXES)
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [_pixel_measures(first)]
    for keyword in ("PlanePositionSequence", "SegmentIdentificationSequence", "DerivationImageSequence"):
        if keyword in shared:
            del shared[keyword]
    for keyword in ("SourceImageSequence", "ReferencedImageSequence"):
        if keyword in dataset:
            del dataset[keyword]
    if first.spacing_mm is None:
        for segment in filter(lambda each: each.SegmentNumber, dataset.SegmentSequence):  # 0: background
            segment.SegmentDescription = NOT_CALIBRATED


def _pixel_measures(frame: Frame) -> Dataset:
    """Placeholders where the source says nothing: OHIF 3.13 stops without this group, and both are type 1."""
    measures = Dataset()
    measures.PixelSpacing = decimals(frame.spacing_mm or (PLACEHOLDER_MM, PLACEHOLDER_MM))
    measures.SliceThickness = frame.slice_thickness_mm or PLACEHOLDER_MM
    return measures


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
