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
    body: Iterator[bytes | memoryview]


class MultipartReader:
    """Splits a stream of chunks into parts."""

    def __init__(self, chunks: Iterator[bytes], boundary: str, limits: MultipartLimits) -> None:
        if len(boundary) > MAX_BOUNDARY_CHARACTERS or BOUNDARY_FORM.fullmatch(boundary) is None:
            raise BadRequest("the boundary of the multipart body is not valid")
        self._chunks = chunks
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._limits = limits
        self._buffer = b"\r\n"  # so that a body may begin with its boundary
        self._position = 0  # what of the buffer was dealt with
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

    def _next_chunk(self) -> bytes | None:
        chunk = next(self._chunks, None)
        self._total += len(chunk or b"")
        if self._total > self._limits.max_body_bytes:
            raise BodyTooLarge(f"the body is larger than {self._limits.max_body_bytes} bytes")
        return chunk

    def _more(self) -> bool:
        chunk = self._next_chunk()
        if chunk is None:
            return False
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        return True

    def _skip_preamble(self) -> None:
        while (found := self._find_delimiter()) is None:
            if self._waiting_bytes() > self._limits.max_header_bytes or not self._more():
                raise BadRequest("the body does not begin with the boundary that Content-Type names")
        self._take_delimiter(found)

    def _waiting_bytes(self) -> int:
        return len(self._buffer) - self._position

    def _find_delimiter(self) -> int | None:
        """Position of a delimiter whose end is in the buffer too, so that it can be judged."""
        start = self._position
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
        self._position = found + len(self._delimiter)
        self._is_last = self._buffer.startswith(b"--", self._position)
        if self._is_last:
            return
        # The CRLF is kept: a part without headers has CRLF CRLF here.
        self._position = self._end_at(b"\r\n", "the body ends after a boundary")

    def _read_headers(self) -> dict[str, str]:
        end = self._end_at(b"\r\n\r\n", "the headers of a part do not end")
        lines = self._buffer[self._position : end].decode("latin-1").split("\r\n")
        self._position = end + 4
        pairs = (line.partition(":") for line in lines if line)
        return {name.strip().lower(): value.strip() for name, _colon, value in pairs}

    def _end_at(self, mark: bytes, problem: str) -> int:
        """Where the next `mark` begins; BadRequest with `problem` if it does not come soon."""
        while (end := self._buffer.find(mark, self._position)) == -1:
            if self._waiting_bytes() > self._limits.max_header_bytes or not self._more():
                raise BadRequest(problem)
        return end

    def _body(self) -> Iterator[memoryview]:
        keep = len(self._delimiter) + 2  # these bytes may be the beginning of a delimiter
        while (found := self._find_delimiter()) is None:
            end = len(self._buffer) - keep
            if end > self._position:
                start, self._position = self._position, end
                yield memoryview(self._buffer)[start:end]
            chunk = self._next_chunk()
            if chunk is None:
                self._is_last = True
                raise Unparseable("the body ended inside this part")
            rest, self._buffer, self._position = self._buffer[self._position :], chunk, 0
            if len(chunk) < keep or self._delimiter in rest + chunk[:keep]:
                self._buffer = rest + chunk
            else:  # nearly always, and then the chunk is not copied
                yield memoryview(rest)
        if found > self._position:
            start, self._position = self._position, found
            yield memoryview(self._buffer)[start:found]
        self._take_delimiter(found)
