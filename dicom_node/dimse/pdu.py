"""Protocol data units of the upper layer, read from bytes that nobody trusts and written by hand.

Whatever the bytes are, only `ProtocolError` leaves the functions that read them.

Source: PS3.8 9.3 (structure of the PDUs), PS3.7 D.3.3 (user information).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

ASSOCIATE_RQ: Final = 0x01
ASSOCIATE_AC: Final = 0x02
ASSOCIATE_RJ: Final = 0x03
DATA_TF: Final = 0x04
RELEASE_RQ: Final = 0x05
RELEASE_RP: Final = 0x06
ABORT: Final = 0x07
PDU_TYPES: Final = frozenset(range(ASSOCIATE_RQ, ABORT + 1))

MAX_REQUEST_BYTES: Final = 128 * 1024  # 128 contexts with a dozen transfer syntaxes each need 60 KiB
MAX_ITEMS: Final = 1024  # of user information
MAX_SYNTAXES: Final = 128  # of one context: the standard defines fewer
APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
HEADER: Final = struct.Struct(">BxI")
_ITEM: Final = struct.Struct(">BxH")
_FIXED: Final = struct.Struct(">HH16s16s32s")
_AE_FORM: Final = re.compile(rb"[ -\[\]-~]{16}")  # PS3.5 6.2, AE: no backslash, no control characters
_UID_FORM: Final = re.compile(rb"[0-9.]{1,64}")

# Source: PS3.8 Table 9-26, reasons of an A-ABORT by the service provider.
UNRECOGNISED_PDU: Final = 1
UNEXPECTED_PDU: Final = 2
INVALID_PARAMETER: Final = 6


class ProtocolError(Exception):
    """The peer sent what PS3.8 does not allow; `reason` is the one of the A-ABORT."""

    def __init__(self, what: str, reason: int = INVALID_PARAMETER) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True)
class ProposedContext:
    """One presentation context that the peer proposes."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass
class UserInformation:
    """What the peer says of itself beside its contexts."""

    max_pdu: int = 0  # bytes; 0 = any
    has_async_window: bool = False
    roles: dict[str, tuple[int, int]] = field(default_factory=dict)  # SOP class -> SCU, SCP
    extended: dict[str, bytes] = field(default_factory=dict)  # SOP class -> application information
    service_classes: dict[str, str] = field(default_factory=dict)  # SOP class -> service class


