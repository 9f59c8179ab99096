"""What of a query may be written where Patient IDs may not: its keys, UIDs, level and modality.

Whatever else was typed may be a name. Keys are kept, so that what was asked about can be told.
"""

import re
from collections.abc import Iterable
from typing import Final

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pynetdicom.dsutils import encode

PLAIN_KEYS: Final = frozenset({"QueryRetrieveLevel", "Modality", "ModalitiesInStudy", "limit", "offset"})
CODE_FORM: Final = re.compile(r"[A-Z0-9\\,]{0,32}")
UID_FORM: Final = re.compile(r"[0-9.\\,]{0,6400}")
TAG_FORM: Final = re.compile(r"[0-9A-Fa-f]{8}")
WITHHELD: Final = "(withheld)"


def identifier_of(identifier: Dataset, transfer_syntax: str, *, is_whole: bool) -> bytes:
    """Encode the identifier of a C-FIND; with `is_whole` as it came, else without what may name anybody."""
    kept = identifier if is_whole else _plain(identifier)
    syntax = UID(transfer_syntax)
    return encode(kept, syntax.is_implicit_VR, syntax.is_little_endian) or b""


def address_of(path: str, parameters: Iterable[tuple[str, str]], *, is_whole: bool) -> str:
    """The address of a search; with `is_whole` every parameter, otherwise as `identifier_of`."""
    pairs = [
        (name, value) if is_whole else (known := _known(name), value if _may_stay(known, value) else WITHHELD)
        for name, value in parameters
    ]
    return path + ("?" if pairs else "") + "&".join(f"{name}={value}" for name, value in pairs)


def _plain(identifier: Dataset) -> Dataset:
    kept = Dataset()
    for element in identifier:
        keyword = keyword_for_tag(element.tag)
        if not keyword or element.VR == "SQ":
            continue
        value = element.value
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")
        setattr(kept, keyword, text if _may_stay(keyword, text) else None)
    return kept


def _known(name: str) -> str:
    """A parameter's name where it is one of the dictionary's, or one of DICOMweb's own."""
    keyword = keyword_for_tag(int(name, 16)) if TAG_FORM.fullmatch(name) else name.rpartition(".")[2]
    if keyword in PLAIN_KEYS or (keyword and tag_for_keyword(keyword) is not None):
        return keyword
    return keyword if keyword in {"fuzzymatching", "includefield"} else "(unknown)"


def _may_stay(keyword: str, value: str) -> bool:
    if keyword in PLAIN_KEYS:
        return CODE_FORM.fullmatch(value) is not None
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VR(tag) == "UI" and UID_FORM.fullmatch(value) is not None
