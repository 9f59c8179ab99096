"""What OHIF 3.13.2 sends, and how its clients read the answers; after dicomweb-client and cornerstone."""

JSON = "application/dicom+json"
FRAMES = "multipart/related; type=application/octet-stream; transfer-syntax=*"
FRAMES_QUOTED = 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'
PART10 = 'multipart/related; type="application/dicom"'
STUDY_LIST = "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"
HEADER_WITHIN = 1000


def decode(body: bytes) -> list[bytes]:
    """dicomweb-client's multipartDecode: boundary from the body, CRLF only, no preamble."""
    header_end = body.find(b"\r\n\r\n", 0, HEADER_WITHIN)
    assert header_end != -1, "Response message has no multipart mime header"
    boundary = next(line for line in body[:header_end].split(b"\r\n") if line.startswith(b"--"))
    parts, offset = [], len(boundary)
    while (end := body.find(boundary, offset)) != -1:
        header_end = body.find(b"\r\n\r\n", offset, offset + HEADER_WITHIN)
        assert header_end != -1, "Response message part has no multipart mime header"
        parts.append(body[header_end + 4 : end - 2])
        offset = end + len(boundary)
    return parts


def extract_frame(body: bytes) -> tuple[str, bytes]:
    """cornerstone's extractMultipart: content type by the literal `Content-Type:`, then the pixels."""
    header_end = body.index(b"\r\n\r\n")
    lines = body[:header_end].decode("latin-1").split("\r\n")
    boundary = next(line for line in lines if line[:2] == "--")
    content_type = next(line[13:].strip() for line in lines if line[:13] == "Content-Type:")
    end = body.find(boundary.encode(), header_end + 4)
    assert end != -1, "invalid response - terminating boundary not found"
    return content_type, body[header_end + 4 : end - 2]


def upload(*files: bytes, boundary: str = "0123456789abcdef", closing: bool = True) -> dict[str, object]:
    """Body and headers of a STOW request as dicomweb-client's multipartEncode writes them."""
    parts = [f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file for file in files]
    tail = f"\r\n--{boundary}--".encode() if closing else b""
    content_type = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return {"content": b"".join(parts) + tail, "headers": {"Content-Type": content_type, "Accept": JSON}}