@dataclass(frozen=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ."""

    protocol_version: int
    called_ae: str
    calling_ae: str
    fixed: bytes  # called, calling and reserved fields as they came: the answer repeats them
    application_context: str
    contexts: tuple[ProposedContext, ...]
    user: UserInformation


@dataclass(frozen=True)
class ContextAnswer:
    """What becomes of one proposed context; result 0 = accepted. Source: PS3.8 Table 9-18."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ. Source: PS3.8 Table 9-21."""

    result: int
    source: int
    reason: int


def request_length(head: bytes | bytearray) -> int:
    """Return how long the A-ASSOCIATE-RQ is whose first six bytes are `head`, header included.

    Raises
    ------
    ProtocolError
        If these are not the first bytes of one, or it is longer than any sensible one.
    """
    kind, length = HEADER.unpack_from(head)
    if kind != ASSOCIATE_RQ:
        reason = UNEXPECTED_PDU if kind in PDU_TYPES else UNRECOGNISED_PDU
        raise ProtocolError("the first PDU is no association request", reason)
    if not _FIXED.size <= length <= MAX_REQUEST_BYTES - HEADER.size:
        raise ProtocolError(f"the association request announces {length} bytes")
    return HEADER.size + int(length)


def parse_associate_rq(pdu: bytes | bytearray) -> AssociateRequest:
    """Read a whole A-ASSOCIATE-RQ, header included; raises ProtocolError."""
    try:
        return _parse_associate_rq(bytes(pdu))
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError("the association request is truncated") from error


def encode_associate_ac(request: AssociateRequest, answers: list[ContextAnswer], user_items: bytes) -> bytes:
    """Write the A-ASSOCIATE-AC to `request`; `user_items` are encoded already."""
    items = _item(0x10, APPLICATION_CONTEXT.encode())
    for answer in answers:
        head = struct.pack(">BxBx", answer.context_id, answer.result)
        items += _item(0x21, head + _item(0x40, answer.transfer_syntax.encode()))
    body = struct.pack(">HH", 1, 0) + request.fixed + items + _item(0x50, user_items)
    return HEADER.pack(ASSOCIATE_AC, len(body)) + body


def encode_user_items(request: AssociateRequest, max_pdu: int, implementation: tuple[str, str]) -> bytes:
    """Write our user information: PDU size, who we are, and answers to what the peer asked.

    Asynchronous operations: one at a time. Roles: the peer is SCU of what it sends, never SCP. Extended
    negotiation of storage: level 2 (all attributes), signatures kept bit for bit, nothing is coerced.
    Source: PS3.7 D.3.3.3, D.3.3.4, D.3.3.5; PS3.4 B.3.1.
    """
    class_uid, version_name = implementation
    items = _item(0x51, struct.pack(">I", max_pdu)) + _item(0x52, class_uid.encode())
    if request.user.has_async_window:
        items += _item(0x53, struct.pack(">HH", 1, 1))
    for sop_class, (is_scu, _is_scp) in request.user.roles.items():
        uid = sop_class.encode()
        items += _item(0x54, struct.pack(">H", len(uid)) + uid + bytes((is_scu, 0)))
    items += _item(0x55, version_name.encode())
    for sop_class in request.user.extended:
        uid = sop_class.encode()
        items += _item(0x56, struct.pack(">H", len(uid)) + uid + bytes((2, 0, 3, 0, 0, 0)))
    return items


def encode_associate_rj(rejection: Rejection) -> bytes:
    """Write an A-ASSOCIATE-RJ."""
    body = bytes((0, rejection.result, rejection.source, rejection.reason))
    return HEADER.pack(ASSOCIATE_RJ, 4) + body


def encode_abort(source: int, reason: int) -> bytes:
    """Write an A-ABORT; source 0 = the user (ours), 2 = the provider (a broken PDU)."""
    return HEADER.pack(ABORT, 4) + bytes((0, 0, source, reason))


def encode_release_rp() -> bytes:
    """Write an A-RELEASE-RP."""
    return HEADER.pack(RELEASE_RP, 4) + bytes(4)


def encode_command_pdus(context_id: int, command: bytes, max_pdu: int) -> bytes:
    """Write P-DATA-TF PDUs of one command set, none longer than `max_pdu` (0 = any)."""
    room = max_pdu - 6 if max_pdu else len(command)
    if room < 1:
        raise ProtocolError("the peer takes no PDU that could hold an answer")
    pdus = b""
    for start in range(0, len(command), room):
        piece = command[start : start + room]
        control = 0x03 if start + room >= len(command) else 0x01
        pdus += HEADER.pack(DATA_TF, len(piece) + 6)
        pdus += struct.pack(">IBB", len(piece) + 2, context_id, control) + piece
    return pdus


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _parse_associate_rq(pdu: bytes) -> AssociateRequest:
    if request_length(pdu[: HEADER.size].ljust(HEADER.size, b"\0")) != len(pdu):
        raise ProtocolError("the association request has another length than it says")
    version, _reserved, called, calling, reserved = _FIXED.unpack_from(pdu, HEADER.size)
    contexts: dict[int, ProposedContext] = {}
    application_context, user = "", None
    for kind, value in _items(pdu[HEADER.size + _FIXED.size :]):
        if kind == 0x10 and not application_context:
            application_context = _uid(value)
        elif kind == 0x20:
            context = _proposed_context(value)
            if context.context_id in contexts:
                raise ProtocolError("two presentation contexts have the same id")
            contexts[context.context_id] = context
        elif kind == 0x50 and user is None:
            user = _user_information(value)
        else:
            raise ProtocolError(f"item {kind:02X} cannot stand here")
    if not contexts or user is None:
        raise ProtocolError("the association request has no presentation context or no user information")
    return AssociateRequest(
        version, _ae(called), _ae(calling), called + calling + reserved, application_context,
        tuple(contexts.values()), user,
    )  # fmt: skip


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    position, count = 0, 0
    while position < len(data):
        kind, length = _ITEM.unpack_from(data, position)
        position += _ITEM.size + length
        count += 1
        if position > len(data) or count > MAX_ITEMS:
            raise ProtocolError("an item is longer than what holds it, or there are too many")
        yield kind, data[position - length : position]


def _proposed_context(value: bytes) -> ProposedContext:
    context_id = struct.unpack_from(">B", value)[0]
    if context_id % 2 == 0:
        raise ProtocolError("the id of a presentation context is even")
    abstract: list[str] = []
    transfer: list[str] = []
    for kind, uid in _items(value[4:]):
        if kind not in {0x30, 0x40}:
            raise ProtocolError(f"item {kind:02X} cannot stand in a presentation context")
        (abstract if kind == 0x30 else transfer).append(_uid(uid))
    if len(abstract) != 1 or not 1 <= len(transfer) <= MAX_SYNTAXES:
        raise ProtocolError("a presentation context needs one abstract syntax, and transfer syntaxes")
    return ProposedContext(context_id, abstract[0], tuple(transfer))


def _user_information(data: bytes) -> UserInformation:
    user = UserInformation()
    for kind, value in _items(data):
        if kind == 0x51:
            user.max_pdu = struct.unpack(">I", value)[0]
        elif kind == 0x53:
            user.has_async_window = True
        elif kind == 0x54:
            uid, rest = _leading_uid(value)
            is_scu, is_scp = struct.unpack(">BB", rest)
            user.roles[uid] = (is_scu & 1, is_scp & 1)
        elif kind == 0x56:
            uid, rest = _leading_uid(value)
            user.extended[uid] = rest
        elif kind == 0x57:
            uid, rest = _leading_uid(value)
            user.service_classes[uid] = _leading_uid(rest)[0]
        # Others say who the peer is, or are of a later standard: nothing follows from them.
    return user


def _leading_uid(value: bytes) -> tuple[str, bytes]:
    length = struct.unpack_from(">H", value)[0]
    if 2 + length > len(value):
        raise ProtocolError("a UID is longer than the item that holds it")
    return _uid(value[2 : 2 + length]), value[2 + length :]


def _uid(value: bytes) -> str:
    uid = value.rstrip(b"\0 ")  # some pad them, which PS3.8 9.3.1 does not want
    if _UID_FORM.fullmatch(uid) is None:
        raise ProtocolError("a UID has the wrong form")
    return uid.decode("ascii")


def _ae(value: bytes) -> str:
    if _AE_FORM.fullmatch(value) is None:
        raise ProtocolError("an AE title has a character that none may have")
    return value.decode("ascii").strip(" ")
