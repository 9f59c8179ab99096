"""WEB-11: requests that hypothesis makes up, to every route of the table of rights; none ends in a 5xx.

`WEB_EXAMPLES=2000` makes more of them; `make soak` does.
"""

import json
import os
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dicom_node.web.login.rights import RIGHTS, WEBSOCKET
from storage.index import mark_complete
from storage.jobs import JobRequest, create_job
from storage.workitems import uid_of_job
from tests.dicom_node.dimse.instances import make_image, part10

EXAMPLES: Final = int(os.environ.get("WEB_EXAMPLES", "300"))
HANGS_AFTER_S: Final = 60.0
ROUTES: Final = sorted(tuple(key.split(" ", 1)) for key in RIGHTS if not key.startswith(WEBSOCKET))
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW")
DICOM_JSON: Final = "application/dicom+json"
BOUNDARY: Final = "edge"
MULTIPART: Final = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
IMAGE: Final = make_image()
PARAMETERS: Final = (
    "limit", "offset", "includefield", "fuzzymatching", "PatientName", "PatientID", "StudyDate", "00100020",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "ModalitiesInStudy",
    "InstanceNumber", "viewport", "window", "quality", "annotation", "presentationUID", "requestType",
    "studyUID", "seriesUID", "objectUID", "contentType", "transferSyntax", "frameNumber", "imageQuality",
    "rows", "columns", "state", "outcome", "StudyInstanceUIDs", "workitem", "00741000", "filter",
    "deletionlock", "accept",
)  # fmt: skip
VALUES: Final = (
    "", "0", "1", "-1", "200", "1000000000000000000000", "1.5", "NaN", "all", "true", "*", "?", "20260101-",
    "-", "19990230", "a\\b", "1,2,3", "1,1,512,512", "0,0,0,0", "100,50,linear", "WADO",
    "1.2.840.10008.1.2.1", "image/jpeg", "application/dicom", "*/*", "CT", "SCHEDULED",
    "1.2.840.10008.5.1.4.34.5", str(IMAGE.StudyInstanceUID), str(IMAGE.SeriesInstanceUID),
    str(IMAGE.SOPInstanceUID), "%", "\0", "'--", "é",
)  # fmt: skip
MEDIA_TYPES: Final = (
    DICOM_JSON, "application/json", "application/dicom", "application/octet-stream", "image/jpeg",
    "image/png", "text/html", "*/*", MULTIPART, 'multipart/related; type="application/octet-stream"',
    "multipart/related", f"multipart/related; type={DICOM_JSON}; boundary={BOUNDARY}",
    "application/dicom; transfer-syntax=*", "application/dicom+xml",
    "application/dicom; transfer-syntax=1.2.3", "q=1;;,", "image/gif;q=x", "",
    "application/x-www-form-urlencoded",
)  # fmt: skip
HEADERS: Final = {
    "accept": st.sampled_from(MEDIA_TYPES),
    "content-type": st.sampled_from(MEDIA_TYPES),
    "range": st.sampled_from(("bytes=0-9", "bytes=-5", "bytes=9-1", "bytes=a-b", "lines=1", "bytes=0-1,4-5")),
    "if-none-match": st.sampled_from(("*", '"x"', "W/")),
    "host": st.sampled_from(("127.0.0.1", "node", "evil.example", "[::1", "")),
    "origin": st.sampled_from(("http://node", "http://evil.example", "null", "http://[", "")),
    "content-length": st.sampled_from(("0", "-1", "x", "99999999999999")),
    "content-location": st.sampled_from(("http://169.254.169.254/", "x", "")),
    "cookie": st.sampled_from(("session=x", "a=b; a=c", "=;=")),
    "authorization": st.sampled_from(("Bearer x", "Basic !", "")),
}


