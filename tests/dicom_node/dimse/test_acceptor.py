"""Whole associations on pynetdicom: mixed services, and what an attacker may not do there either."""

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, build_context

from dicom_node.dimse.association import MAX_MESSAGE_BYTES, MAX_PDU_BYTES
from dicom_node.dimse.mixed_store import ArrivingInstance
from dicom_node.dimse.query_model import STUDY_ROOT
from storage.index import find_instance
from tests.dicom_node.dimse.instances import CT, make_image
from tests.dicom_node.dimse.queries import identifier

VERIFICATION = "1.2.840.10008.1.1"


def associate(node, *contexts):
    ae = AE("TESTER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    association = ae.associate("127.0.0.1", node.port, contexts=list(contexts), ae_title="SIM4SEG")
    assert association.is_established
    return association


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_answering(node):
    command = ["echoscu", "-aec", "SIM4SEG", "-to", "20", "127.0.0.1", str(node.port)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_one_association_for_everything(node, database):
    running, image = node(), make_image()
    association = associate(
        running, build_context(VERIFICATION), build_context(CT, image.file_meta.TransferSyntaxUID),
        build_context(STUDY_ROOT.find),
    )  # fmt: skip
    assert association.send_c_echo().Status == 0x0000
    assert association.send_c_store(image).Status == 0x0000
    asked = identifier(StudyInstanceUID=image.StudyInstanceUID)
    statuses = [status.Status for status, _ in association.send_c_find(asked, STUDY_ROOT.find)]
    assert statuses == [0xFF00, 0x0000]
    assert association.send_c_store(image).Status == 0x0000
    association.release()


def test_storing_needs_its_right_here_too(node):
    running, image = node(dimse={"others_may": ["query"]}), make_image()
    contexts = [build_context(CT, image.file_meta.TransferSyntaxUID), build_context(STUDY_ROOT.find)]
    association = associate(running, *contexts)
    assert association.send_c_store(image).Status == 0x0124
    association.release()


class Raw:
    """The connection of an association that pynetdicom agreed on, to write anything on."""

    def __init__(self, node):
        self.association = associate(node, build_context(STUDY_ROOT.find))
        self.connection = self.association.dul.socket.socket
        self.context_id = self.association.accepted_contexts[0].context_id

    def send(self, data):
        self.connection.sendall(data)

    def fragment(self, data, control=0x00):
        """A P-DATA-TF PDU with one PDV; `control` 0 = data set, not the last; 1 = command; 3 = the whole."""
        pdv = struct.pack(">IBB", len(data) + 2, self.context_id, control) + data
        return struct.pack(">BBI", 0x04, 0, len(pdv)) + pdv

    def is_ended(self, limit_s=40):
        end = time.monotonic() + limit_s
        while self.association.is_alive() and not self.association.is_aborted:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def close(self):
        self.association.abort()
        self.connection.close()  # pynetdicom forgets it when the peer aborts


@pytest.fixture
def raw():
    opened = []

    def start(node):
        opened.append(Raw(node))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_message_without_an_end_is_cut_and_memory_stays(node, raw):
    running = node()
    attacker = raw(running)
    before, chunk = resident_bytes(), attacker.fragment(bytes(16000))
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 8 * MAX_MESSAGE_BYTES:
            attacker.send(chunk)
            sent += len(chunk)
    assert sent < 8 * MAX_MESSAGE_BYTES
    assert attacker.is_ended()
    assert resident_bytes() - before < 6 * MAX_MESSAGE_BYTES
    assert is_answering(running)


def test_a_pdu_that_is_too_long_is_not_read(node, raw):
    running = node()
    attacker = raw(running)
    attacker.send(struct.pack(">BBI", 0x04, 0, MAX_PDU_BYTES + 1))
    assert attacker.is_ended()
    assert is_answering(running)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x04\x00\x00\x00\x00\x00",
        b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x07\x03",
        b"\x04\x00\x00\x00\x00\x08\x00\x00\x00\x04\x01\x03\xff\xff",
        b"\x01\x00\x00\x00\x00\x04abcd",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_ends_the_association_and_no_other(node, raw, garbage):
    running = node()
    attacker = raw(running)
    attacker.send(garbage)
    assert attacker.is_ended()
    assert is_answering(running)


def test_an_identifier_that_is_too_large_is_refused(node):
    running = node()
    association = associate(running, build_context(STUDY_ROOT.find))
    asked = identifier(PatientID="P")
    asked.add_new(0x00104000, "UN", b"x" * 2_000_000)
    ((status, _),) = association.send_c_find(asked, STUDY_ROOT.find)
    assert status.Status == 0xC000
    assert status.ErrorComment
    association.release()


def test_termscu_does_not_end_the_node(node):
    running = node()
    command = ["termscu", "-aec", "SIM4SEG", "127.0.0.1", str(running.port)]
    subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert is_answering(running)
    socket.create_connection(("127.0.0.1", running.port)).close()


# --- an instance beside queries: to its file as it comes, never into memory ---------------------------

LARGE = 24 * 1024 * 1024


@pytest.fixture
def sending(node):
    """A function that associates for C-STORE and queries with a node of these settings, and gives both."""
    opened = []

    def start(image, **settings):
        running = node(**settings)
        syntax = image.file_meta.TransferSyntaxUID
        opened.append(associate(running, build_context(CT, syntax), build_context(STUDY_ROOT.find)))
        return running, opened[-1]

    yield start
    for association in opened:
        association.abort()


def large_image():
    image = make_image()
    image.Rows, image.Columns = LARGE // 4096, 2048
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = bytes(image.Rows * image.Columns * 2)
    return image


def test_a_large_instance_beside_queries_goes_through_its_file(sending, database, files_root, monkeypatch):
    kept = []
    write = ArrivingInstance.write

    def watched(self, data):
        write(self, data)
        kept.append(sum(path.stat().st_size for path in files_root.glob("incoming/*.part")))

    monkeypatch.setattr(ArrivingInstance, "write", watched)
    image = large_image()
    _running, association = sending(image)
    assert association.send_c_store(image).Status == 0x0000
    assert max(kept) > LARGE // 2  # it was on the disk before it had come completely
    with database.reading() as tx:
        row = find_instance(tx, image.SOPInstanceUID)
    assert dcmread(files_root / row.path).PixelData == image.PixelData
    assert not list(files_root.glob("incoming/*"))


def test_a_refusal_beside_queries_is_answered_after_the_data_set(sending):
    image = large_image()
    _running, association = sending(image, dimse={"others_may": ["query"]})
    assert [association.send_c_store(image).Status for _ in range(2)] == [0x0124, 0x0124]


def test_an_instance_that_breaks_off_beside_queries_leaves_no_file(sending, files_root, monkeypatch):
    came = threading.Event()
    write = ArrivingInstance.write

    def watched(self, data):
        write(self, data)
        came.set()

    monkeypatch.setattr(ArrivingInstance, "write", watched)
    image = large_image()
    running, association = sending(image)
    sender = threading.Thread(target=association.send_c_store, args=(image,), daemon=True)
    sender.start()
    assert came.wait(30)
    association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    sender.join(30)
    running.close()
    assert not list(files_root.glob("incoming/*"))
    assert not list(files_root.glob("objects/*/*"))
