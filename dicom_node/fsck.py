"""Compares index and files, mends what can be mended, and makes a lost index anew: for the command line."""

import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from dicom_node.notes import IdentityRules
from dicom_node.rebuild import Rebuild
from dicom_node.recovery import Fate, Recovery, mark_all_complete
from storage.database import Database
from storage.files import FileStore
from storage.fsck import Finding, FsckReport, Kind, check, count_instances, findings
from storage.part10 import is_address

TELL_EVERY_S = 5.0


def check_home(database: Database, files: FileStore) -> dict[str, Any]:
    """The findings; `is_sound` is true when every instance is there with the bytes it came with."""
    return _plain(check(database, files, tell))


def repair_home(database: Database, files: FileStore, identity: IdentityRules) -> dict[str, Any]:
    """Check, and mend what can be mended without loss; the node must not run meanwhile.

    A file without a row is entered into the index, or set aside when it cannot be read or is a result that no
    job claims. A file that is not what its row says is set aside: the row stays, and the next sending of the
    instance fills it. What was never finished is removed. Nothing else is deleted.
    """
    report = FsckReport(instances=count_instances(database))
    recovery = Recovery(database, files, identity)
    repaired: Counter[str] = Counter()
    for finding in findings(database, files, tell):
        report.add(finding)
        if (done := _mend(finding, recovery, files)) is not None:
            repaired[done] += 1
    return {**_plain(report), "repaired": dict(repaired)}


def rebuild_index(
    database: Database, files: FileStore, identity: IdentityRules, *, with_jobs: bool
) -> dict[str, Any]:
    """Enter every stored file into an empty index; without jobs, every study counts as analysed."""
    with files.left_behind():
        pass  # what a journal held is files again, and entered with all others
    fates = Rebuild(database, files, identity).run(tell)
    told: dict[str, Any] = {
        "instances": count_instances(database),
        **{str(fate): fates[fate] for fate in Fate},
    }
    if not with_jobs:
        told["studies_marked_complete"] = mark_all_complete(database)
    return told


def text_of(report: dict[str, Any]) -> str:
    """One line a finding, and what to do."""
    lines = [f"{report['instances']} instances in the index"]
    for key, advice in ADVICE.items():
        lines += [f"{key.replace('_', ' ')}: {entry} - {advice}" for entry in report[key]]
        unlisted = report["counts"][key] - len(report[key])
        lines += [f"{key.replace('_', ' ')}: and {unlisted} more"] if unlisted else []
    lines += [f"repaired: {count} {what}" for what, count in report.get("repaired", {}).items()]
    lines.append("sound" if report["is_sound"] else "not sound")
    return "\n".join(lines)


ADVICE = {
    "missing": "restore the file from the backup, or have the study sent again",
    "digest_mismatch": "restore the file from the backup; its bytes are not the ones received",
    "unreadable": "look after the disk or the object store, then run fsck again",
    "orphans": "a file without a row; `fsck --repair` enters it into the index",
    "stale_incoming": "never finished; the sweep removes it",
}


class _Teller:
    """Says on stderr how far a long walk has come, every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + TELL_EVERY_S

    def __call__(self, what: str, count: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + TELL_EVERY_S
            sys.stderr.write(f"{count} {what} looked at\n")


tell = _Teller()


def _plain(report: FsckReport) -> dict[str, Any]:
    return {"is_sound": report.is_sound, **asdict(report)}


def _mend(finding: Finding, recovery: Recovery, files: FileStore) -> str | None:
    """Act on one finding; returns what was done, None when it is not ours to mend."""
    if finding.kind is Kind.STALE_INCOMING:
        (files.spool / finding.path).unlink(missing_ok=True)
        return "unfinished file removed"
    if finding.kind is Kind.DIGEST_MISMATCH:
        files.set_aside(finding.path)
        return "changed file set aside"
    if finding.kind is Kind.ORPHAN:
        return _mend_orphan(finding.path, recovery, files)
    return None


def _mend_orphan(path: str, recovery: Recovery, files: FileStore) -> str | None:
    if not is_address(path):
        return None  # somebody else put it there, let them take it away
    found = files.find(path)
    if found is None:
        return None
    fate = recovery.adopt(found)
    return None if fate is Fate.LEFT else f"file without a row {fate}"
