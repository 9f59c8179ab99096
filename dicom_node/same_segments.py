"""What a SEG or SR says, and how far two SEGs agree; done in a limited child, since one comes from outside.

Frames are compared where they show the same image: by the source instance and frame that both name, or by
their position in the patient. Their order, their number and the form of the SEG (BINARY, LABELMAP,
FRACTIONAL; compressed or not) make no difference.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.pixels import iter_pixels

LABEL_MAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
MAX_NAMES: Final = 50_000
MAX_FRAMES: Final = 20_000
MAX_SEGMENTS: Final = 1000
POSITION_DIGITS: Final = 2  # hundredths of a millimetre
TRACKING_UID: Final = ("112040", "DCM")
MEASURED: Final = frozenset({"NUM", "SCOORD", "SCOORD3D", "CODE", "TEXT"})
NOT_COMPARED: Final = frozenset(
    {"121049", "121050", "121005", "121058", "111028", "112039", "111001", "111003", "121012"}
)  # language, observer, procedure, image library, tracking and algorithm identification: OHIF writes its own

Packed = NDArray[np.uint8]


def read_facts(path: str) -> dict[str, Any]:
    """Return whom the object at `path` names, which segments it has, what it measures, and who made it."""
    dataset = dcmread(path, stop_before_pixels=True)
    content = list(islice(_content(dataset), MAX_NAMES))
    tracking = [str(item.get("UID")) for item in content if _name(item) == TRACKING_UID and item.get("UID")]
    return {
        "references": sorted(set(islice(_named(dataset, "ReferencedSOPInstanceUID"), MAX_NAMES))),
        "predecessors": sorted(set(_predecessors(dataset))),
        "series": sorted(_series(dataset)),
        "segments": [_segment(item) for item in (dataset.get("SegmentSequence") or ())[:MAX_SEGMENTS]],
        "tracking": sorted(set(tracking)),
        "measured": _digest(_measured(content)),
        "made_by": _made_by(dataset, content),
    }


def count_overlap(first: str, second: str) -> dict[str, Any] | None:
    """Count pixels of each segment in two SEGs, and those that a pair of segments shares.

    Returns
    -------
    dict or None
        `first`, `second`: [[segment number, pixels], ...]; `both`: [[number, number, pixels], ...].
        None when the frames have different sizes, or nothing says which of them belong together.
    """
    headers = [dcmread(path, stop_before_pixels=True) for path in (first, second)]
    if (headers[0].Rows, headers[0].Columns) != (headers[1].Rows, headers[1].Columns):
        return None
    keys = _common_keys(*headers)
    if keys is None:
        return None
    kept: dict[Hashable, list[tuple[int, Packed]]] = {}
    counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    both: Counter[tuple[int, int]] = Counter()
    for key, number, mask in _masks(first, headers[0], keys[0]):
        kept.setdefault(key, []).append((number, np.packbits(mask)))
        counts[0][number] += int(mask.sum())
    for key, number, mask in _masks(second, headers[1], keys[1]):
        counts[1][number] += int(mask.sum())
        packed = np.packbits(mask)
        for other, theirs in kept.get(key, ()):
            both[other, number] += int(np.unpackbits(packed & theirs).sum())
    return {
        "first": [list(pair) for pair in counts[0].items()],
        "second": [list(pair) for pair in counts[1].items()],
        "both": [[*pair, count] for pair, count in both.items()],
    }


def _masks(path: str, header: Dataset, keys: list[Hashable]) -> Iterator[tuple[Hashable, int, NDArray[Any]]]:
    """Yield (key of the frame, segment number, (H, W) bool) of every segment that a frame may show."""
    half = float(header.get("MaximumFractionalValue") or 2) / 2
    is_label_map = header.SOPClassUID == LABEL_MAP
    is_fractional = header.get("SegmentationType") == "FRACTIONAL"
    for index, pixels in enumerate(islice(iter_pixels(Path(path), raw=True), len(keys))):
        if is_label_map:
            for number in np.unique(pixels):
                if number:
                    yield keys[index], int(number), pixels == number
        else:
            mask = pixels >= half if is_fractional else pixels > 0
            yield keys[index], _segment_of(header, index), mask


def _segment_of(header: Dataset, index: int) -> int:
    for item in _groups(header, index, "SegmentIdentificationSequence"):
        return int(item.ReferencedSegmentNumber)
    return 1


def _common_keys(first: Dataset, second: Dataset) -> tuple[list[Hashable], list[Hashable]] | None:
    """What tells for each frame of both which image it shows, by the first way that both know."""
    for key_of in (_source_key, _position_key):
        found = [[key_of(each, index) for index in range(_frame_count(each))] for each in (first, second)]
        if all(key is not None for keys in found for key in keys):
            return found[0], found[1]
    return None


def _frame_count(header: Dataset) -> int:
    return min(int(header.get("NumberOfFrames") or 1), MAX_FRAMES)


def _source_key(header: Dataset, index: int) -> Hashable:
    for derivation in _groups(header, index, "DerivationImageSequence"):
        for source in derivation.get("SourceImageSequence") or ():
            frame = source.get("ReferencedFrameNumber") or 1
            number = frame if isinstance(frame, int | str) else frame[0]
            return str(source.ReferencedSOPInstanceUID), int(number)
    return None


def _position_key(header: Dataset, index: int) -> Hashable:
    for plane in _groups(header, index, "PlanePositionSequence"):
        return tuple(round(float(value), POSITION_DIGITS) for value in plane.ImagePositionPatient)
    return None


def _groups(header: Dataset, index: int, keyword: str) -> list[Dataset]:
    """A functional group of one frame: its own, or the one that all frames share."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    own = per_frame[index].get(keyword) if index < len(per_frame) else None
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    return list(own or (shared[0].get(keyword) if shared else None) or ())


