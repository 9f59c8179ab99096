"""WADO-RS rendered and thumbnail: pictures for lists and pages, never for reading or for the model.

Source: PS3.18 10.4.1.1.3 (rendered), 10.4.1.1.5 (thumbnail), 8.3.5 (rendering parameters).
"""

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.display import Display, Stored, apply_window, to_display
from dicom_node.errors import BadRequest, NotAcceptable, NotFound
from dicom_node.frames import UNDECODABLE, frame_attributes
from dicom_node.web.frames import frame_bits
from dicom_node.web.media_types import accepted
from dicom_node.web.services import PRIVATE, WebServices, instances_at, services_of
from dicom_node.web.stored import raw_value, read_data_set
from storage.part10 import absolute
from storage.tables import Instance

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
PDF: Final = "application/pdf"
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
ENCAPSULATED_DOCUMENT: Final = 0x00420011
THUMBNAIL_SIDE: Final = 256  # pixels
MAX_SIDE: Final = 4096  # pixels
QUALITY: Final = 90


def retrieve_rendered(request: Request) -> Response:
    """Answer GET .../rendered: the middle image of what the address names, or a frame, or a PDF."""
    return _answer(request, None)


def retrieve_thumbnail(request: Request) -> Response:
    """Answer GET .../thumbnail: as rendered, small."""
    return _answer(request, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def _answer(request: Request, default_size: tuple[int, int] | None) -> Response:
    services = services_of(request)
    with services.database.reading() as tx:
        row = _representative(instances_at(request, tx))
    if row.sop_class_uid == ENCAPSULATED_PDF and default_size is None:
        return _pdf(request, services, row)
    media_type = _choose(request)
    size = _viewport(request) or default_size
    picture = _picture(request, services, row)
    if size is not None:
        picture.thumbnail(size)
    return Response(_encode(picture, media_type), 200, PRIVATE | {"Vary": "Accept"}, media_type)


def _representative(rows: Sequence[Instance]) -> Instance:
    """The middle one of those with pixels; the only one of those without."""
    images = [row for row in rows if row.rows and row.columns]
    if images:
        return images[len(images) // 2]
    if len(rows) == 1 and rows[0].sop_class_uid == ENCAPSULATED_PDF:
        return rows[0]
    raise NotFound("nothing here can be shown as a picture")


def _choose(request: Request) -> str:
    for kind in accepted(request):
        for media_type in (JPEG, PNG):
            if kind.covers(media_type):
                return media_type
    raise NotAcceptable(f"pictures come as {JPEG} or {PNG}")


def _viewport(request: Request) -> tuple[int, int] | None:
    """Width and height asked for, in pixels. Source: PS3.18 8.3.5.1.3."""
    text = request.query_params.get("viewport")
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5})(,.*)?", text)
    if match is None:
        raise BadRequest("viewport is width,height in pixels")
    width, height = (min(max(int(side), 1), MAX_SIDE) for side in match.groups()[:2])
    return width, height


def _window(request: Request) -> tuple[float, float, str] | None:
    """Centre, width and function asked for. Source: PS3.18 8.3.5.1.4."""
    text = request.query_params.get("window")
    if not text:
        return None
    number = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
    match = re.fullmatch(rf"{number},{number}(?:,(linear|linear-exact|sigmoid))?", text)
    if match is None or float(match[2]) <= 0:
        raise BadRequest("window is centre,width,function, with function linear, linear-exact or sigmoid")
    return float(match[1]), float(match[2]), (match[3] or "linear").upper().replace("-", "_")


def _frame_index(request: Request, row: Instance) -> int:
    count = max(1, row.number_of_frames or 1)
    text = request.path_params.get("frames")
    if text is None:
        return count // 2
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= count):
        raise NotFound(f"this instance has the frames 1 to {count}")
    return int(text) - 1


def _picture(request: Request, services: WebServices, row: Instance) -> Image.Image:
    index, window = _frame_index(request, row), _window(request)
    dataset, pixels = read_data_set(services.files_root, row)
    if pixels is None or row.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        raise NotFound("this instance has no pixels that are shown as a picture")
    frame_bits(dataset, pixels.tag)
    try:
        stored = pixel_array(absolute(services.files_root, row.path), index=index)
        attributes = frame_attributes(dataset, index)
        if window is not None:
            _set_window(attributes, window)
        return Image.fromarray(_display(stored, attributes))
    except UNDECODABLE as error:
        raise NotAcceptable("this image cannot be decoded here") from error


def _display(stored: Stored, attributes: Dataset) -> Display:
    if attributes.get("BitsAllocated") == 1 or attributes.get("Modality") == "SEG":
        top = max(int(np.asarray(stored).max(initial=0)), 1)
        return apply_window(stored, (top / 2, float(top)), "LINEAR_EXACT")
    return to_display(stored, attributes)


def _set_window(attributes: Dataset, window: tuple[float, float, str]) -> None:
    attributes.WindowCenter, attributes.WindowWidth, attributes.VOILUTFunction = window
    if "VOILUTSequence" in attributes:
        del attributes.VOILUTSequence


def _encode(picture: Image.Image, media_type: str) -> bytes:
    buffer = BytesIO()
    if media_type == PNG:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _pdf(request: Request, services: WebServices, row: Instance) -> Response:
    if not any(kind.covers(PDF) for kind in accepted(request)):
        raise NotAcceptable(f"this instance is rendered as {PDF}")
    dataset, _pixels = read_data_set(services.files_root, row)
    document = raw_value(dataset, dataset[ENCAPSULATED_DOCUMENT].tag)
    headers = PRIVATE | {"Content-Disposition": "attachment; filename=document.pdf"}
    return Response(document, 200, headers, PDF)
