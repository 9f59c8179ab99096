"""STOW-RS as OHIF and others write it: results a part, statuses, and bodies that lie."""

import json
import os
import socket
import stat
import time
from io import BytesIO
from itertools import groupby

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_node import committer
from dicom_node.web import stow
from storage.errors import StorageFull
from storage.files import DiskFiles
from storage.tables import Study
from tests.dicom_node.dimse.instances import (
    COMPRESSED,
    data_set_bytes,
    make_data_set,
    make_image,
    part10,
)
from tests.dicom_node.web.ohif import upload

STUDIES = "/dicom-web/studies"


def values(item, tag):
    return item.get(tag, {}).get("Value")


def failure_reasons(answer):
    return [values(item, "00081197")[0] for item in values(answer.json(), "00081198") or []]


def stored_uids(answer):
    return [values(item, "00081155")[0] for item in values(answer.json(), "00081199") or []]


def test_an_upload_as_ohif_writes_it(client, stored, database):
    first = make_image()
    second = make_image(StudyInstanceUID=first.StudyInstanceUID)
    files = [part10(first), part10(second)]

    answer = client.post(STUDIES, **upload(*files))

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert stored_uids(answer) == [first.SOPInstanceUID, second.SOPInstanceUID]
    assert values(answer.json(), "00081190") == [f"{STUDIES}/{first.StudyInstanceUID}"]
    assert data_set_bytes(stored(first.SOPInstanceUID)) == data_set_bytes(files[0])
    with database.reading() as tx:
        study = tx.get(Study, str(first.StudyInstanceUID))
    assert study.complete_requested_by == "STOW-RS request"


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_compressed_instances_are_kept(client, stored, syntax):
    image = make_image(frames=2, syntax=syntax)
    assert client.post(STUDIES, **upload(part10(image))).status_code == 200
    assert data_set_bytes(stored(image.SOPInstanceUID)) == data_set_bytes(part10(image))