def _segment(item: Dataset) -> dict[str, Any]:
    kinds = item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    return {
        "number": int(item.SegmentNumber),
        "label": str(item.get("SegmentLabel") or ""),
        "kind": f"{kinds[0].get('CodeValue', '')} {kinds[0].get('CodingSchemeDesignator', '')}",
        "tracking": str(item.get("TrackingUID") or ""),
    }


def _named(dataset: Dataset, keyword: str) -> Iterator[str]:
    """Every value of `keyword`, at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _named(item, keyword)
        elif element.keyword == keyword and element.value:
            yield str(element.value)


def _predecessors(dataset: Dataset) -> Iterator[str]:
    for item in dataset.get("PredecessorDocumentsSequence") or ():
        yield from _named(item, "ReferencedSOPInstanceUID")


def _series(dataset: Dataset) -> set[str]:
    """The series of images that the object is about."""
    referenced = dataset.get("ReferencedSeriesSequence") or ()
    return {str(item.SeriesInstanceUID) for item in referenced if item.get("SeriesInstanceUID")}


def _content(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or ():
        yield child
        if (_name(child) or ("",))[0] not in NOT_COMPARED:
            yield from _content(child)


def _name(item: Dataset) -> tuple[str, str] | None:
    for code in item.get("ConceptNameCodeSequence") or ():
        return str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
    return None


def _measured(content: list[Dataset]) -> Iterator[str]:
    for item in content:
        kind, name = str(item.get("ValueType") or ""), _name(item) or ("", "")
        if kind in MEASURED and name[0] not in NOT_COMPARED:
            yield f"{kind} {name[0]} {_value(item, kind)}"


def _digest(words: Iterator[str]) -> str:
    """A digest (sha256) of words in any order; they may be a person's, and only their being equal counts."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()


def _value(item: Dataset, kind: str) -> str:
    if kind == "NUM":
        measured = item.get("MeasuredValueSequence") or [Dataset()]
        return f"{float(measured[0].get('NumericValue') or 0):.2f}"
    if kind in ("SCOORD", "SCOORD3D"):
        return " ".join(f"{float(value):.2f}" for value in item.get("GraphicData") or ())
    if kind == "CODE":
        codes = item.get("ConceptCodeSequence") or [Dataset()]
        return str(codes[0].get("CodeValue", ""))
    return str(item.get("TextValue") or "")


def _made_by(dataset: Dataset, content: list[Dataset]) -> str:
    """The person who made it: Content Creator, Operator, verifying observer or person observer."""
    operators = dataset.get("OperatorsName") or ""
    operator = operators[0] if isinstance(operators, MultiValue) else operators
    verified = [each.get("VerifyingObserverName") for each in dataset.get("VerifyingObserverSequence") or ()]
    observers = [item.get("PersonName") for item in content if item.get("ValueType") == "PNAME"]
    found = (str(name or "") for name in (dataset.get("ContentCreatorName"), operator, *verified, *observers))
    return next((name for name in found if name.strip()), "")[:256]
