"""SEG, its frames: the functional groups of each, with its place and its source, as bytes."""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from dicom_node import codes
from dicom_node.explicit import element, item, sequence
from dicom_node.forms.segmentation import Place
from dicom_node.frames import Frame

MAX_DS: Final = 16  # Source: PS3.5 6.2


def frame_groups(frames: Sequence[Frame], places: Sequence[Place], *, has_geometry: bool) -> Iterator[bytes]:
    """An item of Per-Frame Functional Groups Sequence for each of `places`, in the order of their tags.

    Source: PS3.3 C.7.6.16.2.6, C.7.6.16.2.2, C.7.6.16.2.3, C.8.20.3.2.
    """
    indices = sorted({place.index for place in places})
    of_source = {
        index: (number, _derivation(frames[index]), _position(frames[index], number, has_geometry))
        for number, index in enumerate(indices, start=1)
    }
    for place in places:
        number, derivation, position = of_source[place.index]
        yield item(derivation, _content(place, number), position, _segment(place))


def instance_reference(source: Dataset) -> bytes:
    """SOP Class and Instance UID of an image, two elements."""
    sop_class, uid = str(source.SOPClassUID), str(source.SOPInstanceUID)
    return element("ReferencedSOPClassUID", "UI", sop_class.encode()) + element(
        "ReferencedSOPInstanceUID", "UI", uid.encode()
    )


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Decimal strings as in the source; only what is longer than the 16 characters of a DS is rounded."""
    return [DSfloat(value, auto_format=len(str(value)) > MAX_DS) for value in values]


def _code(keyword: str, code: Code) -> bytes:
    return sequence(
        keyword,
        item(
            element("CodeValue", "SH", code.value.encode()),
            element("CodingSchemeDesignator", "SH", code.scheme_designator.encode()),
            element("CodeMeaning", "LO", code.meaning.encode()),
        ),
    )


PRESERVED: Final = element("SpatialLocationsPreserved", "CS", b"YES")
PURPOSE: Final = _code("PurposeOfReferenceCodeSequence", codes.SOURCE_IMAGE)
HOW: Final = _code("DerivationCodeSequence", codes.SEGMENTATION)


def _derivation(frame: Frame) -> bytes:
    number = b""
    if frame.frame_number is not None:
        number = element("ReferencedFrameNumber", "IS", str(frame.frame_number).encode())
    image = item(instance_reference(frame.source), number, PRESERVED, PURPOSE)
    sources = sequence("SourceImageSequence", image)
    return sequence("DerivationImageSequence", item(sources, HOW))


def _content(place: Place, number: int) -> bytes:
    """Which segment, where a frame belongs to one, and the how manieth place it is."""
    values = (number,) if place.segment is None else (place.segment + 1, number)
    value = struct.pack(f"<{len(values)}I", *values)
    return sequence("FrameContentSequence", item(element("DimensionIndexValues", "UL", value)))


def _position(frame: Frame, number: int, has_geometry: bool) -> bytes:
    """The source's own digits where it has a place: OHIF compares them (interop.md 4.5.4)."""
    own = decimals(frame.position or ()) if has_geometry else (0.0, 0.0, -float(number - 1))
    value = "\\".join(map(str, own)).encode()
    return sequence("PlanePositionSequence", item(element("ImagePositionPatient", "DS", value)))


def _segment(place: Place) -> bytes:
    if place.segment is None:
        return b""
    value = struct.pack("<H", place.segment + 1)
    return sequence("SegmentIdentificationSequence", item(element("ReferencedSegmentNumber", "US", value)))
