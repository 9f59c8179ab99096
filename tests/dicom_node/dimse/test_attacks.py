"""Attacks on the network door: each is answered as the standard says, and C-ECHO is answered throughout."""

import contextlib
import resource
import socket
import struct
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmwrite

from tests.dicom_node.dimse.instances import make_image
from tests.dicom_node.dimse.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    CT,
    DATA,
    EXPLICIT,
    IMPLICIT,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    associate_rq,
    associated,
    command,
    connect,
    context,
    data_pdu,
    echo_rq,
    echo_status,
    item,
    pdu,
    pdv,
    receive_pdu,
    status_of,
    store_rq,
)

MEMORY_MB = 256  # beyond what the process held before


@pytest.fixture(autouse=True)
def flat(listen):
    """After every attack: C-ECHO is answered, threads, descriptors and memory are where they were."""
    threads, descriptors, memory = threading.active_count(), count_descriptors(), resident_mb()
    yield
    wait_until(lambda: threading.active_count() <= threads + 8)
    wait_until(lambda: count_descriptors() <= descriptors + 12)
    assert resident_mb() - memory < MEMORY_MB


def count_descriptors():
    return sum(1 for _each in Path("/proc/self/fd").iterdir())


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def wait_until(is_true, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def encoded(dataset):
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def bare(dataset):
    copy = type(dataset)()
    copy.update({each.tag: each for each in dataset})
    return copy


@pytest.fixture
def image():
    return make_image(rows=64, columns=64)


@pytest.fixture
def data(image):
    return encoded(bare(image))


def test_500_idle_connections_are_closed_and_nobody_waits_for_them(listen):  # NET-04
    port = listen(acse_timeout_s=2)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(500)]
        assert echo_status(port) == 0
        for peer in idle:
            assert peer.recv(1) == b""


def test_drippers_and_health_probes_take_no_place_and_no_thread(listen):  # NET, reliability 1.4
    port = listen(max_associations=2, acse_timeout_s=3)
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(connect(port)) for _ in range(40)]
        for byte in associate_rq()[:20]:
            for peer in dripping:
                with contextlib.suppress(OSError):
                    peer.sendall(bytes([byte]))
            connect_and_close(port)
            assert echo_status(port) == 0
            assert threading.active_count() <= threads + 3


def connect_and_close(port):
    with connect(port):
        pass


@pytest.mark.parametrize("length", [0xFFFFFFFF, 128 * 1024 + 1, 10, 0])
def test_a_request_of_senseless_length_is_aborted_unread(listen, length):  # NET, reliability 1.4, 1.7
    with connect(listen()) as peer:
        peer.sendall(struct.pack(">BxI", ASSOCIATE_RQ, length))
        assert receive_pdu(peer)[0] == ABORT


BROKEN_REQUESTS = {
    "no context": associate_rq(b""),
    "the same id twice": associate_rq(context(1), context(1)),
    "an even id": associate_rq(context(2)),
    "a context without transfer syntax": associate_rq(item(0x20, bytes(4) + item(0x30, CT.encode()))),
    "two abstract syntaxes": associate_rq(
        item(0x20, b"\x01\0\0\0" + item(0x30, CT.encode()) * 2 + item(0x40, EXPLICIT.encode()))
    ),
    "a path as UID": associate_rq(context(1, "../../etc/passwd")),
    "10,000 roles": associate_rq(user=item(0x54, struct.pack(">H", 3) + b"1.2\x01\x01")[:9] * 6000),
    "3,000 transfer syntaxes": associate_rq(context(1, CT, *["1.2.840.10008.1.2.1"] * 2000)),
    "an item that is too long": associate_rq(user=b"\x51\0\xff\xff"),
    "control characters in an AE title": associate_rq(calling="A\x01B"),
}  # NET-09


@pytest.mark.parametrize("name", BROKEN_REQUESTS)
def test_a_broken_request_is_aborted_at_little_cost(listen, name):
    port, used = listen(), time.process_time()
    with connect(port) as peer:
        peer.sendall(BROKEN_REQUESTS[name])
        kind, body = receive_pdu(peer)
    assert (kind, body[2]) == (ABORT, 2)
    assert time.process_time() - used < 2.0  # 0.2 s on a quiet core
    assert echo_status(port) == 0


