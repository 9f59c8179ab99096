"""WADO-URI: one instance by query parameters, as older viewers ask for it.

Source: PS3.18 9.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from dicom_node.decoding import GIF, JPEG, PNG
from dicom_node.errors import BadRequest, NotAcceptable, NotFound
from dicom_node.uids import checked_uid
from dicom_node.web import rendered, wado
from dicom_node.web.media_types import DICOM, parse_media_type
from dicom_node.web.services import services_of
from storage.retrieval import kept_instances

NAMES: Final = {"study": "studyUID", "series": "seriesUID", "instance": "objectUID"}


def retrieve_object(request: Request) -> Response:
    """Answer GET /wado?requestType=WADO&studyUID=...&seriesUID=...&objectUID=...[&contentType=...]."""
    if request.query_params.get("requestType") != "WADO":
        raise BadRequest("requestType must be WADO")
    uids = {
        level: str(checked_uid(request.query_params.get(name, ""), name)) for level, name in NAMES.items()
    }
    with services_of(request).database.reading() as tx:
        rows = kept_instances(tx, uids["study"], uids["series"], uids["instance"])
    if not rows:
        raise NotFound("no instance of these UIDs is stored here")
    asked = request.query_params.get("contentType") or JPEG
    kinds = [parse_media_type(part.strip()) for part in asked.replace(" ", "+").split(",")[:10]]
    for kind in kinds:
        if kind.essence == DICOM:
            syntax = request.query_params.get("transferSyntax") or "*"
            return wado.bare_instance(request, rows[0], syntax)
        if any(kind.covers(picture) for picture in (JPEG, PNG, GIF)):
            return rendered.picture_of_kind(request, rows[0], kind)
    raise NotAcceptable(f"objects come as {DICOM}, {JPEG} or {PNG}")