@dataclass(frozen=True)
class Made:
    """A request as a client could send it."""

    method: str
    path: str  # percent-encoded
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@pytest.fixture
def known(keep, database):
    """Identifiers of what the node has, for path parameters."""
    keep(IMAGE)
    study, series = str(IMAGE.StudyInstanceUID), str(IMAGE.SeriesInstanceUID)
    with database.transaction() as tx:
        mark_complete(tx, study, 1, {"kind": "quiet"})
        job_id = create_job(tx, JobRequest(study, 1, series, "rule", "sim4seg-s", "Where is the lesion?"))
    assert job_id is not None
    return {
        "study": study,
        "series": series,
        "instance": str(IMAGE.SOPInstanceUID),
        "frames": "1",
        "job_id": job_id,
        "workitem": uid_of_job(job_id),
        "subscriber": "VIEWER",
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
element = st.one_of(
    plain,
    st.fixed_dictionaries(
        {"vr": st.sampled_from(("UI", "CS", "SQ", "PN", "IS", "DS", "OB", "XX")) | plain},
        optional={"Value": st.lists(plain, max_size=2) | plain, "BulkDataURI": plain, "InlineBinary": plain},
    ),
)
TAGS: Final = (
    "00741000",
    "00404021",
    "00741210",
    "00081195",
    "0020000D",
    "00080018",
    "7FE00010",
    "00100010",
    "x",
)
FIELDS: Final = ("study", "series", "question", "model", "send", "target", "username", "password")
documents = st.one_of(
    plain,
    st.dictionaries(st.sampled_from(TAGS), element, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(TAGS), element, max_size=3), max_size=2),
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES) | plain, max_size=4),
)
parts = st.sampled_from((part10(IMAGE), part10(IMAGE)[:200], b"", b"{}", b"[]")) | st.binary(max_size=40)


def multipart(contents: list[bytes], kind: str, end: bytes) -> bytes:
    lines = b"".join(
        b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), kind.encode(), content)
        for content in contents
    )
    return lines + end


bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    documents.map(lambda document: json.dumps(document).encode()),
    st.builds(
        multipart,
        st.lists(parts, max_size=3),
        st.sampled_from(MEDIA_TYPES),
        st.sampled_from((b"--edge--\r\n", b"--edge--", b"--edge", b"")),
    ),
)
words = st.sampled_from(VALUES) | st.text(max_size=12)
queries = st.lists(st.tuples(st.sampled_from(PARAMETERS) | st.text(max_size=6), words), max_size=4).map(
    lambda pairs: "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)
)
headers = st.fixed_dictionaries({}, optional=HEADERS)


@st.composite
def requests(draw: st.DrawFn, known: dict[str, str]) -> Made:
    """A route with what it names, mostly what the node has, and whatever else a client may add."""
    method, template = draw(st.sampled_from(ROUTES))
    segments = []
    for segment in template.split("/"):
        name = segment.strip("{}").removesuffix(":path")
        is_free = segment.startswith("{")
        have = known.get(name, "")
        segments.append(quote(draw(st.sampled_from((have,) * 4) | words), safe="/") if is_free else segment)
    return Made(
        draw(st.sampled_from((method,) * 9 + METHODS)),
        "/".join(segments),
        draw(queries),
        draw(headers),
        draw(bodies),
    )


def answer_of(app: Any, made: Made) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the app's answer, asked as uvicorn asks it."""
    given_headers = {"host": "node", **made.headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": made.method,
        "scheme": "http",
        "path": unquote(made.path),
        "raw_path": made.path.encode("ascii"),
        "query_string": made.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given_headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }
    came = [{"type": "http.request", "body": made.body, "more_body": False}, {"type": "http.disconnect"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return came.pop(0) if len(came) > 1 else came[0]

    async def send(message: dict[str, Any]) -> None:
        sent.append(dict(message))

    async def ask() -> None:
        with anyio.fail_after(HANGS_AFTER_S):
            await app(scope, receive, send)

    anyio.run(ask)
    begin, *rest = sent
    told = {name.decode().lower(): value.decode("latin-1") for name, value in begin["headers"]}
    return begin["status"], told, b"".join(message.get("body", b"") for message in rest)


def test_whatever_is_asked_the_answer_is_one_of_ours(app, known):
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(requests(known))
    @example(Made("POST", "/dicom-web/studies", headers={"origin": "http://["}))
    @example(Made("GET", "/dicom-web/instances", query="ModalitiesInStudy=0"))
    def ask(made: Made) -> None:
        status, told, body = answer_of(app, made)
        assert 200 <= status < 500, (made, status, body[:500])
        kind = told.get("content-type", "")
        if made.method == "HEAD" or not body:
            return
        if "json" in kind and "multipart" not in kind:
            json.loads(body)
        if status >= 400:
            assert_says_what_is_wrong(status, kind, body)

    ask()


def assert_says_what_is_wrong(status: int, kind: str, body: bytes) -> None:
    """A sentence for people, without a word of what is inside."""
    text = body.decode("utf-8")
    assert not any(word in text for word in ("Traceback", 'File "', "sqlalchemy", "/tmp/")), text
    if "json" in kind:
        document = json.loads(text)
        assert "00081198" in document or len(document["error"].split()) >= 3, (status, text)
