"""Whether the chain is whole: which record was altered, removed or moved.

Each record names the digest of the line before it, so that a change shows in the record behind it; the head
names the last one. Whoever can write to the folder can write a whole new chain: what has been sent to a
repository is what proves more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.audit.record import NoRecord, Record, digest_of, parse
from dicom_node.audit.spool import Mark, Spool, first_of


@dataclass
class _Walk:
    """How far the check is, and what it found."""

    number: int  # of the last record, in the order of numbers
    digest: str
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """What was found."""

    records: int
    findings: tuple[str, ...]


def verify(spool: Spool) -> Checked:
    """Read the whole trail; findings are sentences, none where the chain is whole."""
    start, head = spool.start(), spool.head()
    walk, count = _Walk(start.number, start.digest), 0
    for path in spool.segments():
        if first_of(path) <= start.number:
            continue  # it was about to be removed when the process was killed
        entries = _entries(path, walk.findings)
        count += len(entries)
        _check_order(entries, walk.findings)
        for record, digest in sorted(entries, key=lambda entry: entry[0].number):
            _check_link(record, walk)
            walk.number, walk.digest = record.number, digest
    _check_end(head, walk)
    return Checked(count, tuple(walk.findings))


def _entries(path: Path, findings: list[str]) -> list[tuple[Record, str]]:
    entries = []
    for place, line in enumerate(_lines(path), start=1):
        try:
            entries.append((parse(line), digest_of(line)))
        except NoRecord:
            findings.append(f"{path.name}, line {place}: is no record: altered")
    return entries


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def _check_order(entries: list[tuple[Record, str]], findings: list[str]) -> None:
    highest = 0
    for record, _ in entries:
        if record.number < highest:
            findings.append(f"record {record.number} stands behind record {highest}: reordered")
        highest = max(highest, record.number)


def _check_link(record: Record, walk: _Walk) -> None:
    if record.number <= walk.number:
        walk.findings.append(f"record {record.number} is there twice: added")
    elif record.number > walk.number + 1:
        walk.findings.append(f"{_span(walk.number + 1, record.number - 1)} not there: removed")
    elif record.previous != walk.digest:
        walk.findings.append(f"record {walk.number} is not what record {record.number} says: altered")


def _check_end(head: Mark, walk: _Walk) -> None:
    if head.number > walk.number:
        walk.findings.append(f"{_span(walk.number + 1, head.number)} not there: removed")
    elif head.number == walk.number and head.digest != walk.digest:
        walk.findings.append(f"record {walk.number} is not what the head says: altered")


def _span(low: int, high: int) -> str:
    return f"record {low} is" if low == high else f"records {low} to {high} are"
