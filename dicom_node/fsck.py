"""Compares database and files, and says it as plain values or as sentences."""

from dataclasses import asdict
from typing import Any

from dicom_node.settings import NodeSettings
from storage.database import Database
from storage.fsck import check


def check_home(settings: NodeSettings, database: Database) -> dict[str, Any]:
    """The findings; `is_sound` is true when every instance is there with the bytes it came with."""
    report = asdict(check(database, settings.storage.files_root))
    return {"is_sound": not report["missing"] and not report["digest_mismatch"], **report}


def text_of(report: dict[str, Any]) -> str:
    """One line a finding, and what to do."""
    lines = [f"{report['instances']} instances in the index"]
    for key, advice in ADVICE.items():
        lines += [f"{key.replace('_', ' ')}: {entry} - {advice}" for entry in report[key]]
    lines.append("sound" if report["is_sound"] else "not sound")
    return "\n".join(lines)


ADVICE = {
    "missing": "restore the file from the backup, or have the study sent again",
    "digest_mismatch": "restore the file from the backup; its bytes are not the ones received",
    "orphans": "a file without a row; nobody was promised it, it may be deleted",
    "stale_incoming": "never finished; the sweep removes it",
}