def test_one_instance_without_multipart(client, stored):
    image = make_image()
    answer = client.post(STUDIES, content=part10(image), headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 200
    assert stored(image.SOPInstanceUID)


def test_the_study_of_the_address_must_be_the_instances(client, stored):
    image = make_image()
    assert client.post(f"{STUDIES}/{image.StudyInstanceUID}", **upload(part10(image))).status_code == 200
    other = make_image()
    answer = client.post(f"{STUDIES}/{generate_uid()}", **upload(part10(other)))
    assert (answer.status_code, failure_reasons(answer)) == (409, [43265])
    assert stored(other.SOPInstanceUID) is None


def test_a_good_a_bad_and_a_known_one_are_told_apart(client, database):
    known, good = make_image(), make_image()
    client.post(STUDIES, **upload(part10(known)))
    answer = client.post(STUDIES, **upload(part10(good), part10(make_image())[:-9], part10(known)))
    assert answer.status_code == 202
    assert stored_uids(answer) == [good.SOPInstanceUID, known.SOPInstanceUID]
    assert failure_reasons(answer) == [0xC000]
    with database.reading() as tx:
        assert tx.get(Study, str(good.StudyInstanceUID)).complete_requested_by is None


def test_a_conflict_is_409_and_names_the_instance(client):
    image = make_image()
    client.post(STUDIES, **upload(part10(image)))
    image.PixelData = bytes(len(image.PixelData))
    answer = client.post(STUDIES, **upload(part10(image)))
    assert (answer.status_code, failure_reasons(answer)) == (409, [273])
    (item,) = values(answer.json(), "00081198")
    assert values(item, "00081155") == [image.SOPInstanceUID]


def test_parts_that_are_no_dicom_are_400(client):
    answer = client.post(STUDIES, **upload(b"not DICOM"))
    assert (answer.status_code, failure_reasons(answer)) == (400, [0xC000])


def test_the_same_again_is_a_success(client):
    image = make_image()
    statuses = [client.post(STUDIES, **upload(part10(image))).status_code for _time in range(2)]
    assert statuses == [200, 200]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ('multipart/related; type="application/dicom+xml"; boundary=x', 415),
        ("application/dicom+xml", 415),
        ("", 400),
        ("nonsense", 415),
        ('multipart/related; type="application/dicom"', 400),
        (f'multipart/related; type="application/dicom"; boundary="{"b" * 71}"', 400),
        (f'multipart/related; type="application/dicom"; boundary="{"b" * 9000}"', 400),
    ],
)
def test_other_bodies_are_refused_with_a_sentence(client, content_type, status):
    answer = client.post(STUDIES, content=b"--x--", headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert answer.json()["advice"]


def test_xml_answers_are_not_made(client):
    request = upload(part10(make_image()))
    request["headers"]["Accept"] = "application/dicom+xml"
    assert client.post(STUDIES, **request).status_code == 406


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"--b",
        b"--b\r\nContent-Type: application/dicom",
        b"--b\nContent-Type: application/dicom\n\nx\n--b--",
        b"--b\r\n" + b"X: " + b"y" * 100_000,
        b"x" * 100_000 + b"\r\n--b\r\n\r\n\r\n--b--",
        b"--b--",
    ],
    ids=["empty", "none", "bare", "cut header", "LF only", "endless header", "long preamble", "no part"],
)
def test_broken_multipart_is_400(client, body):
    content_type = 'multipart/related; type="application/dicom"; boundary=b'
    answer = client.post(STUDIES, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400


def test_a_body_without_its_end_reports_what_came_before(client):
    whole, cut = make_image(), make_image()
    answer = client.post(STUDIES, **upload(part10(whole), part10(cut), closing=False))
    assert answer.status_code == 202
    assert stored_uids(answer) == [whole.SOPInstanceUID]
    assert failure_reasons(answer) == [0xC000]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_chunks_may_fall_anywhere_and_the_boundary_may_stand_in_the_pixels(client, stored, size):
    image = make_image(rows=16, columns=16)
    trap = b"\r\n--0123456789abcde_\r\n\r\n--0123456789abcdefX"
    image.PixelData = trap + image.PixelData[len(trap) :]
    request = upload(part10(image))
    body = request.pop("content")

    async def chunks():
        for start in range(0, len(body), size):
            yield body[start : start + size]

    answer = client.post(STUDIES, content=chunks(), **request)
    assert answer.status_code == 200
    assert dcmread(BytesIO(stored(image.SOPInstanceUID))).PixelData == image.PixelData


def test_more_parts_than_allowed_is_413(client):
    boundary = b"--b\r\n\r\n\r\n"
    content_type = 'multipart/related; type="application/dicom"; boundary=b'
    answer = client.post(
        STUDIES, content=boundary * 10_002 + b"--b--", headers={"Content-Type": content_type}
    )
    assert answer.status_code == 413


@pytest.fixture
def told(monkeypatch):
    """What is done for durability and when a request is answered, in order."""
    events, fsync, rename, render = [], os.fsync, os.rename, stow.dicom_json_response
    index = committer.index_instances

    def of(name, function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            is_name = name == "fsync" and not stat.S_ISREG(os.fstat(arguments[0]).st_mode)
            events.append("fsync of a folder" if is_name else name)
            return result

        return call

    monkeypatch.setattr(os, "fsync", of("fsync", fsync))
    monkeypatch.setattr(os, "rename", of("rename", rename))
    monkeypatch.setattr(committer, "index_instances", of("rows", index))
    monkeypatch.setattr(stow, "dicom_json_response", of("answer", render))
    return events


def test_the_answer_goes_out_after_all_of_them_are_durable(client, stored, told):
    images = [make_image() for _ in range(stow.TOGETHER + 3)]
    client.post(STUDIES, **upload(part10(make_image())))  # the folders are there
    told.clear()

    answer = client.post(STUDIES, **upload(*map(part10, images)))

    assert stored_uids(answer) == [image.SOPInstanceUID for image in images]
    assert all(stored(image.SOPInstanceUID) for image in images)
    order = [event for event, _same in groupby(told)]
    together = ["fsync", "rename", "fsync of a folder", "rows"]
    assert order == [*together, *together, "answer"]
    assert (told.count("fsync"), told.count("rows")) == (len(images), 2)


def test_a_disk_that_refuses_a_batch_is_told_for_each_of_it(client, stored, monkeypatch):
    images = [make_image() for _ in range(3)]
    keep_all, full = DiskFiles.keep_all, [True]

    def refuse_first(files, incoming, **options):
        if full.pop() if full else False:
            raise StorageFull("no room")
        return keep_all(files, incoming, **options)

    monkeypatch.setattr(DiskFiles, "keep_all", refuse_first)
    answer = client.post(STUDIES, **upload(*map(part10, images)))
    assert (answer.status_code, failure_reasons(answer)) == (507, [0xA700] * 3)
    assert not any(stored(image.SOPInstanceUID) for image in images)
    assert client.post(STUDIES, **upload(*map(part10, images))).status_code == 200


def test_refused_ones_in_between_leave_no_file_and_take_none_with_them(client, stored, files_root):
    good = [make_image() for _ in range(3)]
    bodies = [part10(good[0]), part10(good[1])[:-20], b"no DICOM", part10(good[2]), part10(good[0])]
    answer = client.post(STUDIES, **upload(*bodies))
    assert answer.status_code == 202
    assert stored_uids(answer) == [good[number].SOPInstanceUID for number in (0, 2, 0)]
    assert len(failure_reasons(answer)) == 2
    assert stored(good[1].SOPInstanceUID) is None
    assert incoming(files_root) == []


class TestSmallNode:
    @pytest.fixture
    def sections(self):
        return {"http": {"max_body_mb": 1}, "limits": {"min_free_mb": 0, "max_instance_mb": 1}}

    def test_a_body_beyond_the_limit_is_413_by_its_length(self, client):
        answer = client.post(STUDIES, **upload(bytes(1_100_000)))
        assert answer.status_code == 413

    def test_a_body_beyond_the_limit_is_413_while_it_comes(self, client):
        request = upload(part10(make_image(rows=512, columns=512)), bytes(900_000))
        body = request.pop("content")

        async def chunks():
            for start in range(0, len(body), 65536):
                yield body[start : start + 65536]

        answer = client.post(STUDIES, content=chunks(), **request)
        assert answer.status_code in (202, 413)
        assert client.post(STUDIES, content=one(bytes(1_100_000)), **request).status_code in (400, 413)


async def one(chunk):
    yield chunk


class TestFullDisk:
    @pytest.fixture
    def sections(self):
        return {"limits": {"min_free_mb": 10**9}}

    def test_is_507_and_says_when_to_come_back(self, client):
        answer = client.post(STUDIES, **upload(part10(make_image())))
        assert (answer.status_code, failure_reasons(answer)) == (507, [0xA700])


def test_uids_in_the_address_are_checked(client):
    answer = client.post(f"{STUDIES}/..%2F..%2Fetc", **upload(part10(make_image())))
    assert answer.status_code in (400, 404, 405)


def test_by_a_real_socket_with_everything_at_once(server, stored):
    image = make_image(rows=300, columns=300)
    answer = httpx.post(f"http://127.0.0.1:{server}{STUDIES}", **upload(part10(image)))
    assert answer.status_code == 200
    assert data_set_bytes(stored(image.SOPInstanceUID)) == data_set_bytes(part10(image))


def test_a_client_that_breaks_off_leaves_nothing(server, files_root):
    with socket.create_connection(("127.0.0.1", server)) as peer:
        request = upload(part10(make_image(rows=1200, columns=1200)))
        head = [
            f"POST {STUDIES} HTTP/1.1",
            "Host: node",
            f"Content-Type: {request['headers']['Content-Type']}",
            f"Content-Length: {len(request['content'])}",
        ]
        peer.sendall("\r\n".join([*head, "", ""]).encode() + request["content"][:2_000_000])
        wait_until(lambda: incoming(files_root) != [])
    wait_until(lambda: incoming(files_root) == [])
    assert httpx.get(f"http://127.0.0.1:{server}/health/live").json() == {"status": "alive"}


def incoming(files_root):
    folder = files_root / "incoming"
    return list(folder.iterdir()) if folder.exists() else []


def wait_until(is_true):
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_answers_show_no_patient_attribute(client):
    answer = client.post(STUDIES, **upload(part10(make_data_set())))
    assert "Müller" not in json.dumps(answer.json(), ensure_ascii=False)
