"""A peer made of bytes: what no library would send, and what came back."""

import socket
import struct
from contextlib import contextmanager

from dicom_node.dimse.pdu import APPLICATION_CONTEXT

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


def item(kind, value):
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind, body):
    return struct.pack(">BxI", kind, len(body)) + body


def context(number, abstract=CT, *transfer):
    syntaxes = b"".join(item(0x40, each.encode()) for each in transfer or (EXPLICIT,))
    return item(0x20, struct.pack(">Bxxx", number) + item(0x30, abstract.encode()) + syntaxes)


def associate_rq(*contexts, called="SIM4SEG", calling="RAW", user=b"", max_pdu=16384, version=1):
    """A whole A-ASSOCIATE-RQ; Verification as context 1 and CT as context 3 unless given."""
    contexts = contexts or (context(1, VERIFICATION, IMPLICIT), context(3))
    information = item(0x51, struct.pack(">I", max_pdu)) + item(0x52, b"1.2.3") + user
    fixed = struct.pack(">Hxx16s16s32x", version, called.encode().ljust(16), calling.encode().ljust(16))
    body = fixed + item(0x10, APPLICATION_CONTEXT.encode()) + b"".join(contexts) + item(0x50, information)
    return pdu(ASSOCIATE_RQ, body)


def element(number, value):
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(*elements):
    body = b"".join(element(number, value) for number, value in elements)
    return element(0, struct.pack("<I", len(body))) + body


def echo_rq(message_id=1):
    return command(
        (0x0002, VERIFICATION.encode() + b"\0"),
        (0x0100, struct.pack("<H", 0x0030)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", 0x0101)),
    )


def store_rq(uid, message_id=1, sop_class=CT, data_set_type=0):
    return command(
        (0x0002, padded(sop_class)),
        (0x0100, struct.pack("<H", 0x0001)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", data_set_type)),
        (0x1000, padded(uid)),
    )


def padded(uid):
    return uid.encode() + b"\0" * (len(uid) % 2)


def pdv(number, control, data):
    return struct.pack(">IBB", len(data) + 2, number, control) + data


def data_pdu(number, control, data):
    return pdu(DATA, pdv(number, control, data))


def receive(connection, count):
    received = b""
    while len(received) < count:
        chunk = connection.recv(count - len(received))
        if not chunk:
            raise ConnectionResetError(received)
        received += chunk
    return received


def receive_pdu(connection):
    """The next PDU: its type and body; (0, b"") when the connection ended."""
    try:
        kind, length = struct.unpack(">BxI", receive(connection, 6))
        return kind, receive(connection, length)
    except (ConnectionError, TimeoutError):
        return 0, b""


def status_of(body):
    """Status and command field of a response in one P-DATA-TF."""
    found, position = {}, 6
    while position < len(body):
        number, length = struct.unpack_from("<HI", body, position + 2)
        found[number] = body[position + 8 : position + 8 + length]
        position += 8 + length
    return struct.unpack("<H", found[0x0900])[0], struct.unpack("<H", found[0x0100])[0]


@contextmanager
def connect(port, address="127.0.0.1", timeout=20):
    connection = socket.create_connection(("127.0.0.1", port), timeout, source_address=(address, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        yield connection


@contextmanager
def associated(port, *contexts, **options):
    with connect(port, options.pop("address", "127.0.0.1")) as connection:
        connection.sendall(associate_rq(*contexts, **options))
        kind, _body = receive_pdu(connection)
        assert kind == ASSOCIATE_AC, kind
        yield connection


def echo_status(port):
    """C-ECHO from connection to release; returns its status."""
    with associated(port) as connection:
        connection.sendall(data_pdu(1, 3, echo_rq()))
        kind, body = receive_pdu(connection)
        assert kind == DATA
        connection.sendall(pdu(RELEASE_RQ, bytes(4)))
        assert receive_pdu(connection)[0] == RELEASE_RP
        return status_of(body)[0]
