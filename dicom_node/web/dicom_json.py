"""Renders data sets in the DICOM JSON Model, complete, with bulk data by address.

Numbers are JSON numbers, DS and IS included (strings break OHIF's geometry); NaN and infinity become null.

Source: PS3.18 Annex F.
"""

import base64
import math
from collections.abc import Iterator
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.valuerep import PersonName

from storage.records import VALUE_ERRORS

INLINE_BYTES: Final = 16 * 1024  # longer binary values go by BulkDataURI
MAX_TEXT_BYTES: Final = 1024 * 1024  # longer text as well: 4 MB of DS become 800 MB of numbers in memory
BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW", "US or OW", "OB/OW"})
AMBIGUOUS_VRS: Final = {"OB or OW": "OW", "US or OW": "OW", "US or SS": "US", "US or SS or OW": "OW"}
NUMBER_VRS: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
SPECIFIC_CHARACTER_SET: Final = 0x00080005
PERSON_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")

JsonObject = dict[str, Any]


def render_data_set(dataset: Dataset, bulk_address: str) -> JsonObject:
    """Render `dataset`; bulk data lies below the address `bulk_address`.

    What cannot be read is left out: one bad value must not hide the others.
    """
    return dict(_render_elements(dataset, bulk_address))


def bulk_element(vr: str, bulk_address: str, tag: int) -> JsonObject:
    """Render an element whose value is to be fetched."""
    return {"vr": vr, "BulkDataURI": f"{bulk_address}/{tag:08X}"}


def _render_elements(dataset: Dataset, address: str) -> Iterator[tuple[str, JsonObject]]:
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group == 2:
            continue
        rendered = _render(dataset, tag, address)
        if rendered is not None:
            yield f"{tag:08X}", rendered


def _render(dataset: Dataset, tag: BaseTag, address: str) -> JsonObject | None:
    if tag == SPECIFIC_CHARACTER_SET:
        return {"vr": "CS", "Value": ["ISO_IR 192"]}  # JSON is UTF-8. Source: PS3.18 F.2
    try:
        if _is_long(dataset, tag):
            return bulk_element(_vr_of_raw(dataset, tag), address, tag)
        return _render_element(dataset[tag], address)
    except VALUE_ERRORS:
        return None


def _is_long(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether a value is too long to be decoded; asked before it is."""
    raw = dataset.get_item(tag)
    if not isinstance(raw, RawDataElement) or raw.VR == "SQ":
        return False
    if raw.value is None and raw.length:  # left in the file by `defer_size`
        return True
    return raw.value is not None and len(raw.value) > MAX_TEXT_BYTES


def _vr_of_raw(dataset: Dataset, tag: BaseTag) -> str:
    raw = dataset.get_item(tag)
    vr = getattr(raw, "VR", None)
    return str(vr) if vr else "UN"


def _render_element(element: DataElement, address: str) -> JsonObject:
    vr = str(element.VR)
    if vr in BINARY_VRS or isinstance(element.value, bytes):
        return _render_binary(element, AMBIGUOUS_VRS.get(vr, vr), address)
    vr = AMBIGUOUS_VRS.get(vr, vr)
    if vr == "SQ":
        items = [
            render_data_set(item, f"{address}/{element.tag:08X}/{number}")
            for number, item in enumerate(element.value)
        ]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    values = [_json_value(value, vr) for value in _values(element.value)]
    return {"vr": vr, "Value": values} if any(value is not None for value in values) else {"vr": vr}


def _render_binary(element: DataElement, vr: str, address: str) -> JsonObject:
    value = element.value
    if not value:
        return {"vr": vr}
    if not isinstance(value, bytes):  # US or OW that pydicom resolved to numbers
        return {"vr": "US", "Value": [int(number) for number in _values(value)]}
    if len(value) > INLINE_BYTES:
        return bulk_element(vr, address, element.tag)
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}


def _values(value: object) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


def _json_value(value: Any, vr: str) -> object:
    if value is None or value == "":
        return None
    if vr == "PN":
        return _person_name(value)
    if vr == "AT":
        return f"{int(value):08X}"
    if vr in NUMBER_VRS:
        return _number(value)
    return str(value)


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _person_name(value: PersonName) -> dict[str, str] | None:
    groups = dict(zip(PERSON_NAME_GROUPS, str(value).split("="), strict=False))
    return {name: text for name, text in groups.items() if text} or None
