"""application/dicom, application/dicom+json, multipart/related: parse and render.

Source: PS3.18 8.7 (media types, Accept), 8.6 (multipart), RFC 2046, RFC 9110 12.5.1.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from dicom_node.errors import BadRequest

DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
JSON: Final = "application/json"
OCTET_STREAM: Final = "application/octet-stream"
MULTIPART: Final = "multipart/related"
MAX_HEADER_CHARACTERS: Final = 4096

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~/-]+"  # noqa: S105 - RFC 9110's word, no secret
_PARAMETER: Final = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*')
_RANGE: Final = re.compile(rf"\s*({_TOKEN})\s*")


@dataclass(frozen=True)
class MediaType:
    """One media type or range, with its parameters; names in lower case."""

    essence: str
    parameters: dict[str, str]

    @property
    def quality(self) -> float:
        """Weight in an Accept header, 0 to 1."""
        try:
            return float(self.parameters.get("q", "1"))
        except ValueError:
            return 1.0

    def covers(self, essence: str) -> bool:
        """Whether this range includes the media type `essence`."""
        kind = essence.partition("/")[0]
        return self.essence in (essence, "*/*", f"{kind}/*")


def parse_media_type(text: str) -> MediaType:
    """Parse one media type, such as a Content-Type.

    Raises
    ------
    BadRequest
        If it is none.
    """
    types = _parse_list(text)
    if len(types) != 1:
        raise BadRequest("the Content-Type header is not a media type")
    return types[0]


def accepted(request: Request) -> list[MediaType]:
    """What the client accepts, best first; the query parameter `accept` wins over the header.

    Source: PS3.18 8.3.3.1.
    """
    text = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
    types = _parse_list(text.replace(" ", "+") if "accept" in request.query_params else text)
    return sorted((kind for kind in types if kind.quality > 0), key=lambda kind: -kind.quality)


def part_type(kind: MediaType) -> str:
    """Media type of the parts of a multipart/related range; any, when it does not say."""
    return kind.parameters.get("type", "*/*").lower()


def _parse_list(text: str) -> list[MediaType]:
    if len(text) > MAX_HEADER_CHARACTERS:
        raise BadRequest("a media type header is too long")
    types, position = [], 0
    while position < len(text):
        kind = _RANGE.match(text, position)
        if kind is None:
            raise BadRequest("a media type header cannot be read")
        position, parameters = kind.end(), {}
        while match := _PARAMETER.match(text, position):
            name, quoted, bare = match.groups()
            parameters[name.lower()] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            position = match.end()
        if position < len(text) and text[position] != ",":
            raise BadRequest("a media type header cannot be read")
        position += 1
        types.append(MediaType(kind.group(1).lower(), parameters))
    return types


class MultipartWriter:
    """Renders multipart/related as OHIF's clients read it.

    CRLF line ends, no preamble, the literal name `Content-Type`, and a closing boundary.
    """

    def __init__(self, type_of_parts: str) -> None:
        self.boundary = secrets.token_hex(16)
        self.content_type = f'{MULTIPART}; type="{type_of_parts}"; boundary={self.boundary}'

    def head(self, content_type: str, location: str) -> bytes:
        """What stands before a part's content."""
        return (
            f"--{self.boundary}\r\nContent-Type: {content_type}\r\nContent-Location: {location}\r\n\r\n"
        ).encode("ascii")

    def tail(self) -> bytes:
        """The closing boundary."""
        return f"--{self.boundary}--\r\n".encode("ascii")

    def render(self, parts: Iterable[tuple[str, str, Iterable[bytes]]]) -> Iterator[bytes]:
        """Render (content type, location, content) parts."""
        for content_type, location, content in parts:
            yield self.head(content_type, location)
            yield from content
            yield b"\r\n"
        yield self.tail()

    def length(self, parts: Sequence[tuple[str, str, int]]) -> int:
        """Bytes of the whole body, for (content type, location, content bytes) parts."""
        heads = sum(len(self.head(kind, location)) + size + 2 for kind, location, size in parts)
        return heads + len(self.tail())
