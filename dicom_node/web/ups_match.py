"""Matches workitems against the keys of a search, sequences included.

Source: PS3.4 C.2.2.2 (matching), PS3.18 8.3.4.1 (sequence attributes are named with dots).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicom_node.errors import BadRequest

TAG_FORM: Final = re.compile(r"[0-9A-Fa-f]{8}")
MAX_DEPTH: Final = 8
MAX_VALUE_CHARACTERS: Final = 10_000
RANGE_VRS: Final = frozenset({"DA", "TM", "DT"})
WILDCARD_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})

Path = tuple[str, ...]


def read_path(name: str) -> Path | None:
    """Return the tags that a key names, from the outside in; None when one is no attribute."""
    parts = name.split(".")
    if len(parts) > MAX_DEPTH:
        return None
    tags = [int(part, 16) if TAG_FORM.fullmatch(part) else tag_for_keyword(part) for part in parts]
    return None if None in tags else tuple(f"{tag:08X}" for tag in tags)


def matches(workitem: Mapping[str, Any], keys: Mapping[Path, str]) -> bool:
    """Whether a workitem in DICOM JSON meets every key; raises BadRequest for a value that none can meet."""
    return all(_meets(workitem, path, value) for path, value in keys.items())


def _meets(workitem: Mapping[str, Any], path: Path, value: str) -> bool:
    wanted = value.strip()
    if wanted in ("", "*"):
        return True  # universal
    if len(wanted) > MAX_VALUE_CHARACTERS:
        raise BadRequest("a value to match is too long")
    vr = _vr_of(path[-1])
    return any(_is_match(found, wanted, vr) for found in _values([workitem], path))


def _vr_of(tag: str) -> str:
    try:
        return dictionary_VR(int(tag, 16))
    except KeyError:
        return "LO"


def _values(items: Sequence[Any], path: Path) -> Iterator[str]:
    for item in items:
        present = item.get(path[0], {}).get("Value", []) if isinstance(item, dict) else []
        if len(path) > 1:
            yield from _values(present, path[1:])
        else:
            yield from (_text(value) for value in present)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "=".join(
            str(value[name]) for name in ("Alphabetic", "Ideographic", "Phonetic") if name in value
        )
    return str(value)


def _is_match(found: str, wanted: str, vr: str) -> bool:
    if vr in RANGE_VRS:
        return _is_within(found, wanted)
    if vr == "UI":
        return found in re.split(r"[\\,]", wanted)
    return any(_is_like(found, part.strip(), vr) for part in wanted.split("\\"))


def _is_like(found: str, wanted: str, vr: str) -> bool:
    if vr == "PN":
        found, wanted = found.casefold(), wanted.casefold()
    if vr not in WILDCARD_VRS or not set(wanted) & set("*?"):
        return found == wanted
    pattern = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in wanted)
    return re.fullmatch(re.sub(r"(\.\*)+", ".*", pattern), found, re.DOTALL) is not None


def _is_within(found: str, wanted: str) -> bool:
    """A moment, or a range a-b; what is left out of a bound reaches over its whole length."""
    bare = re.sub(r"[+-][0-9]{4}$", "", found)
    digits, first, last = (re.sub(r"[^0-9]", "", part) for part in (bare, *_bounds(wanted)))
    if first and digits[: len(first)] < first:
        return False
    return not last or digits[: len(last)] <= last


def _bounds(wanted: str) -> tuple[str, str]:
    if "-" not in wanted:
        return wanted, wanted
    first, _dash, last = wanted.partition("-")
    return first, last
