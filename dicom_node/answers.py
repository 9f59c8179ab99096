"""What every answer of a destination means for a delivery: stored, try again soon, or a person is needed.

One table for the statuses of C-STORE, one for refused associations, one for connections that fail; what the
standard leaves open is decided by its range. The sentence is what the operator reads.

Source: PS3.4 B.2.3 (C-STORE), PS3.7 Annex C (all statuses), PS3.8 9.3.4 (A-ASSOCIATE-RJ), 9.3.8 (A-ABORT).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What becomes of the delivery."""

    STORED = "STORED"
    STORED_WITH_WARNING = "STORED WITH WARNING"
    TRANSIENT = "TRANSIENT"  # again, with growing pauses
    PERMANENT = (
        "PERMANENT"  # the same will be answered until somebody acts: again, but seldom, and said aloud
    )
    HOPELESS = "HOPELESS"  # no repetition can help: dead letter at once

    @property
    def is_stored(self) -> bool:
        """Whether the destination has the instance."""
        return self in {Verdict.STORED, Verdict.STORED_WITH_WARNING}


class Kind(StrEnum):
    """How an attempt ended."""

    STATUS = "STATUS"  # a C-STORE response
    REJECTED = "REJECTED"  # A-ASSOCIATE-RJ
    ABORTED = "ABORTED"  # A-ABORT
    NO_CONNECTION = "NO_CONNECTION"  # TCP: nobody listens there
    UNKNOWN_HOST = "UNKNOWN_HOST"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    NO_TLS = "NO_TLS"  # TCP is there, TLS is not agreed upon
    ASSOCIATE_TIMEOUT = "ASSOCIATE_TIMEOUT"  # connected, but the association is never answered
    RESPONSE_TIMEOUT = "RESPONSE_TIMEOUT"  # associated, but the C-STORE is never answered
    LOST = "LOST"  # the connection broke
    NO_CONTEXT = "NO_CONTEXT"  # the SOP class, or every transfer syntax we can give, was not accepted
    NO_DESTINATION = "NO_DESTINATION"  # the configuration has it no longer
    NO_INSTANCE = "NO_INSTANCE"  # our own file or row is missing
    DAMAGED = "DAMAGED"  # our own file is not what was stored
    UNREADABLE = "UNREADABLE"  # our own file cannot be read now
    NOT_COMMITTED = "NOT_COMMITTED"  # stored, but Storage Commitment says otherwise; numbers: the reason


