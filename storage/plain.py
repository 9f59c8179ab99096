"""What the index keeps, read from encoded elements without a parser, where that is certain to be the same.

Certain means: one ASCII value of the VR that the dictionary names. Then pydicom would give the same text,
and takes a hundred times as long to do so. Everything else is pydicom's: `storage.records` reads both.
"""

from collections.abc import Mapping
from typing import Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

KEYWORDS: Final = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyDate", "SeriesDate", "StudyTime",
    "SeriesTime", "AccessionNumber", "Modality", "ReferringPhysicianName", "StudyDescription",
    "SeriesDescription", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "BodyPartExamined",
    "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "SeriesNumber", "InstanceNumber", "Laterality",
    "ImageLaterality", "NumberOfFrames", "Rows", "Columns",
)  # fmt: skip
INDEXED: Final = {tag_for_keyword(keyword) or 0: (keyword, dictionary_VR(keyword)) for keyword in KEYWORDS}
_VR_BYTES: Final = {tag: vr.encode() for tag, (_keyword, vr) in INDEXED.items()}


class PlainElements(dict[str, str]):
    """Texts by keyword, asked like a pydicom data set; `file_meta` likewise."""

    file_meta: Mapping[str, str]


def read_plain(
    values: Mapping[int, tuple[bytes, bytes]], file_meta: Mapping[str, str]
) -> PlainElements | None:
    """Read the encoded `values` (VR, b"" when implicit, and value by tag; little endian), or None.

    Source: PS3.5 section 6.2 (padding, backslash between values), 6.1.2.5.3 (escape sequences).
    """
    texts = PlainElements()
    texts.file_meta = file_meta
    for tag, (vr, value) in values.items():
        keyword, expected = INDEXED[tag]
        if vr and vr != _VR_BYTES[tag]:
            return None
        if expected == "US":
            if len(value) != 2:
                return None
            texts[keyword] = str(value[0] | value[1] << 8)
        elif (
            not value.isascii() or b"\\" in value or b"\x1b" in value or (expected == "PN" and b"=" in value)
        ):
            return None
        else:
            texts[keyword] = value.decode("ascii")
    return texts
