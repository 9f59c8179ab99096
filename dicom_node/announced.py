"""What is known of an instance before its first byte, and the head of its file, which follows from that.

Preamble and File Meta Information are written anew, always the same for the same data set, so that one
instance sent by two ways is one content. A preamble can hold a program (PS3.10 7.5), hence zeros.

Source: PS3.10 7.1, Table 7.1-1.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from dicom_node.errors import TransferSyntaxNotSupported, UidMismatch, Unparseable
from dicom_node.header import PREAMBLE_BYTES, MetaUids
from dicom_node.uids import checked_uid
from storage.records import Origin

IMPLEMENTATION_CLASS_UID: Final = "2.25.34107661253244976324241773065309963787"
IMPLEMENTATION_VERSION_NAME: Final = "SIM4SEG_NODE"  # without our version: content must not change with it
PREAMBLE: Final = bytes(PREAMBLE_BYTES) + b"DICM"
STANDARD_SYNTAXES: Final = "1.2.840.10008.1.2."  # those newer than pydicom's table are kept as well


@dataclass(frozen=True)
class ExpectedUids:
    """What the sender announced beside the data set; None = nothing announced."""

    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None


NOTHING_EXPECTED: Final = ExpectedUids()


@dataclass(frozen=True)
class Announced:
    """UIDs, encoding and origin of an instance that is to come, and what must agree with it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    origin: Origin
    expected: ExpectedUids = NOTHING_EXPECTED
    is_own_result: bool = False


def announced_by(meta: MetaUids, origin: Origin, expected: ExpectedUids | None) -> Announced:
    """Take what File Meta Information says; raises UidMismatch, Unparseable where it says too little."""
    if not meta.sop_class or not meta.sop_instance:
        raise UidMismatch("the file meta information lacks Media Storage SOP Class or SOP Instance UID")
    if not meta.transfer_syntax:
        raise Unparseable("the file meta information lacks the Transfer Syntax UID")
    return Announced(*meta, origin, expected or NOTHING_EXPECTED)


def encode_meta(announced: Announced) -> bytes:
    """Write preamble and File Meta Information.

    Raises
    ------
    IllegalUid, TransferSyntaxNotSupported
        If what was announced cannot stand in a file.
    """
    before, after = _meta_around(announced.sop_class_uid, announced.transfer_syntax_uid)
    instance = _short_element(0x03, b"UI", checked_uid(announced.sop_instance_uid, "SOP Instance UID"))
    length = len(before) + len(instance) + len(after)
    head = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, length)
    return b"".join((PREAMBLE, head, before, instance, after))


@lru_cache(maxsize=1024)
def _meta_around(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """What stands before and after the SOP Instance UID."""
    if not f"{transfer_syntax_uid}.".startswith(STANDARD_SYNTAXES):
        raise TransferSyntaxNotSupported("the transfer syntax is not one of the standard's")
    version = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    before = version + _short_element(0x02, b"UI", checked_uid(sop_class_uid, "SOP Class UID"))
    after = (
        _short_element(0x10, b"UI", checked_uid(transfer_syntax_uid, "Transfer Syntax UID")),
        _short_element(0x12, b"UI", IMPLEMENTATION_CLASS_UID),
        _short_element(0x13, b"SH", IMPLEMENTATION_VERSION_NAME),
    )
    return before, b"".join(after)


def _short_element(element: int, vr: bytes, text: str) -> bytes:
    """An element of group 0002, explicit VR little endian, padded to even length (PS3.5 6.2)."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value
