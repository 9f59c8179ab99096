"""Load for the doors, cheap enough to leave the machine to the node, and the ledger of what was promised.

The C-STORE sender writes its own PDUs: pynetdicom's would take more time than the node that is tested.
"""

import hashlib
import http.client
import json
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import Verification

ROOT = "1.2.826.0.1.3680043.10.999"
TIMEOUT_S = 60.0
LARGE_EVERY = 8
SMALL_BYTES, LARGE_BYTES = 2 << 10, 128 << 10
A_ASSOCIATE_AC, P_DATA_TF = 2, 4
Elements = tuple[tuple[int, bytes], ...]  # of a command: element of group 0000, value


class Broken(Exception):
    """The peer ended the connection, or did not answer as it should."""


@dataclass
class Ledger:
    """What the node said yes to: SOP Instance UID -> sha256 of the data set as it was sent."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)  # success read after the power had gone: see `close`
    refused: dict[int, int] = field(default_factory=dict)  # status -> how often
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Take no more promises: the power goes now.

        A machine without power answers nothing, but ours goes on until it is killed; and ext4 may say yes to
        an fsync that began before its shutdown and ended after it, when the journal was dropped meanwhile.
        """
        with self._lock:
            self._is_closed = True

    def open(self) -> None:
        """Take promises again."""
        self._is_closed = False

    def record(self, uid: str, content: bytes, status: int) -> None:
        """Note an answer; success and warnings are promises."""
        with self._lock:
            if status == 0x0000 or status >> 12 == 0xB:
                promises = self.late if self._is_closed else self.acknowledged
                promises[uid] = hashlib.sha256(content).hexdigest()
            else:
                self.refused[status] = self.refused.get(status, 0) + 1

    @property
    def count(self) -> int:
        return len(self.acknowledged)


