"""Range requests: one stretch of a representation; more than one is answered with the whole.

Source: RFC 9110 14 (a server may ignore Range), PS3.18 8.4.3 (bulk data).
"""

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_ONE_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)
UNSATISFIABLE: Final = 416


def asked_range(request: Request, size: int, tag: str) -> range | None:
    """Return the stretch of bytes asked for, empty when there is none of it; None for the whole.

    A range that goes with another version of the content (If-Range) means the whole.
    """
    match = _ONE_RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    if request.headers.get("if-range", tag) != tag:
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    return range(min(int(first), size), min(int(last) + 1 if last else size, size))


def range_headers(stretch: range, size: int) -> dict[str, str]:
    """Headers of a 206."""
    return {
        "Content-Range": f"bytes {stretch.start}-{stretch.stop - 1}/{size}",
        "Content-Length": str(len(stretch)),
    }


def content_response(request: Request, content: bytes, headers: dict[str, str], media_type: str) -> Response:
    """Answer with `content`, or the stretch of it that is asked for."""
    headers = headers | {"Accept-Ranges": "bytes"}
    stretch = asked_range(request, len(content), headers.get("ETag", ""))
    if stretch is None:
        return Response(content, 200, headers, media_type)
    if not stretch:
        return unsatisfiable(len(content))
    piece = content[stretch.start : stretch.stop]
    return Response(piece, 206, headers | range_headers(stretch, len(content)), media_type)


def unsatisfiable(size: int) -> Response:
    """Answer 416."""
    return Response(status_code=UNSATISFIABLE, headers={"Content-Range": f"bytes */{size}"})
