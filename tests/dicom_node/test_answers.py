"""Every answer of a destination has one verdict, and a sentence that says what to do."""

import re
from itertools import product

import pytest
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicom_node.answers import (
    ABORTS,
    OTHERS,
    REJECTIONS,
    STATUSES,
    Answer,
    Kind,
    Verdict,
    meaning_of,
    of_status,
)

SENTENCE = re.compile(r"(The destination|This node|Nobody|No TLS|The host|The connection|The configuration|"
                      r"The instance|Our own file) .+[.?]")  # fmt: skip


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, Verdict.STORED),
        (0xB000, Verdict.STORED_WITH_WARNING),
        (0xB006, Verdict.STORED_WITH_WARNING),
        (0xB007, Verdict.STORED_WITH_WARNING),
        (0xB001, Verdict.STORED_WITH_WARNING),  # PS3.7 C.1: a warning says that it was done
        (0x0111, Verdict.STORED_WITH_WARNING),  # our UIDs follow from the content: the same UID is the same
        (0xA700, Verdict.TRANSIENT),
        (0xA7FF, Verdict.TRANSIENT),
        (0x0110, Verdict.TRANSIENT),
        (0x0213, Verdict.TRANSIENT),
        (0xFE00, Verdict.TRANSIENT),
        (0xA900, Verdict.PERMANENT),
        (0xA9FF, Verdict.PERMANENT),
        (0xC000, Verdict.PERMANENT),
        (0xCFFF, Verdict.PERMANENT),
        (0x0122, Verdict.PERMANENT),
        (0x0124, Verdict.PERMANENT),
        (0x4711, Verdict.PERMANENT),
    ],
)
def test_what_a_status_means(status: int, verdict: Verdict) -> None:
    assert meaning_of(of_status(status)).verdict is verdict


def test_every_status_of_two_bytes_has_a_meaning_and_none_gives_up_at_once() -> None:
    meanings = {status: meaning_of(of_status(status)) for status in range(0x10000)}
    assert all(SENTENCE.fullmatch(meaning.sentence) for meaning in meanings.values())
    assert {meaning.verdict for meaning in meanings.values()} == set(Verdict) - {Verdict.HOPELESS}
    stored = {status for status, meaning in meanings.items() if meaning.verdict.is_stored}
    assert stored == {0x0000, 0x0001, 0x0107, 0x0111, 0x0116, *range(0xB000, 0xC000)}


def test_it_agrees_with_pynetdicom_on_what_is_a_failure() -> None:
    """Two exceptions: 0x0111 says that the instance is there, and 0xFE00 is no end of a C-STORE."""
    for status, (category, _) in STORAGE_SERVICE_CLASS_STATUS.items():
        is_stored = meaning_of(of_status(status)).verdict.is_stored
        assert is_stored == (category in {"Success", "Warning"} or status == 0x0111), hex(status)


def test_the_table_names_every_status_of_the_standard() -> None:
    general = set(range(0x0105, 0x0108)) | set(range(0x0110, 0x0125)) | {0x0210, 0x0211, 0x0212, 0x0213}
    general -= {0x011A, 0x011B, 0x011C, 0x011D, 0x011E, 0x011F}
    assert general | {0x0000, 0x0001, 0xFE00, 0xFF00, 0xFF01} <= set(STATUSES)


@pytest.mark.parametrize(("source", "reason"), list(product((1, 2, 3), range(11))))
def test_every_rejection_passes_or_needs_a_person(source: int, reason: int) -> None:
    for result in (1, 2):
        meaning = meaning_of(Answer(Kind.REJECTED, (result, source, reason)))
        passes = result == 2 or (source, reason) in {(3, 1), (3, 2)}
        assert meaning.verdict is (Verdict.TRANSIENT if passes else Verdict.PERMANENT)
        assert SENTENCE.fullmatch(meaning.sentence)


def test_rejections_name_what_to_correct() -> None:
    assert "register it" in meaning_of(Answer(Kind.REJECTED, (1, 1, 3))).sentence
    assert "AE title here" in meaning_of(Answer(Kind.REJECTED, (1, 1, 7))).sentence
    assert {(1, 1), (1, 2), (1, 3), (1, 7), (2, 1), (2, 2), (3, 1), (3, 2)} == set(REJECTIONS)


@pytest.mark.parametrize(("source", "reason"), list(product((0, 1, 2), range(8))))
def test_every_abort_is_tried_again(source: int, reason: int) -> None:
    meaning = meaning_of(Answer(Kind.ABORTED, (source, reason)))
    assert meaning.verdict is Verdict.TRANSIENT
    assert SENTENCE.fullmatch(meaning.sentence)
    assert meaning.sentence in ABORTS.values()


def test_every_other_end_has_a_meaning() -> None:
    assert set(OTHERS) == set(Kind) - {Kind.STATUS, Kind.REJECTED, Kind.ABORTED}
    assert all(SENTENCE.fullmatch(meaning.sentence) for meaning in OTHERS.values())
    hopeless = {kind for kind, meaning in OTHERS.items() if meaning.verdict is Verdict.HOPELESS}
    assert hopeless == {Kind.NO_CONTEXT, Kind.NO_INSTANCE, Kind.DAMAGED}


def test_the_short_form() -> None:
    assert str(of_status(0xA700)) == "0xA700"
    assert str(Answer(Kind.REJECTED, (1, 1, 7))) == "RJ 01/01/07"
    assert str(Answer(Kind.ABORTED, (2, 6))) == "ABORTED 2 6"
    assert str(Answer(Kind.NO_CONTEXT)) == "NO_CONTEXT"
    assert str(Answer(Kind.NOT_COMMITTED, (0x0112,))) == "NOT_COMMITTED 0x0112"
