"""The attacks WEB-02 to WEB-15 on the web door, over real sockets where bytes matter."""

import contextlib
import json
import socket
import time

import httpx
import pytest
from pydicom.uid import generate_uid

from dicom_node.web import app as web_app
from dicom_node.web import body, connections
from tests.dicom_node.dimse.instances import make_image, part10
from tests.dicom_node.web.ohif import FRAMES, JSON, upload

STUDIES = "/dicom-web/studies"
BOUNDARY = "0123456789abcdef"
HEADERS = {
    "Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}',
    "Accept": JSON,
}
GENEROUS_S = 60


def raw(port, *pieces, limit_s=GENEROUS_S):
    """Send bytes, and read until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as peer:
        for piece in pieces:
            peer.sendall(piece)
        return peer.recv(65536)


def is_alive(port):
    return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=GENEROUS_S).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=-1", 400),
        ("limit=1000000000", 200),
        ("offset=1000000000000", 200),
        ("&".join(["includefield=all"] * 1000)[:16_000], 200),
        ("PatientName=" + "%2A" * 80, 200),
        ("PatientID=' OR 1=1 --", 200),
        ("StudyDate=99999999-", 200),
        ("StudyInstanceUID=" + "%5C".join(["1.2"] * 2000), 200),
    ],
)
def test_web_02_searches(client, keep, query, status):
    keep(make_image())
    assert client.get(f"{STUDIES}?{query}", JSON).status_code == status


class TestMultipart:
    """WEB-03."""

    def post(self, client, body, boundary=BOUNDARY):
        kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        return client.post(STUDIES, content=body, headers={"Content-Type": kind, "Accept": JSON})

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"x" * 1_000_000,
            f"--{BOUNDARY}\r\n".encode() + b"A: " + b"x" * 1_000_000,
            f"--{BOUNDARY}\nContent-Type: application/dicom\n\nx\n--{BOUNDARY}--\n".encode(),
            f"--{BOUNDARY}--\r\n".encode(),
            f"--{BOUNDARY}\r\n\r\n".encode(),
        ],
    )
    def test_bodies_that_are_none(self, client, body):
        assert self.post(client, body).status_code in (400, 413)

    @pytest.mark.parametrize("boundary", ["", "x" * 71, "x" * 1_000_000, "a b ", "x\\0"])
    def test_boundaries_that_are_none(self, client, boundary):
        assert self.post(client, b"--x\r\n\r\n", boundary).status_code == 400

    def test_a_hundred_thousand_parts(self, client):
        body = f"--{BOUNDARY}\r\n\r\nx\r\n".encode() * 100_000
        assert self.post(client, body).status_code == 413

    def test_nested_multipart_is_refused_by_its_type(self, client):
        inner = b"Content-Type: multipart/related; boundary=y\r\n\r\n--y\r\n\r\nx\r\n--y--"
        body = f"--{BOUNDARY}\r\n".encode() + inner + f"\r\n--{BOUNDARY}--".encode()
        answer = self.post(client, body)
        assert answer.status_code == 415
        assert "00081199" not in answer.json()

    def test_what_came_whole_before_the_end_is_stored_and_told(self, client, stored):
        good, cut = make_image(), make_image()
        request = upload(part10(good), part10(cut), closing=False)
        answer = client.post(STUDIES, content=request["content"][:-300], headers=request["headers"])
        assert answer.status_code == 202
        assert answer.json()["00081199"]["Value"][0]["00081155"]["Value"] == [str(good.SOPInstanceUID)]
        assert answer.json()["00081198"]["Value"][0]["00081155"]["Value"] == [str(cut.SOPInstanceUID)]
        assert stored(good.SOPInstanceUID)
        assert stored(cut.SOPInstanceUID) is None

    def test_a_boundary_inside_the_pixels_is_pixels(self, client, stored):
        image = make_image(rows=64, columns=64)
        trap = f"--{BOUNDARY}x and --{BOUNDARY[:-1]}".encode()
        image.PixelData = trap + image.PixelData[len(trap) :]
        assert client.post(STUDIES, **upload(part10(image))).status_code == 200
        assert trap in stored(image.SOPInstanceUID)


class TestFraming:
    """WEB-04, on a socket: uvicorn as `dicom-node web` runs it."""

    def head(self, *lines):
        return "\r\n".join([f"POST {STUDIES} HTTP/1.1", "Host: node", *lines, "", ""]).encode()

    def test_ten_gigabytes_announced_are_refused_before_they_come(self, server):
        kind = f"Content-Type: {HEADERS['Content-Type']}"
        answer = raw(server, self.head(kind, "Content-Length: 10737418240"))
        assert b" 413 " in answer.split(b"\r\n")[0]

    @pytest.mark.parametrize(
        "lines",
        [
            ["Content-Length: -1"],
            ["Content-Length: 5", "Content-Length: 6"],
            ["Content-Length: 5", "Transfer-Encoding: chunked"],
            ["Transfer-Encoding: chunked, identity"],
        ],
    )
    def test_framing_that_lies_is_400(self, server, lines):
        answer = raw(server, self.head(f"Content-Type: {HEADERS['Content-Type']}", *lines), b"x")
        assert answer.split(b"\r\n")[0].split(b" ")[1] in (b"400", b"411")
        assert is_alive(server)

    def test_a_body_that_stops_is_408(self, server, monkeypatch):
        monkeypatch.setattr(body, "SILENCE_S", 0.5)
        kind = f"Content-Type: {HEADERS['Content-Type']}"
        answer = raw(server, self.head(kind, "Content-Length: 1000"), f"--{BOUNDARY}\r\n".encode())
        assert b" 408 " in answer.split(b"\r\n")[0]

    def test_a_body_that_drips_is_408(self, server, monkeypatch):
        monkeypatch.setattr(body, "SILENCE_S", 1.0)
        kind = f"Content-Type: {HEADERS['Content-Type']}"
        with socket.create_connection(("127.0.0.1", server), timeout=GENEROUS_S) as peer:
            peer.sendall(self.head(kind, "Content-Length: 100000") + f"--{BOUNDARY}\r\n\r\n".encode())
            deadline = time.monotonic() + GENEROUS_S
            peer.settimeout(0.2)
            answer = b""
            while not answer:
                assert time.monotonic() < deadline
                peer.sendall(b"x")
                try:
                    answer = peer.recv(65536)
                except TimeoutError:
                    continue
        assert b" 408 " in answer.split(b"\r\n")[0]

    def test_a_connection_that_says_nothing_is_closed(self, server, monkeypatch):
        monkeypatch.setattr(connections, "HEAD_S", 0.5)
        peer = socket.create_connection(("127.0.0.1", server), timeout=GENEROUS_S)
        with peer, contextlib.suppress(ConnectionResetError):
            assert peer.recv(10) == b""
        assert is_alive(server)

    def test_an_endless_head_is_400(self, server):
        with socket.create_connection(("127.0.0.1", server), timeout=GENEROUS_S) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n")
            try:
                for _ in range(200):
                    peer.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")
                answer = peer.recv(65536)
            except (BrokenPipeError, ConnectionResetError):
                answer = b" 400 "
        assert b" 400 " in answer
        assert is_alive(server)

    @pytest.mark.parametrize(
        "hello", [b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00", b"\x01\x00\x00\x00\x00\xcd", b"\x0bMSH|^~\\&|\r"]
    )
    def test_other_protocols_are_400_or_closed(self, server, hello):
        answer = raw(server, hello + b"\r\n\r\n")
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
        assert is_alive(server)


def test_web_05_ten_thousand_ranges_are_one_answer(client, keep):
    address = keep(make_image())
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(2000))
    for form in ("", "/bulkdata/7FE00010", "/frames/1"):
        answer = client.get(f"{address}{form}", "*/*", headers={"range": many})
        assert answer.status_code == 200


def test_web_06_one_good_one_bad_one_again(client):
    good, again = make_image(), make_image()
    client.post(STUDIES, **upload(part10(again)))
    answer = client.post(STUDIES, **upload(part10(good), b"no DICOM", part10(again)))
    assert answer.status_code == 202
    assert len(answer.json()["00081199"]["Value"]) == 2
    assert [item["00081197"]["Value"] for item in answer.json()["00081198"]["Value"]] == [[0xC000]]


@pytest.mark.parametrize("name", ["callback", "destination", "url", "ReplyTo"])
def test_web_08_no_parameter_makes_the_node_call_anybody(client, monkeypatch, name):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: connected.append(address))
    answer = client.post(f"{STUDIES}?{name}=http://evil.example/", **upload(part10(make_image())))
    assert answer.status_code == 200
    assert connected == []


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc/metadata", "//", "/%00", "/" + "1" * 8192, "/1.2.3/series/../../x",
        "/1.2%0d%0aSet-Cookie:x/series", "/1.2.3/series/1/instances/1/bulkdata/../../etc",
        "/1.2.3/series/1.2/instances/1.2/frames/1%00",
    ],
)  # fmt: skip
def test_web_09_tricks_with_paths(client, path):
    answer = client.get(f"{STUDIES}{path}", JSON)
    assert answer.status_code in (400, 404)
    assert "set-cookie" not in answer.headers


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://x")',
    "a\r\nSet-Cookie: x=1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_web_10_texts_stay_texts(client, keep, text, caplog):
    image = make_image(PatientName=text[:60], StudyDescription=text[:60], SeriesDescription=text[:60])
    address = keep(image)
    for target in (STUDIES, f"{address}/metadata", "/api/studies", "/operator"):
        answer = client.get(target, "*/*")
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        if "html" in answer.headers["content-type"]:
            assert text not in answer.text
            assert "unsafe-inline" not in answer.headers["content-security-policy"].split("style-src")[0]
        else:
            json.loads(answer.content)
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert text.splitlines()[-1] not in caplog.text


def test_web_12_methods_origins_hosts(client):
    evil = {"origin": "https://evil.example", "host": "evil.example"}
    for method in ("OPTIONS", "TRACE", "DELETE"):
        answer = client.request(method, STUDIES, headers=evil)
        assert answer.status_code in (400, 405)
        assert "access-control-allow-origin" not in answer.headers
    answer = client.get(STUDIES, JSON, headers=evil)
    assert "evil" not in str(answer.headers)


def test_web_13_who_does_not_read_is_cut_off_and_others_are_served(server, keep, monkeypatch, caplog):
    monkeypatch.setattr(web_app, "SLOW_READER_S", 1.0)
    study, series = generate_uid(), generate_uid()
    images = [
        make_image(
            rows=2000, columns=2000, StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=n
        )
        for n in range(4)
    ]
    whole = 4 * 2000 * 2000 * 2
    address = keep(*images).split("/series/")[0]
    request = (
        f"GET {address} HTTP/1.1\r\nHost: node\r\nAccept: multipart/related; type=application/dicom\r\n\r\n"
    )
    peers = [slow_peer(server, request.encode()) for _ in range(5)]
    assert is_alive(server)
    deadline = time.monotonic() + GENEROUS_S
    while caplog.text.count("did not read its answer") < len(peers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for peer in peers:
        assert what_is_left(peer) < whole
        peer.close()
    assert is_alive(server)


def slow_peer(port, request):
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(GENEROUS_S)
    peer.connect(("127.0.0.1", port))
    peer.sendall(request)
    return peer


def what_is_left(peer):
    total = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.recv(1 << 20):
            total += len(piece)
    return total


@pytest.mark.parametrize(
    ("method", "options", "status"),
    [
        ("GET", {"headers": {"accept": "application/dicom+xml"}}, 406),
        ("GET", {"headers": {"accept": 'multipart/related; type="application/dicom+xml"'}}, 406),
        (
            "POST",
            {
                "headers": {"content-type": "application/dicom+xml", "accept": JSON},
                "content": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
            },
            415,
        ),
    ],
)
def test_web_15_no_xml_is_read_or_written(client, method, options, status):
    answer = client.request(method, STUDIES, **options)
    assert answer.status_code == status
    assert "root:" not in answer.text


def test_a_polyglot_is_a_download(client, stored):
    """PAR-13: DICOM that is HTML as well."""
    image = make_image()
    content = b"<script>alert(1)</script>".ljust(128, b" ") + part10(image)[128:]
    client.post(STUDIES, **upload(content))
    assert stored(image.SOPInstanceUID)[:128] == bytes(128)
    found = client.get(f"{STUDIES}/{image.StudyInstanceUID}", FRAMES.replace("octet-stream", "dicom"))
    assert found.headers["x-content-type-options"] == "nosniff"
    bare = client.get(
        f"{STUDIES}/{image.StudyInstanceUID}/series/{image.SeriesInstanceUID}/instances/{image.SOPInstanceUID}",
        "application/dicom",
    )
    assert bare.headers["content-disposition"] == "attachment"
    assert bare.headers["content-type"] == "application/dicom"