@dataclass(frozen=True)
class Answer:
    """How an attempt ended: the kind, and the numbers that came with it.

    `numbers` are the status; or result, source and reason of a rejection; or source and reason of an abort.
    """

    kind: Kind
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The short form that rows and logs carry."""
        if self.kind is Kind.STATUS:
            return f"0x{self.numbers[0]:04X}"
        if self.kind is Kind.REJECTED:
            return "RJ " + "/".join(f"{number:02d}" for number in self.numbers)
        if self.kind is Kind.NOT_COMMITTED:
            return " ".join([self.kind, *(f"0x{number:04X}" for number in self.numbers)])
        return " ".join([self.kind, *map(str, self.numbers)])


@dataclass(frozen=True)
class Meaning:
    """What an answer means, and the sentence that an operator reads."""

    verdict: Verdict
    sentence: str


_STORED, _WARNED = Verdict.STORED, Verdict.STORED_WITH_WARNING
_SOON, _SELDOM, _NEVER = Verdict.TRANSIENT, Verdict.PERMANENT, Verdict.HOPELESS

# Source: PS3.4 table B.2-1 and PS3.7 Annex C. A status not in the table is decided by `_RANGES`.
STATUSES: Final[Mapping[int, Meaning]] = {
    0x0000: Meaning(_STORED, "The destination has it."),
    0x0001: Meaning(_WARNED, "The destination has it; it does not support an optional attribute."),
    0x0105: Meaning(_SELDOM, "The destination misses an attribute: see its log for the one."),
    0x0106: Meaning(_SELDOM, "The destination dislikes a value: see its log for the attribute."),
    0x0107: Meaning(_WARNED, "The destination has it, but not every attribute: see its log."),
    0x0110: Meaning(_SOON, "The destination failed while it worked on it: see its log if this stays."),
    0x0111: Meaning(
        _WARNED, "The destination has an instance of this UID already: an earlier answer was lost."
    ),
    0x0112: Meaning(_SELDOM, "The destination looks for an instance that it does not have: see its log."),
    0x0113: Meaning(_SELDOM, "The destination answered as if asked for an event: see its log."),
    0x0114: Meaning(_SELDOM, "The destination misses an argument: see its log."),
    0x0115: Meaning(_SELDOM, "The destination dislikes an argument: see its log."),
    0x0116: Meaning(_WARNED, "The destination has it, but a value was out of its range: see its log."),
    0x0117: Meaning(_SELDOM, "The destination does not accept the SOP Instance UID: see its log."),
    0x0118: Meaning(_SELDOM, "The destination does not know the SOP class: have it set up there."),
    0x0119: Meaning(_SELDOM, "The destination has another class under this UID: compare both instances."),
    0x0120: Meaning(_SELDOM, "The destination misses an attribute: see its log for the one."),
    0x0121: Meaning(_SELDOM, "The destination misses a value: see its log for the attribute."),
    0x0122: Meaning(_SELDOM, "The destination does not take this SOP class: have it set up there."),
    0x0123: Meaning(_SELDOM, "The destination answered as if asked for an action: see its log."),
    0x0124: Meaning(_SELDOM, "This node may not store there: have its AE title authorised."),
    0x0210: Meaning(
        _SOON, "The destination saw the message id twice: it is sent again on a new association."
    ),
    0x0211: Meaning(_SELDOM, "The destination does not offer C-STORE: check port and AE title."),
    0x0212: Meaning(_SELDOM, "The destination does not understand the request: see its log."),
    0x0213: Meaning(_SOON, "The destination is short of resources."),
    0xA700: Meaning(_SOON, "The destination is out of resources: check its disk if this stays."),
    0xA900: Meaning(
        _SELDOM, "The destination finds that the data set does not match its SOP class: see its log."
    ),
    0xB000: Meaning(_WARNED, "The destination has it, and changed values: its copy differs from ours."),
    0xB006: Meaning(_WARNED, "The destination has it without some elements: its copy differs from ours."),
    0xB007: Meaning(_WARNED, "The destination has it, and finds that it does not match its SOP class."),
    0xC000: Meaning(_SELDOM, "The destination cannot understand the data set: see its log."),
    0xFE00: Meaning(_SOON, "The destination cancelled the transfer."),
    0xFF00: Meaning(_SOON, "The destination says that it is not done yet, which C-STORE does not know."),
    0xFF01: Meaning(_SOON, "The destination says that it is not done yet, which C-STORE does not know."),
}
# First, last, meaning; first match. Source: PS3.4 B.2.3 (A7xx, A9xx, Cxxx), PS3.7 Annex C.1 (classes).
_RANGES: Final = (
    (0xA700, 0xA7FF, STATUSES[0xA700]),
    (0xA900, 0xA9FF, STATUSES[0xA900]),
    (0xC000, 0xCFFF, STATUSES[0xC000]),
    (0xA000, 0xAFFF, Meaning(_SELDOM, "The destination refused it for a reason of its own: see its log.")),
    (0xB000, 0xBFFF, Meaning(_WARNED, "The destination has it, with a warning of its own: see its log.")),
    (0x0100, 0x01FF, Meaning(_SELDOM, "The destination failed for a reason of its own: see its log.")),
    (0x0200, 0x02FF, Meaning(_SELDOM, "The destination failed for a reason of its own: see its log.")),
    (0x0000, 0xFFFF, Meaning(_SELDOM, "The destination gave an answer that the standard does not know.")),
)

# (source, reason): what a rejection says. Source: PS3.8 table 9-21.
REJECTIONS: Final[Mapping[tuple[int, int], str]] = {
    (1, 1): "The destination refuses the association without a reason: is this node registered there?",
    (1, 2): "The destination does not know DICOM's application context: check host and port.",
    (1, 3): "The destination does not know our AE title: register it there.",
    (1, 7): "The destination is not called so: correct its AE title here.",
    (2, 1): "The destination refuses the association: see its log.",
    (2, 2): "The destination speaks another version of the protocol: check host and port.",
    (3, 1): "The destination is congested.",
    (3, 2): "The destination has as many associations as it takes.",
}
_UNKNOWN_REJECTION: Final = "The destination refuses the association for a reason the standard does not know."
_PASSING: Final = frozenset({(3, 1), (3, 2)})  # pass, whatever the peer calls them
_TRANSIENT_RESULT: Final = 2

# (source, reason). Source: PS3.8 table 9-26.
ABORTS: Final[Mapping[tuple[int, ...], str]] = {
    (0, 0): "The destination broke the association off.",
    (2, 0): "The destination broke the association off without a reason: see its log.",
    (2, 1): "The destination did not recognise what we sent: see its log.",
    (2, 2): "The destination did not expect what we sent: see its log.",
    (2, 4): "The destination did not recognise a parameter of ours: see its log.",
    (2, 5): "The destination did not expect a parameter of ours: see its log.",
    (2, 6): "The destination found a parameter of ours invalid: see its log.",
}

OTHERS: Final[Mapping[Kind, Meaning]] = {
    Kind.NO_CONNECTION: Meaning(_SOON, "Nobody listens there: check host and port, and that it runs."),
    Kind.UNKNOWN_HOST: Meaning(_SOON, "The host name is unknown or the network is down: check the name."),
    Kind.CONNECT_TIMEOUT: Meaning(_SOON, "The host does not answer: check network and firewall."),
    Kind.NO_TLS: Meaning(
        _SELDOM, "No TLS connection is agreed upon, so nothing is sent: check the certificates on both sides."
    ),
    Kind.ASSOCIATE_TIMEOUT: Meaning(_SOON, "The destination took the connection and then said nothing."),
    Kind.RESPONSE_TIMEOUT: Meaning(_SOON, "The destination did not answer in time."),
    Kind.LOST: Meaning(_SOON, "The connection broke before the answer."),
    Kind.NO_CONTEXT: Meaning(
        _NEVER,
        "The destination does not take this kind of object: have its SOP class set up there, redeliver.",
    ),
    Kind.NO_DESTINATION: Meaning(
        _SELDOM, "The configuration has no destination of this name: put it back, or withdraw the delivery."
    ),
    Kind.NO_INSTANCE: Meaning(_NEVER, "The instance or its file is missing here: run `dicom-node fsck`."),
    Kind.DAMAGED: Meaning(
        _NEVER,
        "Our own file is damaged: restore it from the backup (`dicom-node fsck` names it), then redeliver.",
    ),
    Kind.UNREADABLE: Meaning(_SOON, "Our own file cannot be read now: check disk or object store."),
    Kind.NOT_COMMITTED: Meaning(
        _SOON, "The destination took it, but does not commit to keeping it: it is sent again."
    ),
}


def meaning_of(answer: Answer) -> Meaning:
    """What `answer` means; there is a meaning for every answer that can be encoded."""
    if answer.kind is Kind.STATUS:
        return _of_status(answer.numbers[0])
    if answer.kind is Kind.REJECTED:
        return _of_rejection(*answer.numbers)
    if answer.kind is Kind.ABORTED:
        return Meaning(_SOON, ABORTS.get(answer.numbers[:2], ABORTS[0, 0]))
    return OTHERS[answer.kind]


def of_status(status: int) -> Answer:
    """The answer that a C-STORE response with this status is."""
    return Answer(Kind.STATUS, (status,))


def _of_status(status: int) -> Meaning:
    if status in STATUSES:
        return STATUSES[status]
    return next(meaning for first, last, meaning in _RANGES if first <= status <= last)


def _of_rejection(result: int, source: int, reason: int) -> Meaning:
    sentence = REJECTIONS.get((source, reason), _UNKNOWN_REJECTION)
    is_passing = result == _TRANSIENT_RESULT or (source, reason) in _PASSING
    return Meaning(_SOON if is_passing else _SELDOM, sentence)
