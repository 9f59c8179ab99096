"""Reads a multipart/related body as it arrives, within limits; never holds a whole part.

Source: RFC 2046 5.1, PS3.18 8.6.1.2.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dicom_node.errors import BadRequest, BodyTooLarge, Unparseable

MAX_BOUNDARY_CHARACTERS: Final = 70  # Source: RFC 2046 5.1.1
BOUNDARY_FORM: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]*[0-9A-Za-z'()+_,./:=?-]")


@dataclass(frozen=True)
class MultipartLimits:
    """Bounds of one body."""

    max_body_bytes: int
    max_parts: int = 10_000
    max_header_bytes: int = 8192  # of one part; also of what stands before the first boundary


@dataclass(frozen=True)
class Part:
    """One part; `body` must be read before the next part is asked for."""

    headers: dict[str, str]  # names in lower case
    body: Iterator[bytes]


class MultipartReader:
    """Splits a stream of chunks into parts."""

    def __init__(self, chunks: Iterator[bytes], boundary: str, limits: MultipartLimits) -> None:
        if len(boundary) > MAX_BOUNDARY_CHARACTERS or BOUNDARY_FORM.fullmatch(boundary) is None:
            raise BadRequest("the boundary of the multipart body is not valid")
        self._chunks = chunks
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._limits = limits
        self._buffer = b"\r\n"  # so that a body may begin with its boundary
        self._total = 0
        self._is_last = False

    def parts(self) -> Iterator[Part]:
        """Yield the parts in their order.

        Raises
        ------
        BadRequest, BodyTooLarge
            If the body is not multipart, or beyond the limits.
        """
        self._skip_preamble()
        count = 0
        while not self._is_last:
            count += 1
            if count > self._limits.max_parts:
                raise BodyTooLarge(f"the body has more than {self._limits.max_parts} parts")
            headers = self._read_headers()
            body = self._body()
            yield Part(headers, body)
            for _rest in body:
                pass

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._total += len(chunk)
        if self._total > self._limits.max_body_bytes:
            raise BodyTooLarge(f"the body is larger than {self._limits.max_body_bytes} bytes")
        self._buffer += chunk
        return True

    def _skip_preamble(self) -> None:
        while (found := self._find_delimiter()) is None:
            if len(self._buffer) > self._limits.max_header_bytes or not self._more():
                raise BadRequest("the body does not begin with the boundary that Content-Type names")
        self._take_delimiter(found)

    def _find_delimiter(self) -> int | None:
        """Position of a delimiter whose end is in the buffer too, so that it can be judged."""
        start = 0
        while (found := self._buffer.find(self._delimiter, start)) != -1:
            after = found + len(self._delimiter)
            tail = self._buffer[after : after + 2]
            if len(tail) < 2:
                return None
            if tail in (b"\r\n", b"--") or tail[:1] in (b" ", b"\t"):
                return found
            start = found + 1
        return None

    def _take_delimiter(self, found: int) -> None:
        self._buffer = self._buffer[found + len(self._delimiter) :]
        self._is_last = self._buffer.startswith(b"--")
        if self._is_last:
            return
        while (end := self._buffer.find(b"\r\n")) == -1:
            if len(self._buffer) > self._limits.max_header_bytes or not self._more():
                raise BadRequest("the body ends after a boundary")
        self._buffer = self._buffer[end:]  # keeps the CRLF: a part without headers has CRLF CRLF here

    def _read_headers(self) -> dict[str, str]:
        while (end := self._buffer.find(b"\r\n\r\n")) == -1:
            if len(self._buffer) > self._limits.max_header_bytes or not self._more():
                raise BadRequest("the headers of a part do not end")
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        self._buffer = self._buffer[end + 4 :]
        pairs = (line.partition(":") for line in lines if line)
        return {name.strip().lower(): value.strip() for name, _colon, value in pairs}

    def _body(self) -> Iterator[bytes]:
        keep = len(self._delimiter) + 2  # these bytes may be the beginning of a delimiter
        while (found := self._find_delimiter()) is None:
            if len(self._buffer) > keep:
                piece, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
                yield piece
            if not self._more():
                self._is_last = True
                raise Unparseable("the body ended inside this part")
        if found:
            yield self._buffer[:found]
        self._take_delimiter(found)
