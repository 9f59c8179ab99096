"""What the index keeps, read from encoded elements without a parser, where that is certain to be the same.

Certain means: one short ASCII value of the VR that the dictionary names. Then pydicom would give the same
text, and takes a hundred times as long to do so. Everything else is pydicom's: `storage.records` reads both.
"""

from collections.abc import Mapping
from functools import lru_cache
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
MAX_PLAIN_BYTES: Final = 1024  # what is read is remembered
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
        text = _plain_text(tag, vr, value) if len(value) <= MAX_PLAIN_BYTES else None
        if text is None:
            return None
        texts[INDEXED[tag][0]] = text
    return texts


@lru_cache(maxsize=1024)  # images of one series come one after the other, and say nearly the same
def _plain_text(tag: int, vr: bytes, value: bytes) -> str | None:
    _keyword, expected = INDEXED[tag]
    if vr and vr != _VR_BYTES[tag]:
        return None
    if expected == "US":
        return str(value[0] | value[1] << 8) if len(value) == 2 else None
    if not value.isascii() or b"\\" in value or b"\x1b" in value or (expected == "PN" and b"=" in value):
        return None
    return value.decode("ascii")