class Instances:
    """Makes data sets of one study that differ from each other; cheap, and the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.study_uid = f"{ROOT}.1{seed:09d}"
        self._made = 0
        self._before, self._after = _template(self.study_uid, self._uid(0))

    def make(self) -> tuple[str, bytes]:
        """Give the next SOP Instance UID and its encoded data set."""
        self._made += 1
        uid = self._uid(self._made)
        size = LARGE_BYTES if self._made % LARGE_EVERY == 0 else SMALL_BYTES
        pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size) + self._random.randbytes(size)
        return uid, self._before + uid.encode() + self._after + pixels

    def _uid(self, number: int) -> str:
        uid = f"{self.study_uid}.1{number:08d}"
        return uid if len(uid) % 2 == 0 else f"{uid}0"


def _template(study_uid: str, instance_uid: str) -> tuple[bytes, bytes]:
    """Encode a header once; gives the bytes before and after the SOP Instance UID."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, f"{study_uid}.2"
    ds.PatientName, ds.PatientID, ds.Modality, ds.StudyDate = "Cut^Power", "PC-1", "CT", "20260101"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 32, 32, 16, 16, 15
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    buffer = BytesIO()
    dcmwrite(buffer, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    before, after = buffer.getvalue().split(instance_uid.encode())
    return before, after


def part10(uid: str, data_set: bytes) -> bytes:
    """Put preamble and meta information before a data set."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = ROOT
    buffer = BytesIO()
    empty = Dataset()
    empty.file_meta = meta
    dcmwrite(buffer, empty, enforce_file_format=True)
    return buffer.getvalue() + data_set


class StoreConnection:
    """One association that stores CT images in Explicit VR Little Endian, one after the other."""

    sop_class: str = CTImageStorage

    def __init__(self, port: int, called_ae: str, calling_ae: str, timeout_s: float = TIMEOUT_S) -> None:
        self._message_id = 0
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(_associate_request(called_ae, calling_ae, self.sop_class))
        if self._read_pdu()[0] != A_ASSOCIATE_AC:
            self.close()
            raise Broken("no association")

    def store(self, uid: str, data_set: bytes) -> int:
        """Send one instance; returns the status of the answer."""
        return self._ask(_store_request(uid, self._next_id()), _p_data(data_set, 0x02))

    def close(self) -> None:
        """Drop the connection without a word."""
        self._socket.close()

    def _next_id(self) -> int:
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    def _ask(self, command: bytes, data: bytes = b"") -> int:
        self._socket.sendall(_p_data(command, 0x03) + data)
        kind, body = self._read_pdu()
        if kind != P_DATA_TF:
            raise Broken("the association was aborted")
        return _status_of(body[6:])

    def _read_pdu(self) -> tuple[int, bytes]:
        head = self._read(6)
        return head[0], self._read(struct.unpack(">I", head[2:6])[0])

    def _read(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            piece = self._socket.recv(length - len(content))
            if not piece:
                raise Broken("the connection ended")
            content += piece
        return content


class EchoConnection(StoreConnection):
    """One association that asks whether the node is there."""

    sop_class: str = Verification

    def echo(self) -> int:
        """C-ECHO; returns the status of the answer."""
        return self._ask(_request(Verification, 0x0030, self._next_id(), 0x0101))


def _associate_request(called_ae: str, calling_ae: str, sop_class: str) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling_ae, called_ae
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = ROOT
    primitive.user_information = [length, implementation]
    context = build_context(sop_class, ExplicitVRLittleEndian)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return bytes(request.encode())


def _store_request(uid: str, message_id: int) -> bytes:
    """Source: PS3.7 9.3.1.1, C-STORE-RQ."""
    more = ((0x0700, struct.pack("<H", 0x0000)), (0x1000, _padded(uid)))
    return _request(CTImageStorage, 0x0001, message_id, 0x0001, more)


def _request(
    sop_class: str, field_value: int, message_id: int, data_set_type: int, more: Elements = ()
) -> bytes:
    """Source: PS3.7 9.3, the elements that all requests have, and `more`."""
    elements = (
        (0x0002, _padded(sop_class)),
        (0x0100, struct.pack("<H", field_value)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", data_set_type)),
        *more,
    )
    encoded = b"".join(_element(element, value) for element, value in sorted(elements))
    return _element(0x0000, struct.pack("<I", len(encoded))) + encoded


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0x0000, element, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _p_data(content: bytes, control: int) -> bytes:
    """Split into PDUs of at most 16 KiB; `control` says command or data, its second bit ends the message."""
    pieces = [content[start : start + 16000] for start in range(0, len(content), 16000)]
    pdus = []
    for index, piece in enumerate(pieces):
        flags = control if index == len(pieces) - 1 else control & 0x01
        pdv = struct.pack(">IBB", len(piece) + 2, 1, flags) + piece
        pdus.append(struct.pack(">BBI", P_DATA_TF, 0, len(pdv)) + pdv)
    return b"".join(pdus)


def _status_of(command: bytes) -> int:
    position = 0
    while position + 8 <= len(command):
        _group, element, length = struct.unpack_from("<HHI", command, position)
        if element == 0x0900:
            return int(struct.unpack_from("<H", command, position + 8)[0])
        position += 8 + length
    raise Broken("an answer without a status")


class Sender:
    """A thread that sends until it is told to stop or its peer is gone."""

    def __init__(self, step: Callable[[], None], close: Callable[[], None]) -> None:
        self._step, self._close = step, close
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Stop after the instance at hand, and wait."""
        self._is_stopping.set()
        self._thread.join(timeout=2 * TIMEOUT_S)
        assert not self._thread.is_alive(), "a sender hangs"

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                self._step()
        except (Broken, OSError, http.client.HTTPException):
            pass  # the node is gone; what it said until then is in the ledger
        finally:
            self._close()


def store_sender(port: int, ae_title: str, instances: Instances, ledger: Ledger) -> Sender:
    """Start sending by C-STORE on one association."""
    connection = StoreConnection(port, ae_title, "SCANNER")

    def step() -> None:
        uid, data_set = instances.make()
        ledger.record(uid, data_set, connection.store(uid, data_set))

    return Sender(step, connection.close)


def stow_sender(port: int, instances: Instances, ledger: Ledger, per_request: int = 3) -> Sender:
    """Start sending by STOW-RS, a few instances with each request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def step() -> None:
        sent = dict(instances.make() for _ in range(per_request))
        for uid, status in _stow(connection, sent).items():
            ledger.record(uid, sent[uid], status)

    return Sender(step, connection.close)


def _stow(connection: http.client.HTTPConnection, sent: dict[str, bytes]) -> dict[str, int]:
    """POST the instances; returns the status of each, by what the answer's body says of it."""
    boundary = os.urandom(12).hex()
    parts = (
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + part10(uid, data_set) + b"\r\n"
        for uid, data_set in sent.items()
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    connection.request("POST", "/dicom-web/studies", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status not in {200, 202}:
        return dict.fromkeys(sent, answer.status)
    return _answers(json.loads(content))


def _answers(document: dict[str, Any]) -> dict[str, int]:
    """Source: PS3.18 10.5.3: ReferencedSOPSequence and FailedSOPSequence."""
    stored = {item["00081155"]["Value"][0]: 0 for item in document.get("00081199", {}).get("Value", [])}
    failed = {
        item["00081155"]["Value"][0]: item["00081197"]["Value"][0]
        for item in document.get("00081198", {}).get("Value", [])
    }
    return stored | failed
