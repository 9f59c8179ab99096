"""STOW-RS by metadata and bulk data: DICOM JSON whose long values come as parts of the same request.

A BulkDataURI is compared with the Content-Location of the parts, and never followed: what is not in the
request is a failure. Pixels keep the transfer syntax that their part names.

Source: PS3.18 10.5.1 (metadata and bulk data), 8.7.3.3 (transfer syntax of a part), F.2.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_node.errors import BadRequest, BodyTooLarge, NodeError, Unparseable, UnresolvedBulkData
from dicom_node.header import MIB, PIXEL_TAGS
from dicom_node.uids import checked_uid
from dicom_node.web.media_types import MediaType, parse_media_type
from dicom_node.web.multipart import Part
from storage.records import VALUE_ERRORS

MAX_METADATA_BYTES: Final = 16 * MIB
MAX_BULK_BYTES: Final = 1024 * MIB  # of one request: its parts are held until the metadata are complete
MAX_DATA_SETS: Final = 10_000
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 200_000
PIXEL_DATA: Final = "7FE00010"
AVAILABLE_SYNTAX: Final = "00083002"


@dataclass(frozen=True)
class BulkPart:
    """One value that came beside the metadata."""

    content: bytes
    media_type: MediaType


@dataclass(frozen=True)
class DescribedInstance:
    """One data set of the metadata: its UIDs as they were written, and how to have its file."""

    sop_class_uid: str
    sop_instance_uid: str
    encode: Callable[[], bytes]  # a Part 10 file; raises NodeError


def read_described(parts: Iterator[Part]) -> list[DescribedInstance]:
    """Read all parts: the metadata first, then bulk data by Content-Location.

    Raises
    ------
    BadRequest, BodyTooLarge
        If there are no metadata, or more than is taken.
    """
    first = next(parts, None)
    if first is None:
        raise BadRequest("the body holds no metadata")
    data_sets = _parse(_read(first.body, MAX_METADATA_BYTES, "the metadata are"))
    bulk: dict[str, list[BulkPart]] = {}
    left = MAX_BULK_BYTES
    for part in parts:
        location = part.headers.get("content-location", "")
        if not location:
            raise BadRequest("a part of bulk data has no Content-Location")
        content = _read(part.body, left, "the bulk data are")
        left -= len(content)
        kind = parse_media_type(part.headers.get("content-type", "application/octet-stream"))
        bulk.setdefault(location, []).append(BulkPart(content, kind))
    return [_described(data_set, bulk) for data_set in data_sets]


def _read(body: Iterator[bytes | memoryview], most: int, what: str) -> bytes:
    pieces, total = [], 0
    for piece in body:
        total += len(piece)
        if total > most:
            raise BodyTooLarge(f"{what} larger than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _parse(content: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the metadata are not JSON") from error
    data_sets = found if isinstance(found, list) else [found]
    if (
        not data_sets
        or len(data_sets) > MAX_DATA_SETS
        or not all(isinstance(each, dict) for each in data_sets)
    ):
        raise BadRequest("the metadata are an array of DICOM JSON objects")
    return data_sets


def _described(data_set: dict[str, Any], bulk: dict[str, list[BulkPart]]) -> DescribedInstance:
    return DescribedInstance(
        _first(data_set, "00080016"), _first(data_set, "00080018"), lambda: _encode(data_set, bulk)
    )


def _first(data_set: dict[str, Any], tag: str) -> str:
    element = data_set.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else ""


def _encode(data_set: dict[str, Any], bulk: dict[str, list[BulkPart]]) -> bytes:
    """Make the Part 10 file of one data set; raises NodeError."""
    _check_size(data_set)
    syntax = _syntax_of(data_set, bulk)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(checked_uid(_first(data_set, "00080016"), "SOP Class UID"))
    meta.MediaStorageSOPInstanceUID = UID(checked_uid(_first(data_set, "00080018"), "SOP Instance UID"))
    meta.TransferSyntaxUID = syntax
    pixels = data_set.get(PIXEL_DATA)
    rest = {
        tag: element for tag, element in data_set.items() if tag != AVAILABLE_SYNTAX and tag[:4] != "0002"
    }
    is_encapsulated = syntax.is_encapsulated and isinstance(pixels, dict)
    if is_encapsulated:
        rest.pop(PIXEL_DATA, None)
    try:
        dataset = Dataset.from_json(rest, lambda _tag, _vr, uri: _value(uri, bulk))
        if is_encapsulated and isinstance(pixels, dict):
            _set_frames(dataset, _parts(pixels.get("BulkDataURI"), bulk))
        dataset.file_meta = meta
        file = BytesIO()
        dcmwrite(file, dataset, enforce_file_format=True)
    except NodeError:
        raise
    except VALUE_ERRORS as error:
        raise Unparseable(f"the metadata cannot be encoded ({type(error).__name__})") from error
    return file.getvalue()


def _check_size(data_set: dict[str, Any]) -> None:
    """Bound depth and number of elements before anything recurses into them."""
    count, level = 0, [data_set]
    for _depth in range(MAX_DEPTH):
        deeper: list[dict[str, Any]] = []
        for item in level:
            count += len(item)
            for element in item.values():
                if not isinstance(element, dict):
                    raise Unparseable("an element of the metadata is no object")
                if element.get("vr") == "SQ":
                    deeper += [each for each in element.get("Value") or [] if isinstance(each, dict)]
        if count > MAX_ELEMENTS:
            raise Unparseable(f"more than {MAX_ELEMENTS} elements")
        if not deeper:
            return
        level = deeper
    raise Unparseable(f"sequences are nested more than {MAX_DEPTH} deep")


def _syntax_of(data_set: dict[str, Any], bulk: dict[str, list[BulkPart]]) -> UID:
    """What the part of the pixels says, or what the metadata say; otherwise Explicit VR Little Endian."""
    named = ""
    pixels = data_set.get(PIXEL_DATA)
    if isinstance(pixels, dict) and "BulkDataURI" in pixels:
        named = _parts(pixels["BulkDataURI"], bulk)[0].media_type.parameters.get("transfer-syntax", "")
        named = named or _first(data_set, AVAILABLE_SYNTAX)
    if not any(f"{tag:08X}" in data_set for tag in PIXEL_TAGS):
        named = ""
    syntax = UID(named) if named else ExplicitVRLittleEndian
    if syntax == ExplicitVRBigEndian or syntax.is_deflated or not syntax.is_transfer_syntax:
        raise Unparseable("pixels in this transfer syntax are not taken as bulk data")
    return syntax if syntax.is_encapsulated else ExplicitVRLittleEndian


def _set_frames(dataset: Dataset, parts: list[BulkPart]) -> None:
    """One part is one frame. Source: PS3.5 A.4."""
    dataset.PixelData = encapsulate([part.content for part in parts])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _value(uri: object, bulk: dict[str, list[BulkPart]]) -> bytes:
    content = b"".join(part.content for part in _parts(uri, bulk))
    return content if len(content) % 2 == 0 else content + b"\0"


def _parts(uri: object, bulk: dict[str, list[BulkPart]]) -> list[BulkPart]:
    found = bulk.get(uri) if isinstance(uri, str) else None
    if not found:
        raise UnresolvedBulkData("a BulkDataURI names no part of the request; addresses are never followed")
    return found