@pytest.mark.parametrize(
    ("request_pdu", "numbers"),
    [
        (associate_rq(called="SOMEONE"), (1, 1, 7)),
        (associate_rq(calling=" "), (1, 1, 3)),
        (associate_rq(version=2), (1, 2, 2)),
        (associate_rq().replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"), (1, 1, 2)),
    ],
)
def test_what_is_asked_wrongly_is_rejected_with_its_reason(listen, request_pdu, numbers):
    with connect(listen()) as peer:
        peer.sendall(request_pdu)
        kind, body = receive_pdu(peer)
    assert (kind, tuple(body[1:4])) == (ASSOCIATE_RJ, numbers)


@pytest.mark.parametrize(
    ("settings", "is_taken"),
    [
        ({"allowed_networks": ["10.0.0.0/8"]}, False),
        ({"allowed_networks": ["10.0.0.0/8", "127.0.0.0/8"]}, True),
    ],
)
def test_only_addresses_of_the_networks_come_in(listen, settings, is_taken):  # SEC-05
    with connect(listen(**settings)) as peer:
        peer.sendall(associate_rq())
        kind, body = receive_pdu(peer)
    assert kind == ASSOCIATE_AC if is_taken else (kind, tuple(body[1:4])) == (ASSOCIATE_RJ, (1, 1, 3))


OPENINGS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    bytes.fromhex("16030100a5010000a10303") + bytes(150),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x0bMSH|^~\\&|A|B|C|D|20260101||ADT^A01|1|P|2.5\r\x1c\r",
]  # NET-10


@pytest.mark.parametrize("opening", OPENINGS, ids=["HTTP", "TLS", "SSH", "HL7"])
def test_other_protocols_are_aborted(listen, opening):
    port = listen()
    with connect(port) as peer:
        peer.sendall(opening)
        assert receive_pdu(peer)[0] == ABORT
        assert peer.recv(1) == b""
    assert echo_status(port) == 0


# NET-08, PS3.8 Table 9-10: what is answered in the states before and after the association.
BEFORE = [pdu(kind, bytes(4)) for kind in (2, 3, 4, 5, 6)] + [pdu(0x42, bytes(4))]


@pytest.mark.parametrize("opening", BEFORE, ids=lambda opening: f"{opening[0]:02X}")
def test_before_the_association_other_pdus_are_aborted(listen, opening):  # Sta2: AA-1
    port = listen()
    with connect(port) as peer:
        peer.sendall(opening)
        assert receive_pdu(peer)[0] == ABORT
    assert echo_status(port) == 0


def test_an_abort_before_the_association_is_the_end(listen):  # Sta2: AA-2
    with connect(listen()) as peer:
        peer.sendall(pdu(ABORT, bytes(4)))
        assert peer.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (associate_rq(), 2),
        (pdu(2, bytes(4)), 2),
        (pdu(3, bytes(4)), 2),
        (pdu(RELEASE_RP, bytes(4)), 2),
        (pdu(0x42, bytes(4)), 1),
        (pdu(DATA, b""), 6),
        (pdu(DATA, bytes(5)), 6),
        (pdu(DATA, pdv(1, 3, b"")[:4] + b"\x01"), 6),
        (pdu(DATA, struct.pack(">IBB", 1, 1, 3)), 6),
        (pdu(DATA, struct.pack(">IBB", 0, 1, 3)), 6),
        (pdu(DATA, struct.pack(">IBB", 9999, 1, 3) + bytes(10)), 6),
        (pdu(DATA, struct.pack(">IBB", 0xFFFFFFFF, 1, 3) + bytes(10)), 6),
        (data_pdu(99, 3, echo_rq()), 6),
        (data_pdu(2, 3, echo_rq()), 6),
        (data_pdu(1, 7, echo_rq()), 6),
        (data_pdu(3, 2, b"a data set without a command"), 2),
        (data_pdu(1, 3, echo_rq()[:-5]), 6),
        (data_pdu(1, 3, echo_rq()[8:20]), 6),
        (data_pdu(1, 1, bytes(20_000)), 6),
        (struct.pack(">BxI", DATA, 16 * 2**20), 6),  # NET-06
        (struct.pack(">BxI", 0x05, 2**31), 6),
    ],
)  # NET-07, NET-08
def test_in_an_association_what_may_not_stand_there_is_aborted(listen, sent, reason):  # Sta6: AA-8
    port = listen()
    with associated(port) as peer:
        peer.sendall(sent)
        kind, body = receive_pdu(peer)
    assert (kind, body[2], body[3]) == (ABORT, 2, reason)
    assert echo_status(port) == 0


