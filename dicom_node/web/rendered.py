"""WADO-RS rendered and thumbnail: pictures for lists and pages, never for reading or for the model.

They are drawn in a limited child. A presentation state gives its window, its shape and its inversion.

Source: PS3.18 10.4.1.1.3 (rendered), 10.4.1.1.5 (thumbnail), 8.3.5 (rendering parameters).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydicom import Dataset
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.decoding import GIF, JPEG, PNG, PictureOptions, draw_frame
from dicom_node.errors import BadRequest, NotAcceptable, NotFound
from dicom_node.uids import checked_uid
from dicom_node.web.media_types import MediaType, accepted
from dicom_node.web.ranges import content_response
from dicom_node.web.services import WebServices, instances_at, services_of
from dicom_node.web.stored import data_set_of, raw_value
from dicom_node.web.wado import entity_tag, is_unchanged, open_frames, validators
from storage.records import VALUE_ERRORS
from storage.retrieval import KeptInstance, kept_instances

PDF: Final = "application/pdf"
MP4: Final = "video/mp4"
MPEG: Final = "video/mpeg"
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
ENCAPSULATED_DOCUMENT: Final = 0x00420011
VIDEO: Final = {f"1.2.840.10008.1.2.4.{number}": MPEG if number < 102 else MP4 for number in range(100, 109)}
PRESENTATION_STATES: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.11.{number}" for number in (1, 2, 3, 4, 8))
THUMBNAIL_SIDE: Final = 256  # pixels
MAX_SIDE: Final = 4096  # pixels
QUALITY: Final = 90
NUMBER: Final = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
VIEWPORT: Final = re.compile(rf"([0-9]{{1,5}}),([0-9]{{1,5}})(?:,{NUMBER}?,{NUMBER}?,{NUMBER}?,{NUMBER}?)?")
WINDOW: Final = re.compile(rf"{NUMBER},{NUMBER}(?:,(linear|linear-exact|sigmoid))?")
PATIENT_LINES: Final = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate")
TECHNIQUE_LINES: Final = ("Modality", "KVP", "ExposureTime", "RepetitionTime", "EchoTime", "SliceThickness")


@dataclass(frozen=True)
class Presentation:
    """What a presentation state says of one image."""

    window: tuple[float, float, str] | None
    is_inverted: bool


def retrieve_rendered(request: Request) -> Response:
    """Answer GET .../rendered: the middle image of what the address names, or a frame, a PDF, a video."""
    services, rows = rows_at(request)
    row = _representative(rows)
    document = _whole_document(request, services, row)
    return document if document is not None else picture_response(request, row, None)


def retrieve_thumbnail(request: Request) -> Response:
    """Answer GET .../thumbnail: as rendered, small."""
    _services, rows = rows_at(request)
    return picture_response(request, _representative(rows), (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def rows_at(request: Request) -> tuple[WebServices, list[KeptInstance]]:
    """What the address names; raises NotFound."""
    services = services_of(request)
    with services.database.reading() as tx:
        return services, instances_at(request, tx)


def _whole_document(request: Request, services: WebServices, row: KeptInstance) -> Response | None:
    """A PDF or a video, which are pictures already; None for everything else."""
    if row.sop_class_uid == ENCAPSULATED_PDF:
        with data_set_of(services.files, row) as (dataset, _pixels):
            content = raw_value(dataset, dataset[ENCAPSULATED_DOCUMENT].tag)
        return _document(request, row, content, PDF)
    if row.transfer_syntax_uid in VIDEO:
        reader = open_frames(services, row)
        stream = replace(reader, layout=replace(reader.layout, count=1)).stored(1)
        return _document(request, row, stream, VIDEO[row.transfer_syntax_uid])
    return None


def _document(request: Request, row: KeptInstance, content: bytes, media_type: str) -> Response:
    if not any(kind.covers(media_type) for kind in accepted(request)):
        raise NotAcceptable(f"this instance is rendered as {media_type}")
    name = "document.pdf" if media_type == PDF else "video"
    headers = validators(entity_tag([row], media_type)) | {"Content-Disposition": f"inline; filename={name}"}
    return content_response(request, content, headers, media_type)


def _representative(rows: Sequence[KeptInstance]) -> KeptInstance:
    """The middle one of those with pixels; the only one of those without."""
    images = [row for row in rows if row.rows and row.columns]
    if images:
        return images[len(images) // 2]
    if len(rows) == 1 and rows[0].sop_class_uid in {ENCAPSULATED_PDF, *PRESENTATION_STATES}:
        return rows[0]
    raise NotFound("nothing here can be shown as a picture")


def picture_of_kind(request: Request, row: KeptInstance, kind: MediaType) -> Response:
    """Answer a WADO-URI request with a picture of the media type `kind`. Source: PS3.18 9.4.1.2."""
    media_type = next(picture for picture in (JPEG, PNG, GIF) if kind.covers(picture))
    options = PictureOptions(
        media_type=media_type, quality=_quality(request), size=_uri_size(request), window=_uri_window(request)
    )
    return _draw(request, row, options)


def _uri_size(request: Request) -> tuple[int, int] | None:
    sides = [request.query_params.get(name, "") for name in ("columns", "rows")]
    if not any(sides):
        return None
    if not all(re.fullmatch(r"[0-9]{0,5}", side) for side in sides):
        raise BadRequest("rows and columns are whole numbers of pixels")
    width, height = (min(max(int(side), 1), MAX_SIDE) if side else MAX_SIDE for side in sides)
    return width, height


def _uri_window(request: Request) -> tuple[float, float, str] | None:
    centre, width = (request.query_params.get(name) for name in ("windowCenter", "windowWidth"))
    if not centre and not width:
        return None
    match = WINDOW.fullmatch(f"{centre},{width}")
    if match is None or float(match[2]) <= 0:
        raise BadRequest("windowCenter and windowWidth are numbers, and go together")
    return float(match[1]), float(match[2]), "LINEAR"


def picture_response(request: Request, row: KeptInstance, default_size: tuple[int, int] | None) -> Response:
    """Answer with a picture of one instance, as the parameters of the address ask for it."""
    return _draw(request, row, read_options(request, default_size))


def _draw(request: Request, row: KeptInstance, options: PictureOptions) -> Response:
    services = services_of(request)
    state = _state_asked_for(request, services, row)
    if row.sop_class_uid in PRESENTATION_STATES:
        state, row = row, _image_of(services, row)
    index = _frame_index(request, row)
    tag = entity_tag([row] if state is None else [row, state], f"{index}{options}{_annotations(request)}")
    if is_unchanged(request, tag):
        return Response(status_code=304, headers=validators(tag))
    options = _with_header(request, services, row, options)
    if state is not None:
        options = _presented(options, _presentation(services, state, row))
    open_frames(services, row)
    with services.files.local(row.path) as path:
        picture = services.decoders.run(draw_frame, str(path), index, options.as_plain())
    return Response(bytes(picture), 200, validators(tag), options.media_type)


def read_options(request: Request, default_size: tuple[int, int] | None) -> PictureOptions:
    """Read how the picture is to look from the address; raises BadRequest."""
    size, region = _viewport(request)
    return PictureOptions(
        media_type=_choose(request),
        quality=_quality(request),
        size=size or default_size,
        region=region,
        window=_window(request),
    )


def _choose(request: Request) -> str:
    for kind in accepted(request):
        for media_type in (JPEG, PNG, GIF):
            if kind.covers(media_type):
                return media_type
    raise NotAcceptable(f"pictures come as {JPEG}, {PNG} or {GIF}")


def _viewport(
    request: Request,
) -> tuple[tuple[int, int] | None, tuple[float, float, float, float] | None]:
    """Size to fit into and region to cut out, in pixels. Source: PS3.18 8.3.5.1.3."""
    text = request.query_params.get("viewport")
    if not text:
        return None, None
    match = VIEWPORT.fullmatch(text)
    if match is None:
        raise BadRequest("viewport is width,height or width,height,x,y,width,height, in pixels")
    width, height = (min(max(int(side), 1), MAX_SIDE) for side in match.groups()[:2])
    if not any(match.groups()[2:]):
        return (width, height), None
    x, y, *extent = match.groups()[2:]
    region_width, region_height = (abs(float(side)) if side else float(MAX_SIDE) for side in extent)
    return (width, height), (float(x or 0), float(y or 0), region_width, region_height)


def _window(request: Request) -> tuple[float, float, str] | None:
    """Centre, width and function asked for. Source: PS3.18 8.3.5.1.4."""
    text = request.query_params.get("window")
    if not text:
        return None
    match = WINDOW.fullmatch(text)
    if match is None or float(match[2]) <= 0:
        raise BadRequest("window is centre,width,function, with function linear, linear-exact or sigmoid")
    return float(match[1]), float(match[2]), (match[3] or "linear").upper().replace("-", "_")


def _quality(request: Request) -> int:
    text = request.query_params.get("quality") or request.query_params.get("imageQuality") or str(QUALITY)
    if re.fullmatch(r"[0-9]{1,3}", text) is None or not 1 <= int(text) <= 100:
        raise BadRequest("quality is a whole number, 1 to 100")
    return int(text)


def _annotations(request: Request) -> list[str]:
    """Source: PS3.18 8.3.5.1.1."""
    asked = [part for part in request.query_params.get("annotation", "").split(",") if part]
    if not set(asked) <= {"patient", "technique"}:
        raise BadRequest("annotation is patient, technique, or both, divided by a comma")
    return asked


def _with_header(
    request: Request, services: WebServices, row: KeptInstance, options: PictureOptions
) -> PictureOptions:
    """Add the lines of annotation that are asked for."""
    asked = _annotations(request)
    if not asked:
        return options
    with data_set_of(services.files, row) as (dataset, _pixels):
        keywords = [
            *(PATIENT_LINES if "patient" in asked else ()),
            *(TECHNIQUE_LINES if "technique" in asked else ()),
        ]
        return replace(options, lines=tuple(_lines(dataset, keywords)))


def _lines(dataset: Dataset, keywords: Sequence[str]) -> list[str]:
    lines = []
    for keyword in keywords:
        try:
            value = str(dataset.get(keyword) or "")
        except VALUE_ERRORS:
            continue
        if value:
            lines.append(value if keyword in PATIENT_LINES else f"{keyword} {value}")
    return lines


def _frame_index(request: Request, row: KeptInstance) -> int:
    count = max(1, row.number_of_frames or 1)
    text = request.path_params.get("frames") or request.query_params.get("frameNumber")
    if text is None:
        return count // 2
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= count):
        raise NotFound(f"this instance has the frames 1 to {count}")
    return int(text) - 1


def _state_asked_for(request: Request, services: WebServices, row: KeptInstance) -> KeptInstance | None:
    """The presentation state that the address names beside the image. Source: PS3.18 9.4.1.2.2."""
    uid = request.query_params.get("presentationUID")
    if not uid:
        return None
    with services.database.reading() as tx:
        found = kept_instances(tx, row.study_instance_uid, None, str(checked_uid(uid, "presentationUID")))
    if not found or found[0].sop_class_uid not in PRESENTATION_STATES:
        raise NotFound("no presentation state of this UID is in the study")
    return found[0]


def _image_of(services: WebServices, state: KeptInstance) -> KeptInstance:
    """The first image that a presentation state is about."""
    with data_set_of(services.files, state) as (dataset, _pixels):
        named = [
            str(image.get("ReferencedSOPInstanceUID", ""))
            for series in dataset.get("ReferencedSeriesSequence") or ()
            for image in series.get("ReferencedImageSequence") or ()
        ]
    with services.database.reading() as tx:
        for uid in named[:1000]:
            found = kept_instances(tx, state.study_instance_uid, None, uid)
            if found:
                return found[0]
    raise NotFound("none of the images of this presentation state is here")


def _presentation(services: WebServices, state: KeptInstance, row: KeptInstance) -> Presentation:
    """Source: PS3.3 C.11.8 (softcopy VOI LUT), C.11.6 (presentation LUT)."""
    try:
        with data_set_of(services.files, state) as (dataset, _pixels):
            shape = str(dataset.get("PresentationLUTShape", ""))
            items = [item for item in dataset.get("SoftcopyVOILUTSequence") or () if _is_about(item, row)]
            return Presentation(_window_of(items[0]) if items else None, shape == "INVERSE")
    except VALUE_ERRORS as error:
        raise NotAcceptable("this presentation state cannot be read") from error


def _is_about(item: Dataset, row: KeptInstance) -> bool:
    images = item.get("ReferencedImageSequence") or ()
    return not images or any(
        image.get("ReferencedSOPInstanceUID") == row.sop_instance_uid for image in images
    )


def _window_of(item: Dataset) -> tuple[float, float, str] | None:
    centre, width = item.get("WindowCenter"), item.get("WindowWidth")
    if centre is None or width is None:
        return None
    centre, width = (float(value[0] if hasattr(value, "__getitem__") else value) for value in (centre, width))
    return (centre, width, str(item.get("VOILUTFunction") or "LINEAR")) if width > 0 else None


def _presented(options: PictureOptions, state: Presentation) -> PictureOptions:
    """A window in the address counts more than that of the presentation state."""
    return replace(options, window=options.window or state.window, is_inverted=state.is_inverted)
