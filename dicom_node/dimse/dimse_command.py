"""Command sets of C-ECHO and C-STORE: implicit VR little endian, read within bounds and written by hand.

Source: PS3.7 6.3.1 (encoding), 9.3.1 and 9.3.5 (C-STORE, C-ECHO), Annex E (command dictionary).
"""

import struct
from dataclasses import dataclass
from typing import Final

from dicom_node.dimse.pdu import ProtocolError

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
RESPONSE: Final = 0x8000
NO_DATA_SET: Final = 0x0101
MAX_COMMAND_BYTES: Final = 16 * 1024
MAX_COMMENT_CHARACTERS: Final = 64  # PS3.7 Annex C: Error Comment (0000,0902) is LO
UNRECOGNISED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212

_ELEMENT: Final = struct.Struct("<HHI")
_SHORTS: Final = {0x0100: "command_field", 0x0110: "message_id", 0x0800: "data_set_type"}
_UIDS: Final = {0x0002: "sop_class_uid", 0x1000: "sop_instance_uid"}


@dataclass
class Command:
    """What of a request's command set is acted upon."""

    command_field: int = -1
    message_id: int = -1
    data_set_type: int = NO_DATA_SET
    sop_class_uid: str = ""
    sop_instance_uid: str = ""

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows."""
        return self.data_set_type != NO_DATA_SET


@dataclass(frozen=True)
class Answer:
    """Status of a response, with a comment where there is something to say."""

    status: int
    comment: str = ""


def parse_command(encoded: bytes | bytearray) -> Command:
    """Read a command set.

    Raises
    ------
    ProtocolError
        If its structure is broken, or it lacks what every request has.
    """
    command, position, end = Command(), 0, len(encoded)
    try:
        while position < end:
            group, element, length = _ELEMENT.unpack_from(encoded, position)
            position += 8
            if group != 0 or position + length > end:
                raise ProtocolError("the command set is broken")
            value = encoded[position : position + length]
            position += length
            if element in _SHORTS:
                setattr(command, _SHORTS[element], struct.unpack("<H", value)[0])
            elif element in _UIDS:
                setattr(command, _UIDS[element], value.rstrip(b"\0 ").decode("ascii"))
            elif element == 0x0000 and struct.unpack("<I", value)[0] != end - position:
                raise ProtocolError("the command set has another length than it says")
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError("the command set is broken") from error
    if command.command_field < 0 or command.message_id < 0:
        raise ProtocolError("the command set lacks Command Field or Message ID")
    return command


def encode_response(command: Command, answer: Answer) -> bytes:
    """Write the command set of the response to `command`."""
    body = b""
    if command.sop_class_uid:
        body = _uid_element(0x0002, command.sop_class_uid)
    body += struct.pack("<HHIH", 0, 0x0100, 2, command.command_field | RESPONSE)
    body += struct.pack("<HHIH", 0, 0x0120, 2, command.message_id)
    body += struct.pack("<HHIH", 0, 0x0800, 2, NO_DATA_SET)
    body += struct.pack("<HHIH", 0, 0x0900, 2, answer.status)
    if answer.comment:
        body += _element(0x0902, answer.comment[:MAX_COMMENT_CHARACTERS].encode("ascii", "replace"), b" ")
    if command.sop_instance_uid:
        body += _uid_element(0x1000, command.sop_instance_uid)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _uid_element(element: int, uid: str) -> bytes:
    return _element(element, uid.encode("ascii"), b"\0")


def _element(element: int, value: bytes, padding: bytes) -> bytes:
    padded = value + padding if len(value) % 2 else value
    return _ELEMENT.pack(0, element, len(padded)) + padded