@pytest.mark.parametrize("sent", [pdu(RELEASE_RQ, bytes(4)), associate_rq(), data_pdu(1, 3, echo_rq())])
def test_in_the_middle_of_a_data_set_another_pdu_is_aborted(listen, data, rows, files_root, sent):
    port = listen()
    with associated(port) as peer:
        peer.sendall(data_pdu(3, 3, store_rq("1.2.3")) + data_pdu(3, 0, data[:1000]) + sent)
        assert receive_pdu(peer)[0] == ABORT
    wait_until(lambda: list((files_root / "incoming").glob("*")) == [])
    assert rows() == []


def test_what_comes_after_the_release_is_not_read(listen):  # Sta13: AA-6
    with associated(listen()) as peer:
        peer.sendall(pdu(RELEASE_RQ, bytes(4)) + data_pdu(1, 3, echo_rq()))
        assert receive_pdu(peer)[0] == RELEASE_RP
        assert receive_pdu(peer)[0] == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (command((0x100, b"\x50\x01"), (0x110, b"\1\0"), (0x800, b"\1\1")), 0x0211),
        (command((0x100, b"\x20\x00"), (0x110, b"\1\0"), (0x800, b"\1\1")), 0x0211),
        (store_rq("1.2.3", data_set_type=0x0101), 0x0212),
        (store_rq("1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.4"), 0x0122),
        (store_rq("../../etc/passwd"), 0x0117),
        (store_rq("1.2." + "3" * 70), 0x0117),
    ],
)  # NET-12, PAR-01
def test_a_command_that_cannot_be_carried_out_is_answered(listen, data, sent, status):
    port = listen()
    with associated(port) as peer:
        peer.sendall(data_pdu(3, 3, sent))
        if sent[:4] and b"\x00\x08\x02\x00\x00\x00\x00\x00" in sent:
            peer.sendall(data_pdu(3, 2, data))
        kind, body = receive_pdu(peer)
        assert (kind, status_of(body)[0]) == (DATA, status)
        peer.sendall(data_pdu(1, 3, echo_rq(2)))
        assert status_of(receive_pdu(peer)[1])[0] == 0  # the association goes on


def test_a_group_length_that_lies_is_aborted(listen):  # NET-12
    lie = struct.pack("<HHII", 0, 0, 4, 9999) + echo_rq()[12:]
    with associated(listen()) as peer:
        peer.sendall(data_pdu(1, 3, lie))
        assert receive_pdu(peer)[0] == ABORT


@pytest.mark.parametrize("end", ["silence", "half-close", "reset", "close"])
def test_a_peer_that_stops_in_the_middle_leaves_nothing(listen, data, image, files_root, rows, end):  # NET-11
    port = listen(pdu_timeout_s=0.5, network_timeout_s=0.5)
    with associated(port) as peer:
        sent = data_pdu(3, 3, store_rq(image.SOPInstanceUID)) + data_pdu(3, 0, data)[:2000]
        peer.sendall(sent)
        if end == "half-close":
            peer.shutdown(socket.SHUT_WR)
        elif end == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        elif end == "silence":
            assert receive_pdu(peer)[0] == ABORT
    wait_until(lambda: list((files_root / "incoming").glob("*")) == [])
    assert rows() == []
    assert echo_status(port) == 0


