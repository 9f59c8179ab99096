"""WADO-RS: retrieve instances, metadata, frames.

Source: PS3.18 10.4, Annex F; the forms that OHIF 3.13.2 asks for.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dicom_node.dimse.transcode import PLAIN, encode_plain
from dicom_node.errors import BadRequest, NotAcceptable, NotFound
from dicom_node.web.frames import FrameReader, choose_syntax, read_frames
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
from dicom_node.web.metadata import MAX_JOINED_BYTES
from dicom_node.web.qido import require_json
from dicom_node.web.ranges import asked_range, range_headers, unsatisfiable
from dicom_node.web.services import PRIVATE, WebServices, instance_address, instances_at, services_of
from dicom_node.web.stored import begun, read_pieces, require_files
from storage.retrieval import KeptInstance

MAX_FRAMES_ASKED: Final = 10_000
ATTACHMENT: Final = {"Content-Disposition": "attachment"}  # a file that is HTML as well opens as neither


def retrieve_metadata(request: Request) -> Response:
    """Answer GET .../metadata of a study, a series or an instance, complete."""
    require_json(request)
    services = services_of(request)
    with services.database.reading() as tx:
        rows = instances_at(request, tx)
    tag = entity_tag(rows, "metadata-3")
    if is_unchanged(request, tag):
        return Response(status_code=304, headers=validators(tag))
    pieces = services.metadata.of_all(services.files, rows, tag.strip('"'))
    first = next(pieces)  # what cannot be read is told by the status, before the answer begins
    body, is_whole = _collected(first, pieces)
    if is_whole:
        return Response(body, 200, validators(tag), DICOM_JSON)
    return StreamingResponse(chain([body], pieces), 200, validators(tag), DICOM_JSON)


def _collected(first: bytes, rest: Iterator[bytes]) -> tuple[bytes, bool]:
    """Read the answer as far as it may be held: one write is several times cheaper than a stream."""
    pieces, total = [first], len(first)
    for piece in rest:
        pieces.append(piece)
        total += len(piece)
        if total > MAX_JOINED_BYTES // 4:
            return b"".join(pieces), False
    return b"".join(pieces), True


def retrieve_instances(request: Request) -> Response:
    """Answer GET of a study, a series or an instance: Part 10 files, as stored or without compression.

    The whole of what the standard leaves open: without the parameter transfer-syntax they come as stored.
    """
    services, rows = _rows(request)
    is_multipart, syntax = _choose_instances(request, rows)
    tag = entity_tag(rows, f"{'multipart' if is_multipart else 'bare'}{syntax}")
    if is_unchanged(request, tag):
        return Response(status_code=304, headers=validators(tag))
    if not is_multipart:
        return bare_instance(request, rows[0], syntax)
    writer = MultipartWriter(DICOM)
    parts = (
        (_dicom_type(row, syntax), instance_address(row), _part10(services, row, syntax)) for row in rows
    )
    headers = validators(tag)
    if not any(_is_converted(row, syntax) for row in rows):
        sizes = [(_dicom_type(row, syntax), instance_address(row), row.size_bytes) for row in rows]
        headers["Content-Length"] = str(writer.length(sizes))
    body = begun(writer.render(parts), ahead=2)  # the first part's head, and its first bytes
    return StreamingResponse(body, 200, headers, writer.content_type)


def bare_instance(request: Request, row: KeptInstance, syntax: str) -> Response:
    """Answer with one Part 10 file, or a range of it; `syntax` "*" is the stored one."""
    if syntax not in ("*", row.transfer_syntax_uid, *PLAIN):
        raise NotAcceptable(f"this instance is not given in the transfer syntax {syntax[:64]}")
    services = services_of(request)
    require_files(services.files, [row])
    headers = validators(entity_tag([row], f"bare{syntax}")) | ATTACHMENT
    if _is_converted(row, syntax):
        return StreamingResponse(begun(_part10(services, row, syntax)), 200, headers, DICOM)
    headers["Accept-Ranges"] = "bytes"
    stretch = asked_range(request, row.size_bytes, headers["ETag"])
    if stretch is None:
        headers["Content-Length"] = str(row.size_bytes)
        return StreamingResponse(begun(read_pieces(services.files, row)), 200, headers, DICOM)
    if not stretch:
        return unsatisfiable(row.size_bytes)
    pieces = read_pieces(services.files, row, stretch.start, len(stretch))
    return StreamingResponse(begun(pieces), 206, headers | range_headers(stretch, row.size_bytes), DICOM)


def _part10(services: WebServices, row: KeptInstance, syntax: str) -> Iterator[bytes]:
    if not _is_converted(row, syntax):
        yield from read_pieces(services.files, row)
        return
    with services.files.local(row.path) as path:
        yield from services.decoders.each(encode_plain, str(path), syntax)


def _is_converted(row: KeptInstance, syntax: str) -> bool:
    return syntax not in ("*", row.transfer_syntax_uid)


def retrieve_frames(request: Request) -> Response:
    """Answer GET .../frames/1,2,3."""
    services = services_of(request)
    with services.database.reading() as tx:
        row = instances_at(request, tx)[0]
    numbers = frame_numbers(request.path_params["frames"])
    reader = open_frames(services, row)
    if max(numbers) > reader.count:
        raise NotFound(f"this instance has {reader.count} frames")
    is_multipart, syntax = _choose_frames(request, row, len(numbers))
    tag = entity_tag([row], f"{numbers}{syntax}{is_multipart}")
    if is_unchanged(request, tag):
        return Response(status_code=304, headers=validators(tag))
    content_type = f"{OCTET_STREAM}; transfer-syntax={syntax}"
    if not is_multipart:
        return _bare_frame(request, next(read_frames(reader, numbers, syntax)), content_type, tag)
    return _multipart_frames(reader, numbers, content_type, validators(tag))


def _bare_frame(request: Request, frame: bytes, content_type: str, tag: str) -> Response:
    headers = validators(tag) | {"Content-Type": content_type, "Accept-Ranges": "bytes"}
    stretch = asked_range(request, len(frame), tag)
    if stretch is None:
        return Response(frame, 200, headers)
    if not stretch:
        return unsatisfiable(len(frame))
    return Response(frame[stretch.start : stretch.stop], 206, headers | range_headers(stretch, len(frame)))


def open_frames(services: WebServices, row: KeptInstance) -> FrameReader:
    """Open the frames of `row`; raises NotFound when it has no pixels."""
    return FrameReader(services.files, row, services.layouts.of(services.files, row), services.decoders)


def _rows(request: Request) -> tuple[WebServices, list[KeptInstance]]:
    services = services_of(request)
    with services.database.reading() as tx:
        rows = instances_at(request, tx)
    require_files(services.files, rows)
    return services, rows


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


def frame_numbers(text: str) -> list[int]:
    """Parse a frame list of an address, numbers from 1 divided by commas; raises BadRequest."""
    parts = text.split(",")
    if len(parts) > MAX_FRAMES_ASKED or not all(part.isascii() and part.isdigit() for part in parts):
        raise BadRequest("frames are asked for as numbers from 1, divided by commas")
    numbers = [int(part) for part in parts if len(part) <= 10]
    if len(numbers) != len(parts) or min(numbers) < 1:
        raise BadRequest("frames are asked for as numbers from 1, divided by commas")
    return numbers


def _choose_instances(request: Request, rows: Sequence[KeptInstance]) -> tuple[bool, str]:
    """Whether to answer with multipart, and in which transfer syntax: "*" is the stored one of each."""
    for kind in accepted(request):
        asked = kind.parameters.get("transfer-syntax") or "*"
        if asked not in ("*", *PLAIN) and any(row.transfer_syntax_uid != asked for row in rows):
            continue
        if takes_parts(kind, DICOM):
            return True, asked
        if kind.covers(DICOM) and len(rows) == 1:
            return False, asked
    raise NotAcceptable(
        f"instances come as {DICOM}, alone or in {MULTIPART}: as stored (transfer-syntax=*), or in "
        f"{' or '.join(PLAIN)}"
    )


def _choose_frames(request: Request, row: KeptInstance, count: int) -> tuple[bool, str]:
    for kind in accepted(request):
        is_multipart = takes_parts(kind, OCTET_STREAM)
        if not is_multipart and not (kind.covers(OCTET_STREAM) and count == 1):
            continue
        asked = kind.parameters.get("transfer-syntax")
        syntax = choose_syntax("*" if kind.essence == "*/*" and asked is None else asked, row)
        if syntax is not None:
            return is_multipart, syntax
    raise NotAcceptable(
        f"frames come as {OCTET_STREAM}: stored (transfer-syntax=*), or in 1.2.840.10008.1.2.1"
    )


def takes_parts(kind: MediaType, essence: str) -> bool:
    """Whether `kind` is multipart/related with parts of the media type `essence`, or anything."""
    if kind.essence == "*/*":
        return True
    return kind.covers(MULTIPART) and MediaType(part_type(kind), {}).covers(essence)


def _dicom_type(row: KeptInstance, syntax: str) -> str:
    return f"{DICOM}; transfer-syntax={row.transfer_syntax_uid if syntax == '*' else syntax}"


def entity_tag(rows: Sequence[KeptInstance], form: str) -> str:
    """ETag of what is made of `rows` in the form `form`."""
    digest = hashlib.sha256(form.encode())
    digest.update("".join([row.sha256 for row in rows]).encode())
    return f'"{digest.hexdigest()[:32]}"'


def is_unchanged(request: Request, tag: str) -> bool:
    """Whether the client says that it has this already."""
    asked = request.headers.get("if-none-match")
    if asked is None:
        return False
    return tag in (part.strip().removeprefix("W/") for part in asked.split(","))


def validators(tag: str) -> dict[str, str]:
    """Headers by which a client may keep an answer."""
    return PRIVATE | {"ETag": tag, "Vary": "Accept"}
