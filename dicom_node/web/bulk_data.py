"""WADO-RS bulk data: long values that the metadata only name by address.

Source: PS3.18 10.4.1.1.7 (bulk data resources), F.2.2 (BulkDataURI).
"""

from itertools import chain
from typing import Final

from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dicom_node.errors import NotAcceptable, NotFound
from dicom_node.header import PIXEL_TAGS, PixelElement
from dicom_node.web.media_types import MULTIPART, OCTET_STREAM, MultipartWriter, accepted
from dicom_node.web.ranges import asked_range, content_response, range_headers, unsatisfiable
from dicom_node.web.services import WebServices, instances_at, services_of
from dicom_node.web.stored import begun, data_set_of, raw_value, read_pieces, served_syntax
from dicom_node.web.wado import entity_tag, is_unchanged, open_frames, takes_parts, validators
from storage.retrieval import KeptInstance

MAX_BULK_PATH: Final = 130  # tag, item, tag, item ...: 64 sequences deep


def retrieve_bulk_data(request: Request) -> Response:
    """Answer GET .../bulkdata/TAG or .../bulkdata/TAG/ITEM/TAG, whole or a range of it."""
    services = services_of(request)
    with services.database.reading() as tx:
        row = instances_at(request, tx)[0]
    path = _bulk_path(request.path_params["path"])
    tag = entity_tag([row], f"bulk{path}")
    if is_unchanged(request, tag):
        return Response(status_code=304, headers=validators(tag))
    kinds = accepted(request)
    is_bare = any(kind.covers(OCTET_STREAM) for kind in kinds)
    if not is_bare and not any(takes_parts(kind, OCTET_STREAM) for kind in kinds):
        raise NotAcceptable(f"bulk data comes as {OCTET_STREAM}, alone or in {MULTIPART}")
    if path[0] in PIXEL_TAGS:
        return _pixel_response(request, row, tag, is_bare=is_bare)
    content = _bulk_value(services, row, path)
    if is_bare:
        return content_response(request, content, validators(tag), OCTET_STREAM)
    writer = MultipartWriter(OCTET_STREAM)
    body = b"".join(writer.render([(OCTET_STREAM, request.url.path, [content])]))
    return Response(body, 200, validators(tag), writer.content_type)


def _pixel_response(request: Request, row: KeptInstance, tag: str, *, is_bare: bool) -> Response:
    """Pixel data: native as it is stored and never held whole, in one part; compressed in a part a frame."""
    services = services_of(request)
    reader = open_frames(services, row)
    pixels = reader.layout.pixels
    is_native = pixels.length is not None and row.transfer_syntax_uid != DeflatedExplicitVRLittleEndian
    if is_bare and is_native:
        return _native_response(request, row, pixels, validators(tag))
    frames = (reader.stored(number) for number in range(1, reader.count + 1))
    values = chain([next(frames)], frames)
    if is_bare:
        return StreamingResponse(values, 200, validators(tag), OCTET_STREAM)
    content_type = f"{OCTET_STREAM}; transfer-syntax={served_syntax(row)}"
    writer = MultipartWriter(OCTET_STREAM)
    parts = (
        (content_type, request.url.path, part) for part in ([values] if is_native else ([v] for v in values))
    )
    return StreamingResponse(writer.render(parts), 200, validators(tag), writer.content_type)


def _native_response(
    request: Request, row: KeptInstance, pixels: PixelElement, headers: dict[str, str]
) -> Response:
    size = pixels.length or 0
    files = services_of(request).files
    headers = headers | {"Accept-Ranges": "bytes"}
    stretch = asked_range(request, size, headers["ETag"])
    if stretch is None:
        whole = begun(read_pieces(files, row, pixels.value_offset, size))
        return StreamingResponse(whole, 200, headers | {"Content-Length": str(size)}, OCTET_STREAM)
    if not stretch:
        return unsatisfiable(size)
    pieces = begun(read_pieces(files, row, pixels.value_offset + stretch.start, len(stretch)))
    return StreamingResponse(pieces, 206, headers | range_headers(stretch, size), OCTET_STREAM)


def _bulk_path(text: str) -> list[int]:
    """Parse TAG(/ITEM/TAG)*: hexadecimal tags, items from 0."""
    parts = text.split("/")
    if len(parts) % 2 == 0 or len(parts) > MAX_BULK_PATH:
        raise NotFound("there is no bulk data at this address")
    try:
        return [int(part[:9], 10 if index % 2 else 16) for index, part in enumerate(parts)]
    except ValueError as error:
        raise NotFound("there is no bulk data at this address") from error


def _bulk_value(services: WebServices, row: KeptInstance, path: list[int]) -> bytes:
    with data_set_of(services.files, row) as (found, _pixels):
        dataset = found
        for position in range(0, len(path) - 1, 2):
            items = dataset.get(BaseTag(path[position]))
            if items is None or items.VR != "SQ" or not 0 <= path[position + 1] < len(items.value):
                raise NotFound("there is no bulk data at this address")
            dataset = items.value[path[position + 1]]
        return raw_value(dataset, BaseTag(path[-1]))