def test_a_message_without_end_is_broken_off(database, files_root, listen):
    receiver = small_receiver(database, files_root)
    port = listen(receiver)
    with associated(port) as peer:
        peer.sendall(data_pdu(3, 3, store_rq("1.2.3")))
        with contextlib.suppress(OSError):
            for _ in range(5000):  # 80 MB of a data set of at most 1 MB
                peer.sendall(data_pdu(3, 0, bytes(16_000)))
        assert receive_pdu(peer)[0] in {ABORT, 0}
    assert list((files_root / "incoming").glob("*")) == []
    assert echo_status(port) == 0


def small_receiver(database, files_root):
    from dicom_node.intake import ReceiveLimits
    from tests.doors import make_receiver

    return make_receiver(database, files_root, ReceiveLimits(max_instance_bytes=1_000_000))


def test_an_instance_beyond_the_limit_is_a700_and_the_association_goes_on(
    listen, database, files_root, image
):
    large = make_image(rows=1024, columns=1024)
    port = listen(small_receiver(database, files_root), max_pdu=0)
    with associated(port) as peer:
        for instance, status in ((large, 0xA700), (image, 0x0000)):
            uid = str(instance.SOPInstanceUID)
            peer.sendall(data_pdu(3, 3, store_rq(uid)) + data_pdu(3, 2, encoded(bare(instance))))
            assert status_of(receive_pdu(peer)[1])[0] == status


def test_fragments_that_bring_nothing_are_broken_off(listen):
    with associated(listen()) as peer:
        peer.sendall(data_pdu(3, 3, store_rq("1.2.3")) + data_pdu(3, 0, b"") * 2000)
        assert receive_pdu(peer)[0] == ABORT


@pytest.mark.parametrize("size", [1, 7, 100, 16_378, 60_000])
def test_fragments_of_any_size_are_put_together(listen, stored, data, image, size):
    port = listen()
    sent = data if size > 50 else data[: len(data)]
    with associated(port) as peer:
        fragments = [sent[start : start + size] for start in range(0, len(sent), size)]
        pdus = b"".join(
            data_pdu(3, 2 if number == len(fragments) - 1 else 0, each)
            for number, each in enumerate(fragments)
        )
        peer.sendall(data_pdu(3, 3, store_rq(str(image.SOPInstanceUID))) + pdus)
        assert status_of(receive_pdu(peer)[1])[0] == 0
    assert stored(image.SOPInstanceUID).endswith(data)


def test_command_and_data_set_in_one_pdu_and_several_messages_at_once(listen, stored, data, image):
    uid = str(image.SOPInstanceUID)
    both = pdu(DATA, pdv(3, 3, store_rq(uid)) + pdv(3, 2, data))
    with associated(listen(), max_pdu=0) as peer:
        peer.sendall(both * 3 + data_pdu(1, 3, echo_rq(9)))
        assert [status_of(receive_pdu(peer)[1])[0] for _ in range(4)] == [0, 0, 0, 0]
    assert stored(uid).endswith(data)


def test_an_answer_keeps_to_the_size_that_the_peer_takes(listen):
    with associated(listen(), max_pdu=64) as peer:
        peer.sendall(data_pdu(1, 3, echo_rq()))
        whole, is_last = b"", False
        while not is_last:
            kind, body = receive_pdu(peer)
            assert kind == DATA
            assert len(body) <= 64
            whole, is_last = whole + body[6:], bool(body[5] & 2)
    assert status_of(bytes(6) + whole)[0] == 0


def test_one_address_cannot_take_every_place(listen):  # NET-13
    port = listen(max_associations=10)
    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(200):
            peer = stack.enter_context(connect(port))
            peer.sendall(associate_rq())
            answers.append(receive_pdu(peer))
        assert [kind for kind, _body in answers] == [ASSOCIATE_AC] * 8 + [ASSOCIATE_RJ] * 192
        assert {tuple(body[1:4]) for kind, body in answers if kind == ASSOCIATE_RJ} == {(2, 3, 2)}
        other = stack.enter_context(connect(port, "127.0.0.2"))
        other.sendall(associate_rq())
        assert receive_pdu(other)[0] == ASSOCIATE_AC


