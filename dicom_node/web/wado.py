"""WADO-RS: retrieve instances, metadata, frames, bulk data.

Source: PS3.18 10.4, Annex F; the forms that OHIF 3.13.2 asks for.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from pydicom.tag import BaseTag
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dicom_node.errors import BadRequest, NotAcceptable, NotFound
from dicom_node.header import PIXEL_TAGS
from dicom_node.web.dicom_json import bulk_element, render_data_set
from dicom_node.web.frames import FrameReader, choose_syntax, open_frames, read_frames
from dicom_node.web.media_types import (
    DICOM,
    DICOM_JSON,
    MULTIPART,
    OCTET_STREAM,
    MediaType,
    MultipartWriter,
    accepted,
    part_type,
)
from dicom_node.web.qido import require_json
from dicom_node.web.services import (
    PRIVATE,
    WebServices,
    instance_address,
    instances_at,
    json_array,
    services_of,
)
from dicom_node.web.stored import raw_value, read_data_set, read_pieces, require_files
from storage.tables import Instance

MAX_FRAMES_ASKED: Final = 10_000
MAX_BULK_PATH: Final = 130  # tag, item, tag, item ...: 64 sequences deep


def retrieve_metadata(request: Request) -> Response:
    """Answer GET .../metadata of a study, a series or an instance, complete."""
    require_json(request)
    services, rows = _rows(request)
    tag = _entity_tag(rows, "metadata-1")
    if _is_unchanged(request, tag):
        return Response(status_code=304, headers=_headers(tag))
    items = (_metadata(services, row) for row in rows)
    return StreamingResponse(json_array(items), 200, _headers(tag), DICOM_JSON)


def retrieve_instances(request: Request) -> Response:
    """Answer GET of a study, a series or an instance: Part 10 files, exactly as stored."""
    services, rows = _rows(request)
    is_multipart = _choose_instances(request, rows)
    tag = _entity_tag(rows, "multipart" if is_multipart else "bare")
    if _is_unchanged(request, tag):
        return Response(status_code=304, headers=_headers(tag))
    if not is_multipart:
        headers = _headers(tag) | {
            "Content-Length": str(rows[0].size_bytes),
            "Content-Disposition": "attachment",
        }
        return StreamingResponse(read_pieces(services.files_root, rows[0]), 200, headers, DICOM)
    writer = MultipartWriter(DICOM)
    sizes = [(_dicom_type(row), instance_address(row), row.size_bytes) for row in rows]
    parts = ((_dicom_type(row), instance_address(row), read_pieces(services.files_root, row)) for row in rows)
    headers = _headers(tag) | {"Content-Length": str(writer.length(sizes))}
    return StreamingResponse(writer.render(parts), 200, headers, writer.content_type)


def retrieve_frames(request: Request) -> Response:
    """Answer GET .../frames/1,2,3."""
    services, rows = _rows(request)
    numbers = _frame_numbers(request.path_params["frames"])
    reader = open_frames(services.files_root, rows[0])
    if max(numbers) > reader.count:
        raise NotFound(f"this instance has {reader.count} frames")
    is_multipart, syntax = _choose_frames(request, rows[0], len(numbers))
    tag = _entity_tag(rows, f"{numbers}{syntax}{is_multipart}")
    if _is_unchanged(request, tag):
        return Response(status_code=304, headers=_headers(tag))
    content_type = f"{OCTET_STREAM}; transfer-syntax={syntax}"
    if not is_multipart:
        frame = next(read_frames(reader, numbers, syntax))
        return Response(frame, 200, _headers(tag) | {"Content-Type": content_type})
    return _multipart_frames(reader, numbers, content_type, _headers(tag))


def retrieve_bulk_data(request: Request) -> Response:
    """Answer GET .../bulkdata/TAG or .../bulkdata/TAG/ITEM/TAG."""
    services, rows = _rows(request)
    path = _bulk_path(request.path_params["path"])
    tag = _entity_tag(rows, f"bulk{path}")
    if _is_unchanged(request, tag):
        return Response(status_code=304, headers=_headers(tag))
    content = _bulk_value(services, rows[0], path)
    kinds = accepted(request)
    if any(kind.covers(OCTET_STREAM) for kind in kinds):
        return Response(content, 200, _headers(tag), OCTET_STREAM)
    if not any(_takes_parts(kind, OCTET_STREAM) for kind in kinds):
        raise NotAcceptable(f"bulk data comes as {OCTET_STREAM}, alone or in {MULTIPART}")
    writer = MultipartWriter(OCTET_STREAM)
    body = b"".join(writer.render([(OCTET_STREAM, request.url.path, [content])]))
    return Response(body, 200, _headers(tag), writer.content_type)


def _rows(request: Request) -> tuple[WebServices, list[Instance]]:
    services = services_of(request)
    with services.database.reading() as tx:
        rows = instances_at(request, tx)
    require_files(services.files_root, rows)
    return services, rows


def _metadata(services: WebServices, row: Instance) -> dict[str, Any]:
    dataset, pixels = read_data_set(services.files_root, row)
    address = f"{instance_address(row)}/bulkdata"
    rendered = render_data_set(dataset, address)
    rendered["00083002"] = {"vr": "UI", "Value": [row.transfer_syntax_uid]}
    if pixels is not None:
        rendered[f"{pixels.tag:08X}"] = bulk_element(pixels.vr, address, pixels.tag)
    return rendered


def _multipart_frames(
    reader: FrameReader, numbers: list[int], content_type: str, headers: dict[str, str]
) -> Response:
    writer = MultipartWriter(OCTET_STREAM)
    syntax = content_type.rpartition("=")[2]
    frames = read_frames(reader, numbers, syntax)
    address = f"{instance_address(reader.row)}/frames"
    first = next(frames)  # what cannot be read is told by the status, before the answer begins
    parts = (
        (content_type, f"{address}/{number}", [first if index == 0 else next(frames)])
        for index, number in enumerate(numbers)
    )
    if len(numbers) == 1:
        return Response(b"".join(writer.render(parts)), 200, headers, writer.content_type)
    return StreamingResponse(writer.render(parts), 200, headers, writer.content_type)


def _frame_numbers(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > MAX_FRAMES_ASKED or not all(part.isascii() and part.isdigit() for part in parts):
        raise BadRequest("frames are asked for as numbers from 1, divided by commas")
    numbers = [int(part) for part in parts if len(part) <= 10]
    if len(numbers) != len(parts) or min(numbers) < 1:
        raise BadRequest("frames are asked for as numbers from 1, divided by commas")
    return numbers


def _choose_instances(request: Request, rows: Sequence[Instance]) -> bool:
    """Whether to answer with multipart; the stored transfer syntax is the only one given."""
    for kind in accepted(request):
        asked = kind.parameters.get("transfer-syntax", "*")
        if asked != "*" and any(row.transfer_syntax_uid != asked for row in rows):
            continue
        if _takes_parts(kind, DICOM):
            return True
        if kind.covers(DICOM) and len(rows) == 1:
            return False
    raise NotAcceptable(f"instances come as {DICOM} in their stored transfer syntax, alone or in {MULTIPART}")


def _choose_frames(request: Request, row: Instance, count: int) -> tuple[bool, str]:
    for kind in accepted(request):
        is_multipart = _takes_parts(kind, OCTET_STREAM)
        if not is_multipart and not (kind.covers(OCTET_STREAM) and count == 1):
            continue
        syntax = choose_syntax(kind.parameters.get("transfer-syntax"), row)
        if syntax is not None:
            return is_multipart, syntax
    raise NotAcceptable(
        f"frames come as {OCTET_STREAM}: stored (transfer-syntax=*), or in 1.2.840.10008.1.2.1"
    )


def _takes_parts(kind: MediaType, essence: str) -> bool:
    """Whether `kind` is multipart/related with parts of the media type `essence`, or anything."""
    if kind.essence == "*/*":
        return True
    return kind.covers(MULTIPART) and MediaType(part_type(kind), {}).covers(essence)


def _dicom_type(row: Instance) -> str:
    return f"{DICOM}; transfer-syntax={row.transfer_syntax_uid}"


def _bulk_path(text: str) -> list[int]:
    """Parse TAG(/ITEM/TAG)*: hexadecimal tags, items from 0."""
    parts = text.split("/")
    if len(parts) % 2 == 0 or len(parts) > MAX_BULK_PATH:
        raise NotFound("there is no bulk data at this address")
    try:
        return [int(part[:9], 10 if index % 2 else 16) for index, part in enumerate(parts)]
    except ValueError as error:
        raise NotFound("there is no bulk data at this address") from error


def _bulk_value(services: WebServices, row: Instance, path: list[int]) -> bytes:
    if path[0] in PIXEL_TAGS:
        reader = open_frames(services.files_root, row)
        return b"".join(reader.stored(number) for number in range(1, reader.count + 1))
    dataset, _pixels = read_data_set(services.files_root, row)
    for position in range(0, len(path) - 1, 2):
        items = dataset.get(BaseTag(path[position]))
        if items is None or items.VR != "SQ" or not 0 <= path[position + 1] < len(items.value):
            raise NotFound("there is no bulk data at this address")
        dataset = items.value[path[position + 1]]
    return raw_value(dataset, BaseTag(path[-1]))


def _entity_tag(rows: Sequence[Instance], form: str) -> str:
    digest = hashlib.sha256(form.encode())
    for row in rows:
        digest.update(row.sha256.encode())
    return f'"{digest.hexdigest()[:32]}"'


def _is_unchanged(request: Request, tag: str) -> bool:
    known = (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(","))
    return tag in known


def _headers(tag: str) -> dict[str, str]:
    return PRIVATE | {"ETag": tag, "Vary": "Accept"}
