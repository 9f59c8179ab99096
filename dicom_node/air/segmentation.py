"""7 CHECK of a SEG: segments, frames, references and geometry, as IHE AIR and OHIF 3.13 need them."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.air.rules import LABELMAP, SEG_CLASSES, Rule, present
from dicom_node.frames import frame_attributes, plane_of

Plane = tuple[tuple[float, float, float] | None, tuple[float, ...] | None]  # position, orientation

SAME_COSINE: Final = 1e-3
SAME_MM: Final = 1e-3


def _refers_to_one_series(dataset: Dataset) -> Iterator[str]:
    """OHIF drops a SEG without it, and shows only the first series."""
    series = list(dataset.get("ReferencedSeriesSequence") or [])
    if len(series) != 1:
        yield f"Referenced Series Sequence has {len(series)} items, not one"
    for item in series:
        yield from present(item, "SeriesInstanceUID", "ReferencedInstanceSequence")


def _has_good_segments(dataset: Dataset) -> Iterator[str]:
    segments = [s for s in dataset.SegmentSequence if int(s.SegmentNumber) > 0]
    numbers = [int(segment.SegmentNumber) for segment in segments]
    if numbers != list(range(1, len(segments) + 1)):
        yield "segments are not numbered 1 to N in this order"
    if dataset.SOPClassUID == LABELMAP and int(dataset.SegmentSequence[0].SegmentNumber) == 0:
        yield "the background comes first: OHIF then shows every colour one segment too late"
    for segment in segments:
        yield from present(
            segment, "SegmentLabel", "SegmentAlgorithmType", "RecommendedDisplayCIELabValue", "TrackingID",
            "TrackingUID", "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence",
            "SegmentationAlgorithmIdentificationSequence",
        )  # fmt: skip
        for algorithm in segment.get("SegmentationAlgorithmIdentificationSequence", []):
            yield from present(algorithm, "AlgorithmName", "AlgorithmVersion")
    if len({str(segment.TrackingUID) for segment in segments}) < len(segments):
        yield "two segments have one Tracking UID"


def _has_all_frames(dataset: Dataset) -> Iterator[str]:
    frames, groups = int(dataset.NumberOfFrames), len(dataset.PerFrameFunctionalGroupsSequence)
    if frames != groups:
        yield f"Number of Frames is {frames}, but there are {groups} functional groups"
    bits = frames * int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated)
    wanted = math.ceil(bits / 8)
    is_plain = "PixelData" in dataset and not dataset["PixelData"].is_undefined_length
    if is_plain and len(dataset.PixelData) != wanted + wanted % 2:
        yield f"Pixel Data has {len(dataset.PixelData)} bytes, not {wanted + wanted % 2}"


def _derives_every_frame(dataset: Dataset) -> Iterator[str]:
    """OHIF drops a frame that names no source image."""
    listed = {
        str(instance.ReferencedSOPInstanceUID)
        for series in dataset.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        sources = [
            str(image.ReferencedSOPInstanceUID)
            for derivation in group.get("DerivationImageSequence", [])
            for image in derivation.get("SourceImageSequence", [])
        ]
        if not sources:
            yield f"frame {number} names no source image"
        elif not set(sources) <= listed:
            yield f"the source of frame {number} is not in Referenced Series Sequence"


def _says_where_it_lies(dataset: Dataset) -> Iterator[str]:
    yield from present(dataset, "FrameOfReferenceUID")
    for number in range(int(dataset.NumberOfFrames)):
        attributes = frame_attributes(dataset, number)
        if plane_of(attributes) == (None, None):
            yield f"frame {number + 1} has no plane position or orientation"
            return
        if not attributes.get("PixelSpacing") or not attributes.get("SliceThickness"):
            yield f"frame {number + 1} has no pixel measures"
            return


def shares_geometry(dataset: Dataset, sources: Sequence[Dataset]) -> Iterator[str]:
    """Towards the images: same matrix; same plane and frame of reference where they have one."""
    if str(dataset.SOPClassUID) not in SEG_CLASSES:
        return
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        source = by_uid.get(str(image.ReferencedSOPInstanceUID))
        if source is None:
            continue
        if (dataset.Rows, dataset.Columns) != (source.Rows, source.Columns):
            yield f"frame {number + 1} has another matrix than its source"
            return
        ours = plane_of(frame_attributes(dataset, number))
        theirs = plane_of(frame_attributes(source, int(image.get("ReferencedFrameNumber") or 1) - 1))
        if _is_moved(dataset, source, ours, theirs):
            yield f"frame {number + 1} does not lie where its source does"
            return


def _is_moved(dataset: Dataset, source: Dataset, ours: Plane, theirs: Plane) -> bool:
    if theirs == (None, None) or dataset.FrameOfReferenceUID != source.get("FrameOfReferenceUID"):
        return False  # the source has no place in a patient that both share
    return not (
        np.allclose(np.array(ours[0], float), np.array(theirs[0], float), rtol=0, atol=SAME_MM)
        and np.allclose(np.array(ours[1], float), np.array(theirs[1], float), rtol=0, atol=SAME_COSINE)
    )


SEGMENTATION_RULES: Final[tuple[Rule, ...]] = (
    Rule("one referenced series", "interop 4.5.2; IHE AIR A9", {"SEG"}, _refers_to_one_series),
    Rule("segments", "interop 4.5.9, 4.5.10; IHE AIR A4, A7", {"SEG"}, _has_good_segments),
    Rule("frames", "PS3.3 C.7.6.16, C.8.20.2", {"SEG"}, _has_all_frames),
    Rule("derivation", "interop 4.5.5; PS3.3 C.7.6.16.2.6", {"SEG"}, _derives_every_frame),
    Rule("plane", "interop 4.5.6; PS3.3 C.7.6.16.2", {"SEG"}, _says_where_it_lies),
)