def test_a_context_without_a_transfer_syntax_we_know_is_refused_with_4(listen):  # NET-15
    contexts = (context(1, CT, "1.2.3.4.5"), context(3, VERIFICATION, IMPLICIT))
    with connect(listen()) as peer:
        peer.sendall(associate_rq(*contexts))
        _kind, body = receive_pdu(peer)
    assert results_of(body) == {1: 4, 3: 0}


def test_unknown_storage_classes_are_a_matter_of_configuration(listen):
    private, service = "1.3.12.2.1107.5.9.1", "1.2.840.10008.4.2"
    named = struct.pack(">H", len(private)) + private.encode()
    named += struct.pack(">H", len(service)) + service.encode() + bytes(2)
    for policy, user, result in (("all", b"", 0), ("standard", b"", 3), ("standard", item(0x57, named), 0)):
        with connect(listen(storage_classes=policy)) as peer:
            peer.sendall(associate_rq(context(1, private), user=user))
            assert results_of(receive_pdu(peer)[1]) == {1: result}


def results_of(body):
    found, position = {}, 68
    while position < len(body):
        kind, length = struct.unpack_from(">BxH", body, position)
        if kind == 0x21:
            found[body[position + 4]] = body[position + 6]
        position += 4 + length
    return found


def test_roles_window_and_extended_negotiation_are_answered(listen):
    role = item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\x01\x01")
    extended = item(0x56, struct.pack(">H", len(CT)) + CT.encode() + bytes((2, 0, 3, 0, 0, 0)))
    window = item(0x53, struct.pack(">HH", 8, 8))
    with connect(listen()) as peer:
        peer.sendall(associate_rq(user=role + extended + window + item(0x58, b"\x01\x00" + bytes(4))))
        kind, body = receive_pdu(peer)
    assert kind == ASSOCIATE_AC
    assert item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\x01\x00") in body
    assert item(0x53, struct.pack(">HH", 1, 1)) in body
    assert extended in body


def test_a_lost_answer_and_a_second_try_are_one_instance(listen, data, image, rows):  # DUR-08
    port, uid = listen(), str(image.SOPInstanceUID)
    message = data_pdu(3, 3, store_rq(uid)) + data_pdu(3, 2, data)
    with associated(port) as peer:
        peer.sendall(message)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _again in range(2):
        with associated(port) as peer:
            peer.sendall(message)
            assert status_of(receive_pdu(peer)[1])[0] == 0
    assert [row.sop_instance_uid for row in rows()] == [uid]


def test_one_instance_a_hundred_times_from_eight_associations(
    listen, data, image, rows, files_root
):  # SEM-01
    port, uid, statuses = listen(), str(image.SOPInstanceUID), []
    message = data_pdu(3, 3, store_rq(uid)) + data_pdu(3, 2, data)

    def send_many(count):
        with associated(port) as peer:
            for _ in range(count):
                peer.sendall(message)
                statuses.append(status_of(receive_pdu(peer)[1])[0])

    threads = [threading.Thread(target=send_many, args=(13 if number < 4 else 12,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 100
    assert [row.sop_instance_uid for row in rows()] == [uid]
    assert len(list((files_root / "objects").rglob("*.dcm"))) == 1


def test_a_store_under_way_ends_and_the_association_after_it(listen_and_keep, data, image, rows):  # DUR-10
    port, listener = listen_and_keep()
    with associated(port) as storing, associated(port) as idle:
        message = data_pdu(3, 3, store_rq(str(image.SOPInstanceUID))) + data_pdu(3, 2, data)
        storing.sendall(message[:1000])
        time.sleep(0.2)  # the message is under way
        ending = threading.Thread(target=listener.shutdown)
        ending.start()
        assert receive_pdu(idle)[0] == ABORT
        with connect(port) as late:
            late.sendall(associate_rq())
            kind, body = receive_pdu(late)
            assert (kind, tuple(body[1:4])) == (ASSOCIATE_RJ, (2, 3, 1))
        storing.sendall(message[1000:])
        assert status_of(receive_pdu(storing)[1])[0] == 0
        assert receive_pdu(storing)[0] == ABORT
        ending.join()
    assert len(rows()) == 1
