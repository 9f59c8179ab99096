"""What this DICOMweb server can do, generated from its own table of routes.

Source: PS3.18 8.9 (retrieve capabilities), Annex H (capabilities description, WADL).
"""

from typing import Any, Final
from xml.sax.saxutils import quoteattr

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from dicom_node.errors import NotAcceptable
from dicom_node.web.media_types import DICOM, DICOM_JSON, JSON, OCTET_STREAM, accepted
from dicom_node.web.services import DICOM_WEB, FRESH, json_response

WADL: Final = "application/vnd.sun.wadl+xml"
XML: Final = "application/xml"
MEDIA_TYPES: Final = {
    "retrieve_instances": (DICOM,),
    "retrieve_metadata": (DICOM_JSON,),
    "retrieve_frames": (OCTET_STREAM,),
    "retrieve_bulk_data": (OCTET_STREAM,),
    "retrieve_rendered": ("image/jpeg", "image/png", "image/gif", "application/pdf", "video/mp4"),
    "retrieve_thumbnail": ("image/jpeg", "image/png"),
    "retrieve_object": (DICOM, "image/jpeg", "image/png"),
}
NOT_LISTED: Final = frozenset({"_nothing_here"})


def show_capabilities(request: Request) -> Response:
    """Answer OPTIONS or GET of the DICOMweb root."""
    resources = _resources(request)
    for kind in accepted(request):
        if kind.covers(JSON):
            return json_response({"base": DICOM_WEB, "resources": resources})
        if kind.covers(WADL) or kind.covers(XML):
            return Response(_wadl(resources), 200, FRESH, WADL)
    raise NotAcceptable(f"the capabilities come as {JSON} or {WADL}")


def _resources(request: Request) -> list[dict[str, Any]]:
    routes = next(
        route.routes for route in request.app.routes if isinstance(route, Mount) and route.path == DICOM_WEB
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        name = getattr(getattr(route, "endpoint", None), "__name__", "")
        if isinstance(route, Route) and name not in NOT_LISTED:
            found.setdefault(route.path, []).extend(_methods(route, name))
    return [{"path": path, "methods": methods} for path, methods in sorted(found.items())]


def _methods(route: Route, name: str) -> list[dict[str, Any]]:
    return [
        {"name": method, "id": name, "media_types": list(MEDIA_TYPES.get(name, (DICOM_JSON,)))}
        for method in sorted(route.methods or ())
        if method != "HEAD"
    ]


def _wadl(resources: list[dict[str, Any]]) -> str:
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<application xmlns="http://wadl.dev.java.net/2009/02">',
        f"<resources base={quoteattr(DICOM_WEB)}>",
    ]
    for resource in resources:
        lines.append(f"<resource path={quoteattr(resource['path'])}>")
        for method in resource["methods"]:
            kinds = "".join(
                f"<representation mediaType={quoteattr(kind)}/>" for kind in method["media_types"]
            )
            opening = f"<method name={quoteattr(method['name'])} id={quoteattr(method['id'])}>"
            lines.append(f"{opening}<response>{kinds}</response></method>")
        lines.append("</resource>")
    return "\n".join([*lines, "</resources>", "</application>"])
